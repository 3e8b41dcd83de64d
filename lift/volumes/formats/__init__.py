"""Readers of volume files: one module for each format, one place that chooses (`decode`).

Whatever the bytes are, a reader gives a `Decoded` or raises a `VolumeError`. What is refused is
never read as other voxels, memory is asked for only after the header's claims have been checked,
and a header's texts are neither shown nor kept.
"""
