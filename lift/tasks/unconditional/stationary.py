"""A chain that has the same covariance at every position, whatever it is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_RELATIVE_RANK: Final = 1e-7


@dataclass(frozen=True)
class StationaryChain:
    """x_0 = first e_0 and x_{k+1} = step x_k + noise e_{k+1}, with standard normal e.

    Attributes:
        first: (D, D).
        step: (D, D).
        noise: (D, D).
    """

    first: Tensor
    step: Tensor
    noise: Tensor


def stationary_chain(within: Tensor, following: Tensor, steady: int) -> StationaryChain:
    """The chain with the covariance `within` at every position and `following` with the next.

    Guarantee: whatever `following` is, every x_k has the covariance `within` (of which what is
    negative counts as 0), so no number of positions makes it grow; and what is steady never
    changes. Ties that no chain can have are cut: in units of `within`, singular values of
    `following` above 1 become 1.

    Args:
        within: (D, D), symmetric, finite.
        following: E[x_{k+1} x_k^T], (D, D), finite.
        steady: how many of the last numbers are the same at all positions.
    """
    levels, axes = torch.linalg.eigh((within + within.mT) / 2)
    kept = levels > _RELATIVE_RANK * levels.max().clamp_min(torch.finfo(levels.dtype).tiny)
    sd = torch.where(kept, levels, 0).sqrt()
    over = torch.where(kept, 1 / sd.where(kept, sd.new_ones(())), 0)
    root, inverse = (axes * sd) @ axes.mT, (axes * over) @ axes.mT
    # in units of `within` the steady numbers span these axes, and keep to them
    alike, free = _projectors(root[len(root) - steady :])
    left, ties, right = torch.linalg.svd(alike + free @ inverse @ following @ inverse @ free)
    ties = ties.clamp_max(1)
    step = root @ (left * ties) @ right @ inverse
    rest = root @ (torch.eye(len(root), dtype=root.dtype) - (left * ties.square()) @ left.mT) @ root
    return StationaryChain(root, step, symmetric_root(rest))


def symmetric_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of what is positive in symmetric matrices, (..., D, D)."""
    levels, axes = torch.linalg.eigh((covariance + covariance.mT) / 2)
    root: Tensor = (axes * levels.clamp_min(0).sqrt()[..., None, :]) @ axes.mT
    return root


def steady_share(within: Tensor, steady: int) -> Tensor:
    """The part of a covariance that the last `steady` numbers explain, (D, D)."""
    root = symmetric_root(within)
    alike, _ = _projectors(root[len(root) - steady :])
    share: Tensor = root @ alike @ root
    return share


def _projectors(rows: Tensor) -> tuple[Tensor, Tensor]:
    """On the span of some rows (n, D), and on what is left."""
    size = rows.shape[1]
    # a number without variance spans nothing
    _, levels, axes = torch.linalg.svd(rows, full_matrices=False)
    kept = (
        axes[levels > _RELATIVE_RANK * levels.max().clamp_min(torch.finfo(levels.dtype).tiny)]
        if len(levels)
        else axes
    )
    alike = kept.mT @ kept
    return alike, torch.eye(size, dtype=rows.dtype) - alike
