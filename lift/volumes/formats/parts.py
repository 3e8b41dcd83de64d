"""Volumes larger than memory, read part by part: means of whole voxels take their place.

The voxels of an uncompressed file are mapped, and only the means are ever held. That needs a plan
which resamples to at least twice the stored spacing along some axis; along each, as many whole
voxels become one as fit into the plan's spacing. What is left over at the far ends, fewer voxels
than become one, is left out. Labels have no mean: of them the middle voxel is taken, at its place.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from nibabel.orientations import io_orientation

from lift.volumes.formats import checks
from lift.volumes.formats.checks import Decoded, Refusal, check_affine, with_fresh_header

Spacings = tuple[float | None, float | None, float | None]
"""Along x, y and z, mm; None for what the volume has."""
_WHOLE: Final = 1e-3


def coarsened(
    decoded: Decoded, coarsest_mm: Spacings, refuse: Refusal, *, labels: bool = False
) -> Decoded:
    """The volume with means in place of its voxels, scaled, float32.

    Args:
        decoded: with mapped voxels, (i, j, k) along the file's axes.
        coarsest_mm: largest spacing of the means along x, y and z of the patient; None where
            voxels stay what they are.
        refuse: makes the error.
        labels: take the middle one of the voxels that become one.

    Raises:
        TooLargeError: the means would still be more than any volume that is read.
        VolumeError: it holds NaN or infinity.
        AffineError: its affine is singular or not finite.
    """
    check_affine(decoded.affine, refuse)
    towards = io_orientation(decoded.affine)[:, 0].astype(int)
    own_mm = np.linalg.norm(decoded.affine[:3, :3], axis=0)
    wanted_mm = [coarsest_mm[axis] for axis in towards]
    together = [
        1 if wanted is None else max(1, min(math.floor(wanted / own + _WHOLE), count // 2))
        for wanted, own, count in zip(wanted_mm, own_mm, decoded.data.shape, strict=True)
    ]
    shape = tuple(n // many for n, many in zip(decoded.data.shape, together, strict=True))
    if math.prod(shape) * 8 > checks.LARGEST_VOLUME_BYTES:
        raise refuse.too_large(
            "it is larger than memory, and the plan's spacing leaves it so "
            f"({' x '.join(map(str, shape))} voxels)",
            "Resample it before, or use a plan with a larger spacing.",
        )
    (x, y, z), (across, down, deep) = shape, together
    made = np.empty(shape, dtype=np.float32, order="F")
    for k in range(z):
        # the last axis is the slowest in every format: one part is one piece of the file
        part = decoded.data[: x * across, : y * down, k * deep : (k + 1) * deep]
        if labels:
            mean = part[across // 2 :: across, down // 2 :: down, deep // 2].astype(np.float64)
        else:
            # a view: neighbours along an axis stay neighbours
            blocks = part.reshape((x, across, y, down, deep))
            mean = blocks.mean(axis=(1, 3, 4), dtype=np.float64)
        made[:, :, k] = mean * decoded.slope + decoded.inter
    if not np.isfinite(made).all():
        raise refuse("it holds NaN or infinity", "Replace them (background is 0), or take it out.")
    affine = decoded.affine.copy()
    affine[:3, :3] *= together
    many = np.array(together)
    affine[:3, 3] += decoded.affine[:3, :3] @ (many // 2 if labels else (many - 1) / 2)
    return with_fresh_header(made, affine, refuse)
