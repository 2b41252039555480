"""What differs between text and images in a search or a training."""
