"""Releases: taken in, described, linked to what they share, pruned."""
