"""MAE, PSNR and SSIM inside a mask, as the SynthRAD2023 challenge computes them.

Volumes are (depth, height, width) arrays of numbers in one unit (HU for CT, normalised for
MR); a mask counts where it is above 0. Everything is computed in float64. The challenge's
figures hold for CT on its own grid and masks; the same formulas on MR in [0, 1], or on another
grid, are comparable only among themselves.

Source: the challenge's published evaluation code (SynthRAD2023, Task 1 and 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

Numbers = npt.NDArray[np.integer[Any] | np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]

HIGHEST_PSNR_DB: Final = 100.0
"""PSNR of a perfect volume, which is infinite by the formula: finite, so that means stay so."""

SSIM_WINDOW: Final = 7
"""Side of the uniform SSIM window, in voxels."""

_BORDER = SSIM_WINDOW // 2
_CROP_MARGIN = 7


@dataclass(frozen=True)
class ValueRange:
    """The values a volume may take: it is clipped to them, and their span is the data range."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a value range needs finite low < high, not {self.low}, {self.high}")

    @property
    def span(self) -> float:
        """`high - low`: the peak signal of PSNR and the data range of SSIM."""
        return self.high - self.low


CT_RANGE: Final = ValueRange(-1024.0, 3000.0)
"""The challenge's population range of CT, HU: data range 4024."""

MR_RANGE: Final = ValueRange(0.0, 1.0)
"""MR after normalisation by percentiles: data range 1."""


def mae_hu(prediction: Numbers, target: Numbers, mask: npt.ArrayLike) -> float:
    """Mean absolute error over the mask, in the volumes' unit (HU for CT); nothing is clipped.

    Raises:
        ValueError: shapes differ, are not 3D, the mask is empty or a voxel is not finite.
    """
    predicted, wanted, inside = checked(prediction, target, mask)
    return float(np.abs(predicted[inside] - wanted[inside]).mean())


def psnr_db(prediction: Numbers, target: Numbers, mask: npt.ArrayLike, values: ValueRange) -> float:
    """Peak signal-to-noise ratio over the mask, dB, of both volumes clipped to `values`.

    10 log10(span^2 / mean squared error), at most `HIGHEST_PSNR_DB`: a perfect volume gets
    exactly that instead of infinity.

    Raises:
        ValueError: as in :func:`mae_hu`.
    """
    predicted, wanted, inside = checked(prediction, target, mask)
    difference = _clip(predicted[inside], values) - _clip(wanted[inside], values)
    return psnr_of_error(float(np.square(difference).mean()), values)


def psnr_of_error(mean_squared_error: float, values: ValueRange) -> float:
    """PSNR in dB of a mean squared error, at most `HIGHEST_PSNR_DB`."""
    floor = values.span**2 * 10 ** (-HIGHEST_PSNR_DB / 10)
    if mean_squared_error <= floor:
        return HIGHEST_PSNR_DB
    return float(10 * np.log10(values.span**2 / mean_squared_error))


def ssim(
    prediction: Numbers, target: Numbers, mask: npt.ArrayLike, values: ValueRange
) -> float | None:
    """Mean over the mask of the 3D structural similarity map of both volumes clipped to `values`.

    Outside the mask both volumes are set to `values.low`; then all is shifted so that `low` is 0
    (SSIM is not blind to offsets). 7x7x7 uniform window, sample covariance, K1 = .01, K2 = .03,
    data range = `values.span`. The 3 voxels next to the volume's faces do not count, and the
    mean is over the mask's other voxels.

    None when the figure does not exist: an axis shorter than 7 voxels, or no mask voxel away
    from the faces.

    Raises:
        ValueError: as in :func:`mae_hu`.
    """
    predicted, wanted, inside = checked(prediction, target, mask)
    if min(inside.shape) < SSIM_WINDOW:
        return None
    counted = np.zeros_like(inside)
    interior = (slice(_BORDER, -_BORDER),) * 3
    counted[interior] = inside[interior]
    if not counted.any():
        return None
    # Away from the mask both volumes are 0, and a window that holds none of it is never counted:
    # the crop leaves every counted window, and even its rounding, as it was.
    box = bounding_box(inside, margin=_CROP_MARGIN)
    predicted, wanted = (
        np.where(inside[box], _clip(volume[box], values) - values.low, 0.0)
        for volume in (predicted, wanted)
    )
    return float(similarity_map(wanted, predicted, values)[1][counted[box]].mean())


def similarity_map(first: Floats, second: Floats, values: ValueRange) -> tuple[float, Floats]:
    """Mean SSIM (faces excluded) and the SSIM map of two volumes whose lowest value is 0."""
    mean, full = structural_similarity(
        first, second, win_size=SSIM_WINDOW, data_range=values.span, full=True
    )
    return float(mean), np.asarray(full, dtype=np.float64)


def bounding_box(mask: Mask, *, margin: int = 0) -> Box:
    """The smallest box around a mask that is not empty, `margin` voxels wider where it can be."""
    sides = []
    for axis, length in enumerate(mask.shape):
        held = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        sides.append(slice(max(0, int(held[0]) - margin), min(length, int(held[-1]) + 1 + margin)))
    return sides[0], sides[1], sides[2]


def checked(
    prediction: Numbers, target: Numbers, mask: npt.ArrayLike
) -> tuple[Floats, Floats, Mask]:
    """The two volumes in float64 and the mask as booleans, fit to be compared.

    Raises:
        ValueError: shapes differ, are not 3D, the mask is empty or a voxel is not finite.
    """
    predicted = np.asarray(prediction, dtype=np.float64)
    wanted = np.asarray(target, dtype=np.float64)
    inside = np.asarray(mask) > 0
    if predicted.ndim != 3 or not predicted.shape == wanted.shape == inside.shape:
        raise ValueError(
            "volumes and mask must share one (depth, height, width) shape: "
            f"{predicted.shape}, {wanted.shape}, {inside.shape}"
        )
    if not inside.any():
        raise ValueError("the mask is empty")
    if not (np.isfinite(predicted).all() and np.isfinite(wanted).all()):
        raise ValueError("a volume holds NaN or infinity")
    return predicted, wanted, inside


def _clip(volume: Floats, values: ValueRange) -> Floats:
    return np.clip(volume, values.low, values.high)
