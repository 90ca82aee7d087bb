"""Benchmarks: measured figures, each written to a file that the docs are generated from."""
