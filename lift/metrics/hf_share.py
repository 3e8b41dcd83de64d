"""How much slice detail a source volume has: of two, which scanner's slices are thicker."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_BAND: Final = 0.25


_FEWEST_SLICES: Final = 8


def hf_share(source: NDArray[np.float32], mask: NDArray[np.generic]) -> float | None:
    """Share of the through-plane power above 0.25 cycles per slice, averaged over channels.

    Thick slices resampled to a fine grid have nearly none; jumping slice gains have much.

    Args:
        source: (z, c, h, w).
        mask: (z, 1, h, w), non-zero inside.

    Returns:
        A number in [0, 1], or None with fewer than 8 slices or without a constant-free column.
    """
    depth = source.shape[0]
    inside = np.asarray(mask)[:, 0] > 0
    columns = inside.mean(0) > 0.6
    if depth < _FEWEST_SLICES or not columns.any():
        return None
    window = np.hanning(depth)[:, None]
    high = np.fft.rfftfreq(depth) > _BAND
    shares = []
    for channel in range(source.shape[1]):
        values = np.asarray(source[:, channel])[:, columns].astype(np.float64)
        power = np.abs(np.fft.rfft((values - values.mean(0)) * window, axis=0)) ** 2
        total = power[1:].sum()
        if total > 0:
            shares.append(float(power[high].sum() / total))
    return float(np.mean(shares)) if shares else None
