"""Perplexity, accuracy and samples of a checkpoint; dynamic evaluation and the neural cache."""
