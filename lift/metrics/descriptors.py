"""Descriptors of one volume for the classifier: coarse content, and texture.

A *box* is the part of a volume that is compared: (d, h, w), values in [0, 1]. Texture and spectrum
are those of the box at mean 0 and standard deviation 1. A gain shifts all log powers together and
differs between real volumes more than anything else in them: left in, it hides small differences
of texture from a penalised classifier. Gain and offset are seen by the thumbnail.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from lift.metrics.synthrad import Floats

THUMBNAIL: Final = (12, 10, 8)
"""Depth, height and width of a thumbnail."""

BANDS: Final = 12
"""Of a power spectrum, from 5% of the highest frequency to all of it."""

FREQUENCIES: Final = np.linspace(0.05, 1.0, BANDS) / 2
"""Of the bands, in cycles a voxel."""

TEXTURES: Final = 3 * (BANDS + 5)
"""Numbers in a texture."""

_FLOOR: Final = 1e-8
"""Power below this, of 1 in all, is nothing: the logarithm of a constant stays finite."""


def thumbnail(box: Tensor) -> Floats:
    """The box averaged to 12 x 10 x 8, in a row, (960,), float64: what is where, and how bright."""
    pooled: Floats = F.adaptive_avg_pool3d(box[None].double(), THUMBNAIL)[0].flatten().numpy()
    return pooled


def texture(box: Tensor) -> Floats:
    """How neighbouring voxels differ along depth, height and width, (51,), float64.

    Of each axis: log power in 12 bands; log mean square of first, second and third differences;
    log ratio of squared mean absolute value to mean square, and log kurtosis, of first differences.
    """
    values = _standardised(box)
    found = []
    for axis in range(3):
        lines = np.moveaxis(values, axis, 0)
        found += list(_log_spectrum(lines))
        steps = _differences(lines, 1)
        square = np.square(steps).mean()
        orders = [square, *(np.square(_differences(lines, order)).mean() for order in (2, 3))]
        found += [np.log(power + _FLOOR) for power in orders]
        found.append(np.log((np.abs(steps).mean() ** 2 + _FLOOR) / (square + _FLOOR)))
        found.append(np.log((np.power(steps, 4).mean() + _FLOOR**2) / (square + _FLOOR) ** 2))
    return np.asarray(found)


def depth_spectrum_db(box: Tensor) -> Floats:
    """Power along depth in each of 12 bands, (12,), in dB of the box's variance."""
    db: Floats = _log_spectrum(_standardised(box)) * (10 / np.log(10))
    return db


def _standardised(box: Tensor) -> Floats:
    values: Floats = box.double().numpy()
    values = values - values.mean()
    return values / max(float(values.std()), _FLOOR)


def _differences(lines: Floats, order: int) -> Floats:
    """Differences along the first axis; zeros where there are too few voxels."""
    if len(lines) <= order:
        return np.zeros((1, 1))
    return np.diff(lines, n=order, axis=0)


def _log_spectrum(lines: Floats) -> Floats:
    """Log of the mean power of lines along the first axis, in 12 bands; Hann's window.

    White noise of variance 1 has a power of 1 in every band, whatever the length.
    """
    window = np.hanning(len(lines) + 2)[1:-1]
    centred = lines - lines.mean(axis=0)
    transform = np.fft.rfft(centred * window[:, None, None], axis=0)
    power = np.square(np.abs(transform)).mean(axis=(1, 2)) / np.square(window).sum()
    places = np.linspace(0.0, 0.5, len(power))
    spectrum: Floats = np.log(np.interp(FREQUENCIES, places, power) + _FLOOR)
    return spectrum
