"""A training from scratch, and the published learning curves beside it."""
