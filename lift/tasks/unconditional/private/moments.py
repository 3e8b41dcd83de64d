"""Moments of trajectories under patient-level privacy: clipped by patient, noised once.

Each volume's state at each position is clipped to a public length *before* products are formed,
so what one patient adds has a known length by construction, whatever the volumes hold. The sum
over patients gets Gaussian noise in units of that length, all parts together as one vector. What
is made of it (:mod:`lift.tasks.unconditional.private.gaussian`) is post-processing.

Where there is a public Gaussian to fall back on, a state is what the joint latents deviate by from
its mean, in its standard deviations: shorter vectors, and so less noise. Of the other latents
nothing is sent then (:mod:`lift.tasks.unconditional.private.deviations`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from lift.config.privacy import StatisticsOnce, TrajectoryBounds
from lift.errors import DataError
from lift.one_patient import of_one_patient
from lift.privacy.noise import SecureStream, add_noise
from lift.tasks.unconditional.drifting.statistics import LARGEST_COHORT
from lift.tasks.unconditional.moments import (
    LARGEST_UNITS,
    SCALE,
    TrajectoryForm,
    TrajectorySums,
    patient_moments,
)
from lift.tasks.unconditional.public_gaussian import PublicGaussian

_BELOW: Final = 1 - 1e-9
"""Vectors are clipped to a little less than their bound: rounding never lifts one above it."""


@dataclass(frozen=True)
class Lengths:
    """Public bounds on one volume's state at one position.

    Attributes:
        joint: of the joint latents and the body's length, together, of which means are made.
        tail: of the other latents.
        product: as `joint`, of what products are made of.
    """

    joint: float
    tail: float
    product: float


def lengths_of(
    form: TrajectoryForm, bounds: TrajectoryBounds, *, deviations: bool = False
) -> Lengths:
    """The bounds for a layout: a state of D numbers of variance 1 has a length near sqrt(D).

    Args:
        form: of what is sent.
        bounds: of the plan.
        deviations: states are those from a public Gaussian.
    """
    root = math.sqrt(form.width)
    if deviations:
        return Lengths(bounds.deviation_clip * root, 0.0, bounds.product_clip * root)
    tail = bounds.tail_clip * math.sqrt(len(form.tail))
    return Lengths(bounds.clip * root, tail, bounds.clip * root)


def clipped(trajectory: Tensor, form: TrajectoryForm, lengths: Lengths) -> Tensor:
    """A volume's trajectory, joint state and tail at each position scaled to their bounds.

    Shapes (K, D + tail) to (K, D + tail), float64. What is short enough is unchanged. A position
    with a number that is not finite becomes 0: to refuse would tell that the patient is there.
    """
    states = trajectory.double()
    parts = ((states[..., : form.width], lengths.joint), (states[..., form.width :], lengths.tail))
    kept = []
    for part, longest in parts:
        finite = torch.where(part.isfinite().all(-1, keepdim=True), part, 0)
        norm = finite.norm(dim=-1, keepdim=True)
        kept.append(finite * (longest * _BELOW / norm.clamp_min(longest * _BELOW)))
    return torch.cat(kept, dim=-1)


def units(form: TrajectoryForm, lengths: Lengths) -> dict[str, Tensor]:
    """What each number is divided by before the noise, by name; broadcasts to `form.shapes`.

    One patient's means at one position are no longer than 1 in these units, joint and tail each;
    so are the averages over positions of products, within a position and with the next.
    """
    joint = torch.full((form.width,), lengths.joint, dtype=torch.float64)
    tail = torch.full((len(form.tail),), lengths.tail, dtype=torch.float64)
    square, tail_square = (torch.tensor(x**2).double() for x in (lengths.product, lengths.tail))
    return {
        "mean": torch.cat([joint, tail]),
        "within": square,
        "next": square,
        "tail_within": tail_square,
        "tail_next": tail_square,
    }


def sensitivity(form: TrajectoryForm, lengths: Lengths) -> float:
    """Joint L2 length of one patient's moments, in :func:`units`, rounding included.

    Means: one vector at each of K positions. Products within a position and with the next:
    averages over positions of matrices of rank one, whose length is the product of two lengths; of
    the tail, of products by latent, which are no longer.
    """
    kinds = [lengths.joint, lengths.tail] if form.tail else [lengths.joint]
    products = [lengths.product, lengths.tail] if form.tail else [lengths.product]
    exact = math.sqrt(len(kinds) * (form.positions + 2))
    smallest = min(*kinds, *(length**2 for length in products))
    count = sum(math.prod(shape) for shape in form.shapes.values())
    return exact + 0.5 * math.sqrt(count) / SCALE / smallest


def deviation(trajectory: Tensor, public: PublicGaussian) -> Tensor:
    """What a volume's joint states deviate by, in public standard deviations, (K, D), float64."""
    width = public.form.width
    return (trajectory[:, :width].double() - public.mean[:, :width]) / public.sd


