"""A run on disk: folder, files, checkpoint, TensorBoard, progress, signals."""
