"""Cells as text, SVG, dot and images."""
