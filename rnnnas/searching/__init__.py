"""A search: the super-network, black-box search, deriving by trying and by perturbation."""
