"""Curves: the contrast of a patient or site, as a function of each voxel's own values.

Sites, and patients of one site, differ in the grey scale of the target. A correction that looks
at one voxel alone takes that up in closed form, so that a mixer is left with structure:

    P' = P + psi(P, S)^T c    inside the mask,

psi being `KNOTS` hat functions of the prediction P and of each source S_j, (1 + n) * KNOTS numbers
in all. Their normal equations are additive over patients, like the z-filter's.

Source of rule and ridge: laboratory measurements on phantoms and on two real sets (own).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

import torch
from torch import Tensor

from lift.errors import DataError, VolumeError
from lift.mixer.z_filter import SCALE

KNOTS: Final = 9
"""Of each channel, equally spaced from 0 to 1."""
STRENGTHS: Final = (None, torch.inf, 10.0, 3.0, 1.0, 0.0)
"""Weights of the others' mean equations, the simplest rule first; None: no curves at all."""
ENOUGH: Final = 4
"""Patients from whom on the best weight is taken, and not the simplest within a standard error. On
phantoms that gains .1 to .2 dB; with three it would harm real patients (docs/lab-notes.md)."""
ALONE: Final = 3.0
"""The weight where a site has one patient, and so nothing to choose by; without other sites' sums
it is 0. On phantoms of three scanners one patient's curves are better for another patient than none
in 98, 100 and 79 of 100 pairs."""

_SMOOTH: Final = 3e-4
_SMALL: Final = 1e-4
_VOXELS_AT_ONCE: Final = 1 << 18
_LEAST: Final = 1e-8


@dataclass(frozen=True)
class CurveEquations:
    """Sums from which curves are fitted, over any number of patients.

    Sums are exact: each patient's numbers are whole multiples of 1 / `SCALE`.

    Attributes:
        a: sum over patients of the mean over the mask of psi psi^T, (f, f), float64, symmetric.
        b: sum over patients of the mean over the mask of psi (target - P), (f,), float64.
        patients: patients summed.
        square: sum over patients of the mean over the mask of (target - P)^2; it never leaves a
            site, and is 0 in what came from others.
    """

    a: Tensor
    b: Tensor
    patients: int
    square: float = 0.0

    @classmethod
    def zero(cls, sources: int) -> Self:
        """The equations of no patient: adding them changes nothing."""
        size = KNOTS * (1 + sources)
        return cls(torch.zeros(size, size).double(), torch.zeros(size).double(), 0)

    def __add__(self, other: CurveEquations) -> CurveEquations:
        return CurveEquations(
            self.a + other.a,
            self.b + other.b,
            self.patients + other.patients,
            self.square + other.square,
        )

    def __sub__(self, other: CurveEquations) -> CurveEquations:
        return CurveEquations(
            self.a - other.a,
            self.b - other.b,
            self.patients - other.patients,
            self.square - other.square,
        )

    def error(self, curves: Tensor | None) -> float:
        """Mean over patients of the squared error with `curves`, minus that without any."""
        if curves is None:
            return 0.0
        found = curves @ self.a @ curves - 2 * self.b @ curves
        return float(found) / max(self.patients, 1)

    def change_db(self, curves: Tensor | None) -> float:
        """What `curves` change of the squared error of a site's own patients, dB; below 0: better.

        In decibels a patient whose error is large counts no more than another one.
        """
        before = self.square / max(self.patients, 1)
        after = before + self.error(curves)
        return 10 * math.log10(max(after, _LEAST) / max(before, _LEAST))


