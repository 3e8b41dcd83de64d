"""The bound on one patient's influence: the joint L2 clip of a patient's gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

MARGIN: Final = 1e-5
"""Share of `clip_norm` that is not used, so that the bound survives all rounding."""

_SMALLEST: Final = 1e-20
_LARGEST: Final = 1e20


@dataclass(frozen=True)
class ClippedGradient:
    """What one patient adds to a step; printing it shows nothing.

    Attributes:
        values: float32 on the CPU, names sorted; joint L2 norm <= `clip_norm`.
        norm: joint L2 norm before clipping, inf if it was not finite. It is private: never send
            it, nor anything derived from it.
    """

    values: dict[str, Tensor] = field(repr=False)
    norm: float = field(repr=False)


def clip_gradient(gradient: Mapping[str, Tensor], clip_norm: float) -> ClippedGradient:
    """One patient's gradient, scaled down so that its joint L2 norm is at most `clip_norm`.

    The norm is taken over all tensors as one float64 vector, so the order of the names does not
    matter. A gradient whose norm is at most C (1 - 1e-5) is kept bit by bit (in float32); a
    longer one is scaled to that norm, in float64, and rounded to float32 once.

    Guarantees: the float32 result, measured in float64, has norm <= `clip_norm`. Rounding moves
    it by 6e-8 of its norm; what is left of the 1e-5 also covers the rounding of a float64 sum
    over up to 10^5 patients (Casacuberta et al. 2022, arXiv:2207.10635). The input is not
    modified. Any input gives a result:

    ======================  =============================================================
    gradient                result
    ======================  =============================================================
    zero                    zero, norm 0
    denormal, or 1e30       as any other
    NaN, infinity, anywhere zeros in every tensor, norm inf
    ======================  =============================================================

    A gradient that is not finite raises nothing: an error would stop the step because of one
    patient's data, before any noise is drawn, and tell whoever watches that this patient is in
    the cohort. Zeros are within the bound and depend on this patient alone, so the guarantee
    holds. How often it happened may be shown at the site, and must not leave it.

    Args:
        gradient: parameter name -> gradient, any shape and float type.
        clip_norm: C, 1e-20 to 1e20 (beyond, float32 could not hold the result).

    Raises:
        ValueError: `clip_norm` is out of its range. It is public; so is this error.

    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1; the factor: privacy section 3.
    """
    check_clip_norm(clip_norm)
    exact = {
        name: gradient[name].detach().to("cpu", torch.float64, copy=True)
        for name in sorted(gradient)
    }
    norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in exact.values()))
    if not math.isfinite(norm):
        zeros = {n: torch.zeros_like(t, dtype=torch.float32) for n, t in exact.items()}
        return ClippedGradient(zeros, math.inf)
    bound = clip_norm * (1 - MARGIN)
    factor = bound / norm if norm > bound else 1.0
    return ClippedGradient({n: (t * factor).float() for n, t in exact.items()}, norm)


def check_clip_norm(clip_norm: float) -> None:
    """Refuse a bound that is no number from 1e-20 to 1e20.

    Raises:
        ValueError: it is not.
    """
    if not _SMALLEST <= clip_norm <= _LARGEST:
        raise ValueError(
            f"clip_norm must be a number from {_SMALLEST} to {_LARGEST} (seen: {clip_norm})"
        )
