"""Studies: search methods compared with one another and with random cells."""
