"""The z-filter: the best linear filter of seven slices, from sums that federate exactly.

The filter predicts `target - pred` from the six differences to the neighbouring slices (the
centre tap takes the rest, so that constants are kept). Its normal equations are sums over
patients: sites send them once, in the statistics round, and nobody needs to see a voxel.

Sums are exact. Each patient's equations are divided by the patient's number of voxels and
rounded to whole multiples of 1 / `SCALE`. Sums of such numbers have no rounding error, in
whatever order or grouping they are taken: in int64 up to 2^63 units, in float64 up to 2^53
units, which is enough for 8192 patients with values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor
from torch.nn.functional import conv3d

from lift.errors import DataError, VolumeError
from lift.mixer.differences import SHIFTS, keep_inside, z_differences

SCALE: Final = 2**40
"""Units per 1 of the fixed-point form."""

_TAPS: Final = len(SHIFTS)
_REACH: Final = max(SHIFTS)
_SLICES_AT_ONCE: Final = 8
# a constant prediction has no differences at all: keeps the fit's matrix invertible
_ABSOLUTE_RIDGE: Final = 1e-12


@dataclass(frozen=True)
class NormalEquations:
    """Sums from which the z-filter is fitted, over any number of patients.

    Attributes:
        a: sum over patients of the mean over voxels of D D^T, (6, 6), float64, CPU; symmetric to
            the bit.
        b: sum over patients of the mean over voxels of D (target - pred), (6,), float64, CPU.
        voxels: voxels inside the masks.
        patients: patients summed.
    """

    a: Tensor
    b: Tensor
    voxels: int
    patients: int

    @classmethod
    def zero(cls) -> Self:
        """The equations of no patient: adding them changes nothing."""
        return cls(
            torch.zeros(_TAPS, _TAPS, dtype=torch.float64),
            torch.zeros(_TAPS, dtype=torch.float64),
            0,
            0,
        )

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            self.a + other.a,
            self.b + other.b,
            self.voxels + other.voxels,
            self.patients + other.patients,
        )

    def to_fixed_point(self, scale: int = SCALE) -> tuple[Tensor, Tensor]:
        """`a` and `b` in whole units of 1 / `scale`, int64: what may be summed over sites.

        With the default scale nothing is lost.

        Raises:
            DataError: a value is not finite, or too large for sums in int64.
        """
        return _to_units(self.a, scale), _to_units(self.b, scale)

    @classmethod
    def from_fixed_point(
        cls, a: Tensor, b: Tensor, *, voxels: int, patients: int, scale: int = SCALE
    ) -> Self:
        """The equations behind `a` (6, 6) and `b` (6,), int64 in units of 1 / `scale`."""
        return cls(a.to(torch.float64) / scale, b.to(torch.float64) / scale, voxels, patients)


def normal_equations(pred: Tensor, target: Tensor, mask: Tensor) -> NormalEquations:
    """One patient's least-squares sums of target - pred ~ sum_k w_k D_k pred over the mask.

    Divided by the patient's voxel count, so that a patient counts once, however large.
    Values outside the mask have no influence; an empty mask gives zeros. Works a few slices
    at a time: 155 x 240 x 240 voxels need less than 300 MB beside the inputs.

    Args:
        pred: the frozen generator's prediction, (z, 1, h, w), normalised to [0, 1].
        target: the same shape and range.
        mask: 0 or 1, the same shape.

    Raises:
        VolumeError: a voxel inside the mask is not finite.

    Source: method 9 and 10.
    """
    if not pred.shape == target.shape == mask.shape or pred.dim() != 4 or pred.shape[1] != 1:
        shapes = [tuple(part.shape) for part in (pred, target, mask)]
        raise ValueError(f"pred, target and mask must share one shape (z, 1, h, w): {shapes}")
    a = torch.zeros(_TAPS, _TAPS, dtype=torch.float64, device=pred.device)
    b = torch.zeros(_TAPS, dtype=torch.float64, device=pred.device)
    depth, voxels = pred.shape[0], 0
    for low in range(0, depth, _SLICES_AT_ONCE):
        high = min(low + _SLICES_AT_ONCE, depth)
        first, last = max(0, low - _REACH), min(depth, high + _REACH)
        here = slice(low - first, high - first)
        differences = z_differences(pred[None, first:last], mask[None, first:last])[0, here]
        inside = mask[low:high, 0] > 0
        d = differences.movedim(1, -1)[inside].double()
        residual = target[low:high, 0][inside].double() - pred[low:high, 0][inside].double()
        a += d.T @ d
        b += d.T @ residual
        voxels += residual.numel()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise VolumeError(
            "cannot fit the z-filter to a patient",
            seen="the prediction or the target holds NaN or infinity inside the mask",
            remedy="Nothing was sent. Check the patient's volumes, or leave the patient out.",
        )
    # a matrix product may round its two halves differently; reviewers ask for equal ones
    a, b = (a + a.T).cpu() / (2 * max(voxels, 1)), b.cpu() / max(voxels, 1)
    return NormalEquations.from_fixed_point(
        _to_units(a, SCALE), _to_units(b, SCALE), voxels=voxels, patients=1
    )


def person_equations(volumes: Sequence[NormalEquations]) -> NormalEquations:
    """One person's equations: the mean over the person's volumes, in whole units like a volume's.

    A person counts once, however many examinations there are. Of one volume it is that volume's.

    Args:
        volumes: of one person, at least one.

    Raises:
        DataError: as :meth:`NormalEquations.to_fixed_point`.
    """
    total = sum(volumes, start=NormalEquations.zero())
    count = len(volumes)
    return NormalEquations.from_fixed_point(
        _to_units(total.a / count, SCALE),
        _to_units(total.b / count, SCALE),
        voxels=total.voxels,
        patients=1,
    )


def fit(equations: NormalEquations, ridge: float) -> Tensor:
    """The z-filter's taps for `SHIFTS`, (6,), float64: argmin of the ridge regression.

    Always finite: a tiny absolute ridge is added, so that a constant prediction gives zeros
    and a volume of two slices gives zeros for the shifts that it lacks.

    Args:
        equations: sums over the training patients.
        ridge: > 0, relative to the mean diagonal of `equations.a`; the same filter results
            from n copies of a cohort.

    Raises:
        DataError: the equations are not finite.
    """
    if not (torch.isfinite(equations.a).all() and torch.isfinite(equations.b).all()):
        raise DataError(
            "cannot fit the z-filter",
            seen="the summed normal equations hold NaN or infinity; finite numbers are needed",
            remedy="Find the site whose statistics are not finite, and leave it out.",
        )
    added = ridge * equations.a.diagonal().mean() + _ABSOLUTE_RIDGE * max(equations.patients, 1)
    matrix = equations.a + added * torch.eye(_TAPS, dtype=torch.float64)
    taps: Tensor = torch.linalg.solve(matrix, equations.b)
    return taps


def apply_z_filter(pred: Tensor, mask: Tensor, taps: Tensor) -> Tensor:
    """The prediction plus its filtered differences; unchanged outside the mask.

    Args:
        pred: (z, 1, h, w), or (b, z, 1, h, w) for a batch.
        mask: 0 or 1, the same shape.
        taps: (6,) for `SHIFTS`.

    Returns:
        Like `pred`: the very result of a mixer that starts from these taps.
    """
    if pred.dim() == 4:
        return apply_z_filter(pred[None], mask[None], taps)[0]
    differences = z_differences(pred, mask).transpose(1, 2)
    weight = taps.to(differences).view(1, _TAPS, 1, 1, 1)
    return pred + keep_inside(conv3d(differences, weight).transpose(1, 2), mask)


def z_median(pred: Tensor, mask: Tensor, size: int = 3) -> Tensor:
    """The running median along depth: the baseline that any mixer must beat.

    Only voxels inside the mask are looked at (of an even number of them: the mean of the
    middle two); outside the mask, `pred` is returned unchanged.

    Args:
        pred: (z, 1, h, w).
        mask: 0 or 1, the same shape.
        size: slices looked at, odd; fewer at the volume's ends.

    Raises:
        ValueError: `size` is even or below 1.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"the median needs an odd number of slices (seen: {size})")
    depth, reach = pred.shape[0], size // 2
    result = pred.clone()
    for d in range(depth):
        near = slice(max(0, d - reach), min(depth, d + reach + 1))
        # voxels outside the mask are sorted behind all others, and not counted
        ordered = pred[near].masked_fill(mask[near] == 0, torch.inf).sort(dim=0).values
        count = (mask[near] > 0).sum(dim=0, keepdim=True)
        lower = ordered.gather(0, ((count - 1) // 2).clamp(min=0))[0]
        upper = ordered.gather(0, (count // 2).clamp(max=ordered.shape[0] - 1))[0]
        result[d] = torch.where(mask[d] > 0, (lower + upper) / 2, pred[d])
    return result


def _to_units(values: Tensor, scale: int) -> Tensor:
    # one value may use 1/256 of int64, so that 256 sites can be summed at the very least
    units = values.to(torch.float64) * scale
    if not bool((units.abs() < 2**55).all()):
        raise DataError(
            "the z-filter's sums cannot be written in fixed point",
            seen=f"the largest value is {float(values.abs().max()):.3g}; "
            f"finite values below {2**55 / scale:.3g} are needed",
            remedy="Check that predictions and targets are normalised to [0, 1].",
        )
    return units.round().to(torch.int64)
