"""What all tests share: hypothesis draws from a test alone, whatever else is loaded."""

from hypothesis.internal.conjecture import providers

# Hypothesis mixes the constants of every module that happens to be loaded into its examples, so that even under
# derandomize what is drawn depends on which files are selected and on which tests ran before in the same process.
providers._get_local_constants = lambda: providers._local_constants
