"""Exact SQL over many isolated SQLite databases, run for real and simulated by the same code."""
