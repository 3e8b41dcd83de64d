"""A sketch of the covariance of whole trajectories: one exchange, and no order along the body.

With x a patient's trajectory as one vector of p numbers and a public random matrix O of r columns,
sites send the sums of x and of x (x O). Of the covariance C they give C O, and with it the best
known approximation of rank r from one look at the data: C O (O^T C O)^-1 (C O)^T (Nystroem). It is
exact where there are fewer than r patients.

Whoever has the sums of n patients, n below r, has all linear combinations of their volumes: so
many more patients are needed than for sums that mix positions and latents.

Source: Tropp, Yurtsever, Udell and Cevher 2017, arXiv:1706.05736.
"""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor

FEWEST_SKETCHED: Final = 20
"""Training patients behind every sketch that a site sends."""
_SEED: Final = 1706
_RANK: Final = 1e-7


@functools.lru_cache(maxsize=4)
def public_columns(size: int, columns: int) -> Tensor:
    """O: random signs over `size`, (size, columns), float64, the same everywhere.

    A vector with numbers within a bound has products with its columns within the same bound.
    """
    generator = torch.Generator().manual_seed(_SEED)
    signs = torch.randint(2, (size, columns), generator=generator)
    return (2.0 * signs - 1.0).double() / size


def products(trajectories: Tensor, columns: int) -> Tensor:
    """Each trajectory times its scores, x (x O), (n, p) to (n, p, columns), float64."""
    scores = trajectories @ public_columns(trajectories.shape[1], columns)
    return trajectories[:, :, None] * scores[:, None, :]


def core(mean: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
    """C O and O^T C O of the averages over patients.

    Args:
        mean: of x, (p,).
        sketch: of x (x O), (p, r).
    """
    columns = public_columns(*sketch.shape)
    seen = sketch - mean[:, None] * (mean @ columns)[None]
    inner = columns.mT @ seen
    return seen, (inner + inner.mT) / 2


def factor(mean: Tensor, sketch: Tensor) -> Tensor:
    """F with F F^T the approximated covariance, (p, r); columns beyond the rank are 0."""
    seen, inner = core(mean, sketch)
    levels, axes = torch.linalg.eigh(inner)
    kept = levels > _RANK * levels[-1].clamp_min(0)
    scale = torch.where(kept, levels.clamp_min(1e-300).rsqrt(), 0.0)
    found: Tensor = seen @ (axes * scale)
    return found
