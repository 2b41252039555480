"""Dense blocks (DenseNAS): their space, genotype and network."""
