"""Checks of volumes before use: how they were acquired, whether they fit together."""
