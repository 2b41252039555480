"""Architecture search on graphs and tensors; knows nothing of text or images."""