def release_moments(
    patients: Iterable[Sequence[Tensor]],
    form: TrajectoryForm,
    privacy: StatisticsOnce,
    public_patients: int,
    stream: SecureStream,
    public: PublicGaussian | None = None,
) -> TrajectorySums:
    """The noisy sum of the patients' clipped moments, with the public number of patients.

    One Gaussian mechanism with `privacy.noise_multiplier`, add or remove one patient. All that
    depends on a patient is clipped here, and the number of patients is not told: no patient at all
    gives noise alone. A patient whose moments cannot be computed adds nothing. 131,072 patients
    fit.

    Args:
        patients: trajectories of each patient's volumes, (K, D + tail) each.
        form: their layout.
        privacy: the plan's section, for each of the kinds that are sent.
        public_patients: of the site.
        stream: source of the noise.
        public: what states are deviations from; then the sums are of the layout `public.sent`.
            None: states are taken as they are.

    Raises:
        DataError: the public number is larger than sums hold; it tells nothing of the patients.
    """
    if public_patients > LARGEST_COHORT:
        raise DataError(
            "cannot send moments of trajectories",
            where="privacy.public_patients",
            seen=f"{public_patients} patients of one site; at most {LARGEST_COHORT} fit",
            remedy="Nothing was sent. Agree on a smaller number, and on a cohort of that size.",
        )
    form = form if public is None else public.sent
    lengths = lengths_of(form, privacy.trajectories, deviations=public is not None)
    total = dict(TrajectorySums.zero(form).units)
    for volumes in patients:
        one = of_one_patient(partial(_bounded_moments, volumes, form, lengths, public))
        if one is None:
            continue
        total = {name: value + one[name] for name, value in total.items()}
    unit = units(form, lengths)
    exact = {name: value.double() / SCALE / unit[name] for name, value in total.items()}
    noisy = add_noise(exact, privacy.noise_multiplier * sensitivity(form, lengths), stream)
    found = {
        name: (noisy[name].double() * unit[name] * SCALE)
        .round()
        .clamp(-LARGEST_UNITS, LARGEST_UNITS)
        .to(torch.int64)
        for name in total
    }
    return TrajectorySums(form, public_patients, found)


def _bounded_moments(
    volumes: Sequence[Tensor],
    form: TrajectoryForm,
    lengths: Lengths,
    public: PublicGaussian | None,
) -> dict[str, Tensor]:
    """One patient's moments: means of states of one length, products of those of another."""
    states = volumes if public is None else [deviation(v, public) for v in volumes]
    found = patient_moments([clipped(state, form, lengths) for state in states], form).units
    if lengths.product == lengths.joint:
        return dict(found)
    longer = replace(lengths, joint=lengths.product)
    products = patient_moments([clipped(state, form, longer) for state in states], form).units
    return {**products, "mean": found["mean"]}
