"""The Gaussian of a decoder's own public volumes: what there is without any hospital.

It is a row of its own in every table, and what noise falls back on. Public moments lie on a fixed
grid of positions; a plan's positions are others. Means are interpolated. Ties between neighbours
become those of another distance as the power of a chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from lift.config.plan import Plan
from lift.tasks.unconditional.bundle import check_public_files
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import settings_of
from lift.tasks.unconditional.moments import (
    TrajectoryForm,
    TrajectorySums,
    covariances,
    form_of,
    patient_moments,
    tied_gaussian,
)
from lift.tasks.unconditional.public_moments import PublicMoments
from lift.tasks.unconditional.stationary import stationary_chain

POSITIONS: Final = 32
"""Positions along the body of public moments."""
JOINT: Final = 64
"""Axes whose joint covariance they hold, at most: what fits into a bundle of 1 MB."""
LEAST_SD: Final = 0.05
"""Public standard deviation that a number has at least; of numbers that hardly vary."""
_LEAST_SHARE: Final = 0.01
_RELATIVE_RANK: Final = 1e-7


@dataclass(frozen=True)
class PublicGaussian:
    """Mean and covariance of public volumes in a plan's layout, float64.

    Attributes:
        form: the layout.
        patients: public patients behind it.
        mean: (K, D + tail).
        within: covariance of the joint state within a position, (D, D).
        following: covariance with the next position (rows) of a position (columns), (D, D).
        tail_within: variances of the tail, (tail,).
        tail_following: covariances of its latents with themselves at the next position, (tail,).
    """

    form: TrajectoryForm
    patients: int
    mean: Tensor
    within: Tensor
    following: Tensor
    tail_within: Tensor
    tail_following: Tensor

    @property
    def sd(self) -> Tensor:
        """Standard deviation of the joint state around its mean, `LEAST_SD` or more, (D,)."""
        return self.within.diagonal().clamp_min(LEAST_SD**2).sqrt()

    @property
    def sent(self) -> TrajectoryForm:
        """The layout of what sites send where noise falls back on this: the joint state alone."""
        rest = tuple(sorted((*self.form.tail, *self.form.rest)))
        return replace(self.form, tail=(), rest=rest)

    def tensors(self) -> dict[str, Tensor]:
        """In the form of `fit_gaussian`."""
        chain = stationary_chain(self.within, self.following, self.form.steady)
        return tied_gaussian(self.mean, chain, self.tail_within, self.tail_following)


def fit_public_moments(
    patients: Iterable[Sequence[Tensor]], style: int, latent: int
) -> PublicMoments:
    """The public moments of a decoder; the order of the patients changes no bit.

    Args:
        patients: trajectories of each patient's volumes in the layout of :func:`public_form`.
        style: how many latents, the last ones, are the same for all slices of a volume.
        latent: L, of the decoder.
    """
    form = public_form(style, latent)
    moments = [patient_moments(volumes, form) for volumes in patients]
    total = sum(moments, start=TrajectorySums.zero(form))
    within, following, (tail, tail_following) = covariances(total)
    mean = torch.zeros(POSITIONS, latent + 1, dtype=torch.float64)
    mean[:, [*form.joint, latent, *form.tail]] = total.mean("mean")
    parts = (mean, within, following, tail, tail_following)
    return PublicMoments(total.patients, form.joint, *(t.half().contiguous() for t in parts))


def public_form(style: int, latent: int) -> TrajectoryForm:
    """The layout of public moments: as many axes as fit together, each of the others alone."""
    axes = min(JOINT, latent - style)
    joint = (*range(axes), *range(latent - style, latent))
    tail = tuple(range(axes, latent - style))
    return TrajectoryForm(POSITIONS, joint, tail, tied=True, steady=style + 1)


def public_gaussian(moments: PublicMoments, form: TrajectoryForm) -> PublicGaussian:
    """The public Gaussian in a plan's layout.

    Latents that are joint in the plan and not in the moments have no ties to others.

    Args:
        moments: of the decoder.
        form: of the plan; not a sketch, which has no chain.
    """
    latent, grid, k = moments.latent, len(moments.mean), form.positions
    mean = F.interpolate(moments.mean.double().T[None], size=k, mode="linear", align_corners=True)
    known, alone = [*moments.joint, latent], list(moments.tail)
    block = torch.tensor(known)
    within = torch.zeros(latent + 1, latent + 1, dtype=torch.float64)
    following = torch.zeros_like(within)
    within[block[:, None], block], following[block[:, None], block] = stretched(
        moments.within.double(), moments.following.double(), (grid - 1) / (k - 1)
    )
    spread = moments.tail_within.double().clamp_min(0)
    share = (moments.tail_following.double() / spread.clamp_min(1e-12)).clamp(0, 1)
    within[alone, alone] = spread
    following[alone, alone] = spread * share ** ((grid - 1) / (k - 1))
    joint, tail = torch.tensor([*form.joint, latent]), list(form.tail)
    return PublicGaussian(
        form,
        moments.patients,
        mean[0].T[:, [*form.joint, latent, *form.tail]],
        within[joint[:, None], joint],
        following[joint[:, None], joint],
        within[tail, tail],
        following[tail, tail],
    )


def stretched(within: Tensor, following: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Covariance within a position, and with one `ratio` times as far as the next: (D, D) each.

    What is negative in `within` counts as 0. In units of `within` the ties are a matrix T; T to
    the power of `ratio` is that of its symmetric part S, and to first order that of the rest:
    for a ratio of 1 it is T again where S lies within [0.01, 1].

    Source: the derivative of a power of S by divided differences, Daleckii and Krein 1965.
    """
    levels, axes = torch.linalg.eigh((within + within.mT) / 2)
    sd = levels.clamp_min(0).sqrt()
    kept = levels > _RELATIVE_RANK * levels.max()
    root, inverse = (axes * sd) @ axes.mT, (axes * torch.where(kept, 1 / sd, 0)) @ axes.mT
    ties = inverse @ following @ inverse
    shares, modes = torch.linalg.eigh((ties + ties.mT) / 2)
    shares = shares.clamp(_LEAST_SHARE, 1)
    powers = shares**ratio
    apart = shares[:, None] - shares
    slopes = ratio * ((shares[:, None] + shares) / 2) ** (ratio - 1)
    slopes = torch.where(apart.abs() > 1e-6, (powers[:, None] - powers) / apart, slopes)
    turn = modes.mT @ ((ties - ties.mT) / 2) @ modes
    power = modes @ (powers.diag() + slopes * turn) @ modes.mT
    # a direction without variance has no ties
    power = power @ (axes[:, kept] @ axes[:, kept].mT)
    return root @ root, root @ power @ root


def sent_form(plan: Plan, decoder: FrozenDecoder) -> TrajectoryForm:
    """The layout of the moments that a site sends under a plan.

    Raises:
        ConfigError: the plan names other public moments than the bundle has.
    """
    form = form_of(settings_of(plan).gaussian, decoder)
    public = fallback_of(plan, decoder, form)
    return form if public is None else public.sent


def fallback_of(plan: Plan, decoder: FrozenDecoder, form: TrajectoryForm) -> PublicGaussian | None:
    """What the plan's noise falls back on; None where the plan names no public moments.

    Raises:
        ConfigError: it names others than the bundle has.
    """
    check_public_files(plan, decoder)
    named = None if plan.unconditional is None else plan.unconditional.moments_digest
    moments = decoder.public.moments
    return None if named is None or moments is None else public_gaussian(moments, form)
