"""Drift fields: the official one on samples, and the Gaussian mean shift.

Every field is a set of vectors by which generated features should move; none has a gradient.
Rows are points, columns coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

TEMPERATURES: Final = (0.02, 0.05, 0.2)
_SELF_DISTANCE: Final = 100.0
_SMALLEST_PRODUCT: Final = 1e-6
_SMALLEST_SCALE: Final = 1e-3
_SMALLEST_RMS: Final = 1e-4


@dataclass(frozen=True)
class Drift:
    """The official field at the generated points.

    Attributes:
        force: sum over temperatures of the normalised forces, (n, d), in units of the
            coordinates: by how much each point should move.
        goal: generated + force, (n, d).
        rms: root mean square of each temperature's force before normalisation, (T,), in units
            of `unit`; its square is what the authors' code logs as `loss_R`. It falls as the
            two sets approach each other; the loss itself does not.
        unit: length that coordinates are divided by, so that the mean distance is sqrt(d).
        raw: the forces before normalisation, (T, n, d), in units of `unit`.
    """

    force: Tensor
    goal: Tensor
    rms: Tensor
    unit: Tensor
    raw: Tensor


def drift_field(
    generated: Tensor,
    positives: Tensor,
    *,
    negatives: Tensor | None = None,
    generated_weights: Tensor | None = None,
    positive_weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    temperatures: tuple[float, ...] = TEMPERATURES,
    mask_self: bool = True,
) -> Drift:
    """The official drift field: towards the positives, away from generated and negatives.

    Targets are the generated points, the negatives and the positives, in this order. With
    distances divided by one scale S (their weighted mean over all pairs) and a point's
    distance to itself raised by 100, the affinity of point i and target j at temperature R is
    A_ij = w_j sqrt(max(p_ij q_ij, 1e-6)), p and q being the softmax of -distance / R over the
    targets and over the generated points. The force on i is
    sum_j c_ij (y_j - x_i), c_ij = A_ij sum A_i,neg for positives and -A_ij sum A_i,pos for
    the others: coefficients sum to 0. Each temperature's force is divided by its own RMS.

    Laws: the order of targets has no influence, translation leaves forces as they are, and
    scaling all points scales them. With `generated_weights` 0, swapping positives and
    negatives (and their weights) turns the sign of `raw` and `force`, and equal sets give 0.
    With the usual weight 1 the masked self-distance breaks that symmetry: a generated set equal
    to the positives is still spread apart. Without the mask equal sets give 0 again.

    Args:
        generated: (n, d).
        positives: (m, d), m >= 1.
        negatives: (k, d), or None.
        generated_weights: w_j of the generated points, (n,), 1 by default.
        positive_weights: (m,), 1 by default.
        negative_weights: (k,), 1 by default.
        temperatures: R, as fractions of the mean distance.
        mask_self: True is the official rule; False leaves a point's distance to itself at 0.

    Raises:
        ValueError: no generated or positive point, or shapes that do not fit.

    Source: Deng et al. 2026, arXiv:2602.04770, and the authors' published code; method 2.1.
    """
    x = generated.detach()
    sets = [x, x[:0] if negatives is None else negatives.detach(), positives.detach()]
    if x.dim() != 2 or any(part.dim() != 2 or part.shape[1] != x.shape[1] for part in sets):
        raise ValueError(f"points must be (n, d): {[tuple(part.shape) for part in sets]}")
    if not (len(x) and len(positives)):
        raise ValueError(f"{len(x)} generated and {len(positives)} positive points; one is needed")
    targets = torch.cat(sets)
    given = (generated_weights, negative_weights, positive_weights)
    weights = torch.cat(
        [
            x.new_ones(len(part)) if weight is None else weight.to(x)
            for part, weight in zip(sets, given, strict=True)
        ]
    )
    distance = _distances(x, targets)
    scale = (distance * weights).mean() / weights.mean()
    unit = (scale / math.sqrt(x.shape[1])).clamp_min(_SMALLEST_SCALE)
    normed = distance / scale.clamp_min(_SMALLEST_SCALE)
    if mask_self:
        normed[:, : len(x)].diagonal().add_(_SELF_DISTANCE)
    n_negative = len(x) + len(sets[1])
    raw = torch.stack(
        [
            _cross_weighted_force(normed, weights, n_negative, temperature, targets, x)
            for temperature in temperatures
        ]
    )
    raw = raw / unit
    rms = raw.square().mean((1, 2)).sqrt()
    force = (raw / rms.clamp_min(_SMALLEST_RMS)[:, None, None]).sum(0) * unit
    return Drift(force, x + force, rms, unit, raw)


def mean_shift(x: Tensor, points: Tensor, weights: Tensor, widths: tuple[float, ...]) -> Tensor:
    """Gaussian mean shift sum_j w_j k(x, y_j) (y_j - x) / sum_j w_j k(x, y_j), (T, ..., n, d).

    k(x, y) = exp(-|x - y|^2 / (2 s^2)) for each width s. Taken as a softmax, so that no
    denominator can vanish: far from every point it is the step to the nearest.

    Args:
        x: (..., n, d).
        points: (..., m, d).
        weights: >= 0, (..., m), of any sum; points of weight 0 have no influence.
        widths: s > 0, in units of the coordinates, (T,).

    Raises:
        ValueError: no point has a positive weight.

    Source: method 5.4 (V+ and V-); arXiv:2603.07514 for the Gaussian kernel.
    """
    if not bool((weights > 0).any(-1).all()):
        raise ValueError("the mean shift needs a point of positive weight")
    square, log_weights = _distances(x, points).square(), weights.log()[..., None, :]
    logits = torch.stack([torch.add(log_weights, square, alpha=-0.5 / s**2) for s in widths])
    return torch.softmax(logits, dim=-1) @ points - x


def normalised_sum(forces: Tensor) -> tuple[Tensor, Tensor]:
    """Forces of several widths as one, each divided by its own RMS length.

    The sum's terms have RMS length 1, the mean distance of standardised features. Forces that
    are exactly 0 stay 0.

    Args:
        forces: (T, ..., n, d).

    Returns:
        The sum, (..., n, d), and the RMS lengths, (T, ...).
    """
    rms = forces.square().sum(-1).mean(-1).sqrt()
    return (forces / rms.clamp_min(_SMALLEST_RMS)[..., None, None]).sum(0), rms


def _cross_weighted_force(
    normed: Tensor, weights: Tensor, n_negative: int, temperature: float, targets: Tensor, x: Tensor
) -> Tensor:
    logits = -normed / temperature
    product = torch.softmax(logits, dim=1) * torch.softmax(logits, dim=0)
    affinity = product.clamp_min(_SMALLEST_PRODUCT).sqrt() * weights
    negative, positive = affinity[:, :n_negative], affinity[:, n_negative:]
    coefficients = torch.cat(
        [
            -negative * positive.sum(1, keepdim=True),
            positive * negative.sum(1, keepdim=True),
        ],
        dim=1,
    )
    # centred first: the coefficients sum to 0 only up to rounding
    centre = x.mean(0)
    return coefficients @ (targets - centre) - coefficients.sum(1, keepdim=True) * (x - centre)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # the quick form by matrix product loses a point's distance to itself
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
