"""Noise on the statistics of the unconditional task."""
