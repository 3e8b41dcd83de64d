"""Negative controls as rows: what no figure may prefer, measured as any prediction is."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter

from lift.cohort.preprocessing import Prepared
from lift.tasks.paired.methods import Floats

REAL: Final = "real"
"""The real target: what a figure that needs no second real volume gives for it."""
SMOOTHED: Final = "real_smoothed"
OTHER: Final = "other_patient"
_SIGMA_VOXELS: Final = 1.0


def control_predictions(prepared: Prepared, other: Prepared | None) -> dict[str, Floats]:
    """Volumes that are no predictions, (z, 1, h, w) by row.

    Args:
        prepared: a held-out patient.
        other: somebody else, whose real target is laid over this patient's, middle on middle.
    """
    if prepared.target is None:
        raise ValueError("a held-out patient needs a target")
    inside = prepared.target * prepared.mask
    found = {SMOOTHED: gaussian_filter(inside[:, 0], _SIGMA_VOXELS)[:, None]}
    if other is not None and other.target is not None:
        found[OTHER] = _middle(other.target * other.mask, inside.shape)
    return found


def _middle(volume: Floats, shape: tuple[int, ...]) -> Floats:
    """A volume cut, or continued with 0, to another shape around its middle."""
    result = np.zeros(shape, dtype=np.float32)
    source, target = [], []
    for own, wanted in zip(volume.shape, shape, strict=True):
        size = min(own, wanted)
        source.append(slice((own - size) // 2, (own - size) // 2 + size))
        target.append(slice((wanted - size) // 2, (wanted - size) // 2 + size))
    result[tuple(target)] = volume[tuple(source)]
    return result
