"""Generations of the application: who runs them, how one takes over from another."""
