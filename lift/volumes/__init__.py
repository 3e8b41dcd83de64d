"""Volumes on disk and in memory: formats, grids, masks, slices, resampling."""
