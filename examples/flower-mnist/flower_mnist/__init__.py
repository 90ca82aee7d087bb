"""MNIST with Flower, its updates compressed by gradwire."""
