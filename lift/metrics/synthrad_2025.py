"""MS-SSIM inside a mask, as the SynthRAD2025 challenge computes it.

Source: the challenge's published evaluation code (SynthRAD2025/evaluation, image_metrics.py). Its
MAE is that of :mod:`lift.metrics.synthrad`; its PSNR clips to 3071 HU instead of 3000, which is
0.15 dB more for the same error.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

from lift.metrics.synthrad import SSIM_WINDOW, Floats, Mask, Numbers, ValueRange, checked

CT_RANGE_2025: Final = ValueRange(-1024.0, 3071.0)
"""The challenge's population range of CT in 2025, HU."""
_WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SMALLEST: Final = 97
"""Shorter axes are continued with their ends: five scales need so many voxels."""
_BORDER: Final = SSIM_WINDOW // 2
_SAMPLES: Final = SSIM_WINDOW**3


def ms_ssim_ct(prediction: Numbers, target: Numbers, mask: npt.ArrayLike) -> float | None:
    """Product over five scales of the mean, inside the mask, of the weighted SSIM map.

    Both volumes are clipped to `CT_RANGE_2025` and hold its low end outside the mask. Window 7 x 7
    x 7, uniform, sample covariance, K1 = .01, K2 = .03. Luminance, contrast and structure all have
    the weight of their scale. Scales are means of 2 x 2 x 2 voxels; the mask is every second one.

    None when a scale has no mask voxel away from the faces.

    Args:
        prediction: (depth, height, width), HU.
        target: the same for the real CT.
        mask: the same; voxels that count are above 0.

    Raises:
        ValueError: as in :func:`lift.metrics.synthrad.mae_hu`.
    """
    predicted, wanted, inside = checked(prediction, target, mask)
    sides = [max(_SMALLEST - length, 0) for length in inside.shape]
    padding = [(side // 2, side - side // 2) for side in sides]
    low, high = CT_RANGE_2025.low, CT_RANGE_2025.high
    first, second = (
        np.pad(np.where(inside, np.clip(volume, low, high) - low, 0.0), padding, mode="edge")
        for volume in (wanted, predicted)
    )
    counted = np.pad(inside, padding, mode="edge")
    total = 1.0
    interior = (slice(_BORDER, -_BORDER),) * 3
    for scale, weight in enumerate(_WEIGHTS):
        if scale:
            first, second = _halved(first), _halved(second)
            counted = counted[::2, ::2, ::2]
        held: Mask = counted[interior]
        if not held.any():
            return None
        similar = _similarity(first, second, weight)[interior]
        total *= float(np.clip(similar[held].mean(), 0.0, 1.0))
    return total


def _similarity(first: Floats, second: Floats, weight: float) -> Floats:
    """(luminance x contrast x structure) ** weight of each voxel, each factor at least 0."""
    mean_1, mean_2 = _mean(first), _mean(second)
    unbiased = _SAMPLES / (_SAMPLES - 1)
    var_1 = unbiased * (_mean(first * first) - mean_1 * mean_1)
    var_2 = unbiased * (_mean(second * second) - mean_2 * mean_2)
    covariance = unbiased * (_mean(first * second) - mean_1 * mean_2)
    spread = np.sqrt(np.clip(var_1, 0, None)) * np.sqrt(np.clip(var_2, 0, None))
    c1, c2 = (0.01 * CT_RANGE_2025.span) ** 2, (0.03 * CT_RANGE_2025.span) ** 2
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1 * mean_1 + mean_2 * mean_2 + c1)
    contrast = (2 * spread + c2) / (var_1 + var_2 + c2)
    structure = (covariance + c2 / 2) / (spread + c2 / 2)
    factors = (np.clip(one, 0, None) for one in (luminance, contrast, structure))
    found: Floats = np.prod([one**weight for one in factors], axis=0)
    return found


def _mean(volume: Floats) -> Floats:
    return np.asarray(uniform_filter(volume, size=SSIM_WINDOW), dtype=np.float64)


def _halved(volume: Floats) -> Floats:
    """Means of a voxel and the one before it along each axis, at every second voxel; 0 before."""
    for axis in range(3):
        before = np.zeros_like(volume)
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        before[tuple(ahead)] = volume[tuple(behind)]
        volume = (volume + before) / 2
    return volume[::2, ::2, ::2]
