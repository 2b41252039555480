"""Measured latency tables of cells and layers."""
