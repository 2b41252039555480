"""Relaxations: from alphas to mixtures of operations, a method a file."""
