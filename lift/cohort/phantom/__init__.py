"""The phantom cohort: deformed MNI152 anatomy with simulated scanners. Contains no patient."""
