"""The complete table of a small space, and searches held against it."""
