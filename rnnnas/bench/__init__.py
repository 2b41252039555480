"""Timing of the fast path beside the published algorithm and beside the products alone."""
