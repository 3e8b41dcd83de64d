"""Figures of a synthetic CT by tissue: bone must be there, and in its place.

A mean over the whole mask says little of bone, which fills a small part of it: a head without a
skull is off by a thousand HU in a tenth of its voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lift.metrics.synthrad import Floats, Mask, Numbers, checked

BONE_HU: Final = 200.0
"""Above it a voxel of a CT counts as bone."""
SOFT_HU: Final = -200.0
"""Above it, and up to `BONE_HU`, a voxel counts as soft tissue, fat included."""


@dataclass(frozen=True)
class TissueFigures:
    """Figures by tissue; None where the target has no voxel of it inside the mask.

    Attributes:
        bone_mae: mean absolute error where the target is bone, HU.
        soft_mae: the same where it is soft tissue.
        bone_dice: overlap of the bone of both volumes, 0 to 1: 2 |A and B| / (|A| + |B|).
    """

    bone_mae: float | None
    soft_mae: float | None
    bone_dice: float | None


def tissue_figures(prediction: Numbers, target: Numbers, mask: npt.ArrayLike) -> TissueFigures:
    """Errors in bone and in soft tissue of the target, and the overlap of bone.

    Args:
        prediction: (depth, height, width), HU.
        target: the same for the real CT.
        mask: the same; voxels that count are above 0.

    Raises:
        ValueError: as in :func:`lift.metrics.synthrad.mae_hu`.
    """
    predicted, wanted, inside = checked(prediction, target, mask)
    bone = inside & (wanted > BONE_HU)
    shown = inside & (predicted > BONE_HU)
    soft = inside & (wanted > SOFT_HU) & ~bone
    both = int(bone.sum()) + int(shown.sum())
    return TissueFigures(
        bone_mae=_mean_error(predicted, wanted, bone),
        soft_mae=_mean_error(predicted, wanted, soft),
        bone_dice=2 * int((bone & shown).sum()) / both if bone.any() else None,
    )


def _mean_error(predicted: Floats, wanted: Floats, where: Mask) -> float | None:
    return float(np.abs(predicted[where] - wanted[where]).mean()) if where.any() else None
