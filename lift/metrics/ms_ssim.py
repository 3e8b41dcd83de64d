"""Multi-scale structural similarity of small images: how alike the volumes of one set are."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW: Final = 7
"""Side of the uniform window at each scale, in pixels."""

# Wang, Simoncelli and Bovik 2003 give five; the three finest, brought to sum 1
_WEIGHTS: Final = (0.0448, 0.2856, 0.3001)
_C1: Final = 0.01**2
_C2: Final = 0.03**2

SMALLEST_SIDE: Final = WINDOW * 2 ** (len(_WEIGHTS) - 1)
"""The coarsest of the three scales still holds one window."""


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """MS-SSIM of image pairs, (n,), float64; 1 for equal images, at least 0.

    Three scales, each half the one before by 2x2 means; contrast and structure count at every
    scale, luminance at the coarsest. A negative term counts as 0, as usual. Data range 1.

    Args:
        a: (n, c, h, w) in [0, 1], sides of at least `SMALLEST_SIDE`; the channels are averaged.
        b: the same shape.

    Source: Wang, Simoncelli and Bovik 2003.
    """
    if a.shape != b.shape or a.dim() != 4 or min(a.shape[2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"two (n, c, h, w) of one shape, sides >= {SMALLEST_SIDE}, are needed: "
            f"{tuple(a.shape)}, {tuple(b.shape)}"
        )
    a, b = a.double(), b.double()
    total = torch.ones(a.shape[:2], dtype=torch.float64)
    for scale, weight in enumerate(_WEIGHTS):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        luminance, structure = _terms(a, b)
        term = structure if scale < len(_WEIGHTS) - 1 else luminance * structure
        total = total * term.mean((2, 3)).clamp_min(0.0) ** (weight / sum(_WEIGHTS))
    return total.mean(1)


def _terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    mean_a, mean_b = _local_mean(a), _local_mean(b)
    var_a = _local_mean(a * a) - mean_a**2
    var_b = _local_mean(b * b) - mean_b**2
    cov = _local_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return luminance, (2 * cov + _C2) / (var_a + var_b + _C2)


def _local_mean(x: Tensor) -> Tensor:
    # rows, then columns: 14 additions a pixel instead of 49
    for axis in (2, 3):
        length = x.shape[axis] - WINDOW + 1
        total = x.narrow(axis, 0, length).clone()
        for start in range(1, WINDOW):
            total += x.narrow(axis, start, length)
        x = total / WINDOW
    return x
