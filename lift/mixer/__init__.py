"""Mixers: small trainable networks that couple the slices of a volume along depth."""
