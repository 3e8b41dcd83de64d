"""The phantom cohort: MNI152 anatomy, deformed, with simulated scanners. No patient is in it."""