def curve_equations(pred: Tensor, source: Tensor, target: Tensor, mask: Tensor) -> CurveEquations:
    """One volume's least-squares sums of target - pred ~ psi^T c over the mask.

    Divided by the number of voxels, so that a volume counts once, however large; an empty mask
    gives zeros.

    Args:
        pred: the frozen generator's prediction, (z, 1, h, w), normalised to [0, 1].
        source: (z, n, h, w).
        target: like `pred`.
        mask: 0 or 1, like `pred`.

    Raises:
        VolumeError: a voxel inside the mask is not finite.
    """
    inside = mask[:, 0] > 0
    channels = torch.cat([pred, source], dim=1).movedim(1, -1)[inside]
    residual = (target[:, 0] - pred[:, 0])[inside].double()
    size = KNOTS * channels.shape[1]
    a, b = torch.zeros(size, size).double(), torch.zeros(size).double()
    for low in range(0, len(residual), _VOXELS_AT_ONCE):
        here = slice(low, low + _VOXELS_AT_ONCE)
        psi = hats(channels[here].double()).flatten(1)
        a += psi.T @ psi
        b += psi.T @ residual[here]
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise VolumeError(
            "cannot fit curves to a patient",
            where="curves",
            seen="the prediction, a source or the target holds NaN or infinity inside the mask",
            remedy="Nothing was sent. Check the patient's volumes, or leave the patient out.",
        )
    voxels = max(len(residual), 1)
    # a matrix product may round its two halves differently
    return CurveEquations(
        _rounded((a + a.T) / (2 * voxels)),
        _rounded(b / voxels),
        1,
        float(residual.square().sum()) / voxels,
    )


def mean_equations(volumes: Sequence[CurveEquations]) -> CurveEquations:
    """The equations of one patient with several volumes: their mean, so that a person counts once.

    Raises:
        ValueError: there is no volume.
    """
    if not volumes:
        raise ValueError("a patient has at least one volume")
    count = len(volumes)
    a = torch.stack([volume.a for volume in volumes]).sum(0)
    b = torch.stack([volume.b for volume in volumes]).sum(0)
    square = sum(volume.square for volume in volumes) / count
    return CurveEquations(_rounded(a / count), _rounded(b / count), 1, square)


def fit_curves(
    own: CurveEquations,
    others: CurveEquations | None = None,
    *,
    weight: float = 0.0,
    affine: bool = False,
) -> Tensor:
    """The curves c, (f,), float64: the ridge regression of a site's patients.

    Args:
        own: sums over the site's patients.
        others: sums over all others' patients; None: there are none.
        weight: of the others' mean equations, in patients; infinity leaves the own out.
        affine: a gain and an offset of the prediction alone, from the same equations.

    Raises:
        DataError: a weight without others, or no patient at all.
    """
    count = float(own.patients)
    a, b = own.a, own.b
    if weight > 0:
        if others is None or others.patients == 0:
            raise DataError(
                "cannot shrink a site's curves toward other sites'",
                where="curves",
                seen="there are no sums of other sites' patients",
                remedy="Use the site's own patients alone (weight 0).",
            )
        mean_a, mean_b = others.a / others.patients, others.b / others.patients
        if weight == torch.inf:
            a, b, count = mean_a, mean_b, 1.0
        else:
            a, b, count = a + weight * mean_a, b + weight * mean_b, count + weight
    if count == 0:
        raise DataError(
            "cannot fit curves",
            where="curves",
            seen="no patient; at least one is needed",
            remedy="Give a patient that has a target.",
        )
    whole = a + count * _ridge(len(b))
    if affine:
        # hat functions hold every line: its heights at the knots
        lines = _lines(len(b))
        found: Tensor = lines @ torch.linalg.solve(lines.T @ whole @ lines, lines.T @ b)
        return found
    curves: Tensor = torch.linalg.solve(whole, b)
    return curves


def apply_curves(pred: Tensor, source: Tensor, mask: Tensor, curves: Tensor) -> Tensor:
    """P' = P + psi^T c inside the mask, P outside; in the number format of `pred`.

    Args:
        pred: (..., z, 1, h, w).
        source: (..., z, n, h, w).
        mask: 0 or 1, like `pred`.
        curves: (f,).
    """
    channels = torch.cat([pred, source], dim=-3).movedim(-3, -1)
    heights = curves.to(pred).view(channels.shape[-1], KNOTS)
    change = torch.zeros_like(channels[..., 0])
    for channel, own in zip(channels.unbind(-1), heights, strict=True):
        low, share = _place(channel)
        change = change + own[low] * (1 - share) + own[low + 1] * share
    return pred + change.unsqueeze(-3) * (mask > 0)


@dataclass(frozen=True)
class ChosenCurves:
    """A site's curves, and how they were chosen.

    Attributes:
        curves: (f,), or None: no curves, the prediction stays as it is.
        weight: of the others' equations, from `STRENGTHS`; None where there are no curves.
        errors: weight -> what it changes of a left-out patient's squared error, mean in dB.
    """

    curves: Tensor | None
    weight: float | None
    errors: dict[float | None, float]


