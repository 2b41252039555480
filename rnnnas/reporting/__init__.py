"""A report of searches, trainings and studies: one HTML file that needs nothing else."""
