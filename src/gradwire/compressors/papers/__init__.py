"""The papers' schemes: one published scheme a file, equation numbers at the lines."""