def choose_curves(
    patients: Sequence[CurveEquations], others: CurveEquations | None, *, affine: bool = False
) -> ChosenCurves:
    """Return a site's curves, shrunk toward those of all sites as far as this helps its patients.

    Each patient is left out in turn. From :data:`ENOUGH` patients on the best weight is taken;
    with fewer the simplest of those whose paired change is within one standard error of the
    best. With one patient nothing can be chosen: the curves
    are that patient's, shrunk by :data:`ALONE` where there are others; with none they are the
    others'.

    Args:
        patients: equations of each of the site's patients (training and validation).
        others: sums over all others' patients; None: they sent none.
        affine: a gain and an offset in place of curves.
    """
    fit = partial(fit_curves, affine=affine)
    shared = others is not None and others.patients > 0
    candidates = [w for w in STRENGTHS if w is None or w == 0 or shared]
    if not patients:
        if others is None or not shared:
            return ChosenCurves(None, None, {})
        nobody = CurveEquations.zero(len(others.b) // KNOTS - 1)
        return ChosenCurves(fit(nobody, others, weight=torch.inf), torch.inf, {})
    if len(patients) == 1:
        alone = ALONE if shared else 0.0
        return ChosenCurves(fit(patients[0], others, weight=alone), alone, {})
    total = total_equations(patients)

    def left_out(weight: float | None) -> Tensor:
        """Each patient's change under curves that were fitted without it, dB, (n,)."""
        curves = (
            None if weight is None else fit(total - patient, others, weight=weight)
            for patient in patients
        )
        found = [patient.change_db(own) for patient, own in zip(patients, curves, strict=True)]
        return torch.tensor(found, dtype=torch.float64)

    errors = {weight: left_out(weight) for weight in candidates}
    means = {weight: float(found.mean()) for weight, found in errors.items()}
    best = min(candidates, key=lambda weight: means[weight])
    for weight in candidates:
        worse = errors[weight] - errors[best]
        margin = 0.0 if len(patients) >= ENOUGH else float(worse.std()) / len(patients) ** 0.5
        if float(worse.mean()) <= margin:
            break
    if weight is None:
        return ChosenCurves(None, None, means)
    return ChosenCurves(fit(total, others, weight=weight), weight, means)


def hats(values: Tensor) -> Tensor:
    """The hat functions of values in [0, 1], (..., KNOTS); values beyond count as the end's.

    They are >= 0 and add up to 1.
    """
    low, share = _place(values)
    found = values.new_zeros((*values.shape, KNOTS))
    found.scatter_(-1, low[..., None], (1 - share)[..., None])
    return found.scatter_(-1, low[..., None] + 1, share[..., None])


def _place(values: Tensor) -> tuple[Tensor, Tensor]:
    """The knot below each value, and how far it is on the way to the next."""
    position = values.clamp(0, 1) * (KNOTS - 1)
    low = position.floor().clamp(max=KNOTS - 2)
    return low.long(), position - low


def _ridge(size: int) -> Tensor:
    """Smoothness within a channel, and a little of everything: always invertible."""
    second = torch.zeros(KNOTS - 2, KNOTS).double()
    for row in range(KNOTS - 2):
        second[row, row : row + 3] = torch.tensor([1.0, -2.0, 1.0]).double()
    channels = torch.eye(size // KNOTS).double()
    smooth = torch.kron(channels, _SMOOTH * second.T @ second)
    return smooth + _SMALL * torch.eye(size).double()


def _lines(size: int) -> Tensor:
    """Coefficients of 1 and of the prediction itself, (size, 2)."""
    lines = torch.zeros(size, 2).double()
    lines[:KNOTS, 0] = 1
    lines[:KNOTS, 1] = torch.linspace(0, 1, KNOTS).double()
    return lines


def total_equations(patients: Sequence[CurveEquations]) -> CurveEquations:
    """The sums over some patients, at least one."""
    total = patients[0]
    for patient in patients[1:]:
        total = total + patient
    return total


def _rounded(values: Tensor) -> Tensor:
    """Whole multiples of 1 / `SCALE`: their sums are exact in float64 (up to 8192 patients)."""
    return (values * SCALE).round() / SCALE
