"""PSNR and SSIM of a whole BraTS crop, background included, as we read cWDM's figures.

cWDM (Friedrich et al. 2024, conditional wavelet diffusion for BraTS) publishes figures but no
evaluation script. This is our documented reading of its pre- and post-processing: volumes in
[0, 1] by the 0.1 and 99.9 percentiles of the whole volume (the caller has done that), the
240 x 240 plane cropped to 224 x 224 (8 voxels a side), 155 slices, the prediction clipped and
set to 0 in the background, data range 1. The background counts, which lifts SSIM above .9 for
nearly anything: read these two beside the figures inside the mask, never alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from lift.metrics.synthrad import (
    MR_RANGE,
    SSIM_WINDOW,
    Floats,
    Numbers,
    checked,
    psnr_of_error,
    similarity_map,
)

CROP_SHAPE: Final = (155, 224, 224)
"""Largest (depth, height, width) that counts, taken from the middle of the volume."""


def psnr_crop_db(prediction: Numbers, target: Numbers, mask: npt.ArrayLike) -> float:
    """PSNR over every voxel of the crop, dB; at most 100 (see `synthrad.HIGHEST_PSNR_DB`).

    Both volumes are clipped to [0, 1]; the prediction is 0 outside the mask, the target is as
    it is. An axis that is not longer than the crop's counts in full.

    Raises:
        ValueError: as in :func:`lift.metrics.synthrad.mae_hu`.
    """
    predicted, wanted = _crops(prediction, target, mask)
    return psnr_of_error(float(np.square(predicted - wanted).mean()), MR_RANGE)


def ssim_crop(prediction: Numbers, target: Numbers, mask: npt.ArrayLike) -> float | None:
    """Mean 3D SSIM over every voxel of the crop but the 3 next to its faces.

    Volumes, window and constants as in :func:`psnr_crop_db` and :func:`lift.metrics.synthrad.ssim`.
    None when an axis is shorter than 7 voxels.

    Raises:
        ValueError: as in :func:`lift.metrics.synthrad.mae_hu`.
    """
    predicted, wanted = _crops(prediction, target, mask)
    if min(wanted.shape) < SSIM_WINDOW:
        return None
    return similarity_map(wanted, predicted, MR_RANGE)[0]


def _crops(prediction: Numbers, target: Numbers, mask: npt.ArrayLike) -> tuple[Floats, Floats]:
    predicted, wanted, inside = checked(prediction, target, mask)
    middle = []
    for length, largest in zip(inside.shape, CROP_SHAPE, strict=True):
        start = max(0, (length - largest) // 2)
        middle.append(slice(start, start + min(length, largest)))
    box = tuple(middle)
    shown = np.where(inside[box], np.clip(predicted[box], 0.0, 1.0), 0.0)
    return shown, np.clip(wanted[box], 0.0, 1.0)
