"""A small app for tests over real processes: NumPy alone, so that a process for each message costs little."""
