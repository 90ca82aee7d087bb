"""Rounds of either kind, and everything that exists while they run."""
