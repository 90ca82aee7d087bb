"""update <-> payload: the pure core, its stages and wrappers; papers/ inside, a published scheme a file."""
