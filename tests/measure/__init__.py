"""Measurements that are too long for every day, each a program: python -m tests.measure.NAME --help."""
