"""Moments of latent trajectories: what a cohort's volumes are along the body, as exact sums.

A volume becomes a trajectory: the decoder's latents of its slices at K positions from the body's
first slice to its last, and the body's length. A patient counts once. Of each position the sums
hold the mean; of the *joint* latents (the first ones, those of the volume's grey scale, and the
length) also the products within a position and with the next one; of each other latent (the
*tail*) its square and its product with itself at the next position.

From them a Gaussian follows in closed form, as a Markov chain over positions: with these means
and covariances, and no other ties. A few thousand numbers, sent once, are all that sites share.
Tied sums hold the products as averages over positions: far fewer numbers, for noise's sake.

In place of the products a *sketch* of all numbers with all others may be kept (`sketch`): then
the Gaussian is that of whole trajectories.

Every patient's numbers are rounded to whole units of 2^-40 once and are integers from then on: no
order, grouping or splitting of a cohort changes a bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lift.config.plan import GaussianPlan
from lift.errors import DataError
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.drifting.release import FEWEST_PATIENTS
from lift.tasks.unconditional.drifting.statistics import LARGEST_COHORT
from lift.tasks.unconditional.grid import BodyVolume
from lift.tasks.unconditional.sketch import FEWEST_SKETCHED, factor, products
from lift.tasks.unconditional.stationary import StationaryChain, stationary_chain, symmetric_root
from lift.wire.names import GAUSSIAN, TRAJECTORY, grouped

SCALE: Final = 2**40
"""Units per 1 of the fixed-point form: sums of the largest cohort fit in int64."""
LARGEST_UNITS: Final = 2**59
"""Sums of one site are never larger, with noise or without."""
LARGEST: Final = 8.0
"""Latents are clipped to this many standard deviations of public slices."""
_LENGTH_UNIT: Final = 0.1
_RELATIVE_RANK: Final = 1e-7
PATIENTS: Final = "patients"


@dataclass(frozen=True)
class TrajectoryForm:
    """How a trajectory's numbers are laid out.

    Attributes:
        positions: K, along the body.
        joint: indices of the decoder's latents whose joint covariance is kept.
        tail: indices of the others.
        tied: one covariance within a position, and one with the next, for all positions: after
            each position's own mean.
        rest: indices of latents of which nothing is kept; they stay at their public mean, 0.
        columns: of a sketch in place of the products; 0: there is none. Then all latents are tail.
        steady: how many numbers of the joint state, the last ones, are the same at all positions
            of a volume: style latents and the length.
    """

    positions: int
    joint: tuple[int, ...]
    tail: tuple[int, ...]
    tied: bool = False
    rest: tuple[int, ...] = ()
    steady: int = 1
    columns: int = 0

    @property
    def fewest(self) -> int:
        """Patients behind what a site sends without noise."""
        return FEWEST_SKETCHED if self.columns else FEWEST_PATIENTS

    @property
    def width(self) -> int:
        """D: numbers of the joint state at one position, the body's length last."""
        return len(self.joint) + 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of everything that the sums hold; tied ones are averages over positions."""
        k, d, t = self.positions, self.width, len(self.tail)
        if self.columns:
            return {"mean": (k, d + t), "sketch": (k * (d + t), self.columns)}
        places, steps = ((), ()) if self.tied else ((k,), (k - 1,))
        return {
            "mean": (k, d + t),
            "within": (*places, d, d),
            "next": (*steps, d, d),
            "tail_within": (*places, t),
            "tail_next": (*steps, t),
        }


def form_of(plan: GaussianPlan, decoder: FrozenDecoder) -> TrajectoryForm:
    """The layout for a plan's Gaussian around a decoder."""
    latent, style = decoder.card.network.latent, decoder.card.network.volume_latents
    if plan.covariance == "sketch":
        return TrajectoryForm(plan.positions, (), tuple(range(latent)), columns=plan.columns)
    axes = min(plan.axes, latent - style)
    joint = (*range(axes), *range(latent - style, latent))
    others = tuple(range(axes, latent - style))
    tail, rest = (others, ()) if plan.tail else ((), others)
    return TrajectoryForm(plan.positions, joint, tail, plan.tied, rest, style + 1)


def trajectory(volume: BodyVolume, decoder: FrozenDecoder, form: TrajectoryForm) -> Tensor:
    """One volume's trajectory, (K, D + tail), float32, CPU, each number within +-`LARGEST`.

    The length is that from the first slice's centre to the last one's, as the logarithm of its
    share of the public bodies' mean length, in units of a tenth.
    """
    latents = decoder.latents_of(volume.voxels[0, 0]).cpu()
    at = F.interpolate(latents.T[None], size=form.positions, mode="linear", align_corners=True)[0].T
    length_mm = max(1, len(latents) - 1) * volume.spacing_mm[0]
    length = math.log(length_mm / decoder.card.body_length_mm) / _LENGTH_UNIT
    joint = [at[:, list(form.joint)], torch.full((form.positions, 1), length)]
    return torch.cat([*joint, at[:, list(form.tail)]], dim=1).clamp(-LARGEST, LARGEST)


def body_length_mm(state: Tensor, decoder: FrozenDecoder) -> Tensor:
    """The inverse of what :func:`trajectory` does to a body's length, any shape, in mm."""
    return decoder.card.body_length_mm * (state * _LENGTH_UNIT).exp()


@dataclass(frozen=True)
class TrajectorySums:
    """Moments summed over patients.

    Attributes:
        form: the layout; only equal ones are added.
        patients: patients summed.
        units: name -> int64 tensor of `form.shapes[name]`, in units of 1 / `SCALE`.
    """

    form: TrajectoryForm
    patients: int
    units: Mapping[str, Tensor]

    @classmethod
    def zero(cls, form: TrajectoryForm) -> TrajectorySums:
        """The sums of no patient: adding them changes nothing."""
        units = {name: torch.zeros(s, dtype=torch.int64) for name, s in form.shapes.items()}
        return cls(form, 0, units)

    def __add__(self, other: TrajectorySums) -> TrajectorySums:
        """Raises DataError for another layout, or more patients or numbers than fit."""
        patients = self.patients + other.patients
        if self.form != other.form or patients > LARGEST_COHORT:
            raise DataError(
                "cannot add the moments of trajectories",
                seen=f"{patients} patients, layouts {self.form.shapes} and {other.form.shapes}",
                remedy=f"One plan and one decoder give one layout; {LARGEST_COHORT} patients fit.",
            )
        units = {name: _added(units, other.units[name]) for name, units in self.units.items()}
        return TrajectorySums(self.form, patients, units)

    def mean(self, name: str) -> Tensor:
        """The average over the patients of one part, float64.

        Raises:
            DataError: the sums hold no patient.
        """
        if self.patients < 1:
            raise DataError(
                "cannot make a Gaussian of trajectories",
                seen="their moments hold no patient",
                remedy="Gather moments from at least one site with enough patients.",
            )
        return self.units[name].double() / SCALE / self.patients


def patient_moments(volumes: Sequence[Tensor], form: TrajectoryForm) -> TrajectorySums:
    """The moments of one patient: the average over the patient's volumes.

    Args:
        volumes: trajectories, (K, D + tail) each; at least one.
        form: their layout.
    """
    stacked = torch.stack(list(volumes)).double().clamp(-LARGEST, LARGEST)
    if not bool(torch.isfinite(stacked).all()):
        raise DataError(
            "cannot compute a patient's moments",
            seen="latents that hold NaN or infinity",
            remedy="Nothing was sent. Check the patient's volumes, or leave the patient out.",
        )
    found = {"mean": stacked} | _products(stacked, form)
    units = {n: (v.mean(0) * SCALE).round().to(torch.int64) for n, v in found.items()}
    return TrajectorySums(form, 1, units)


def _products(volumes: Tensor, form: TrajectoryForm) -> dict[str, Tensor]:
    """What is kept of each volume beside its numbers, (volumes, ...)."""
    if form.columns:
        return {"sketch": products(volumes.flatten(1), form.columns)}
    joint, tail = volumes[..., : form.width], volumes[..., form.width :]
    found = {
        "within": joint[:, :, :, None] * joint[:, :, None, :],
        "next": joint[:, 1:, :, None] * joint[:, :-1, None, :],
        "tail_within": tail.square(),
        "tail_next": tail[:, 1:] * tail[:, :-1],
    }
    return {name: v.mean(1) for name, v in found.items()} if form.tied else found


def moments_to_arrays(sums: TrajectorySums, *, noisy: bool = False) -> dict[str, NDArray[np.int64]]:
    """The sums as named int64 arrays: what a site sends once.

    Args:
        sums: of a site.
        noisy: they have noise by patient, and their number of patients is public.

    Raises:
        DataError: too few patients without noise (`TrajectoryForm.fewest`); nothing may be sent.
    """
    if sums.patients < sums.form.fewest and not noisy:
        raise DataError(
            "cannot send moments of trajectories",
            seen=f"{sums.patients} patients; at least {sums.form.fewest} are needed, so that no "
            "number shows a single patient",
            remedy="Nothing was sent. The site can still use the other sites' Gaussian.",
        )
    arrays = {name: units.numpy() for name, units in sums.units.items()}
    arrays[PATIENTS] = np.array([sums.patients], dtype=np.int64)
    return grouped(arrays, TRAJECTORY)


def sent_shapes(form: TrajectoryForm) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what :func:`moments_to_arrays` makes of a site's sums, all int64."""
    return grouped({**form.shapes, PATIENTS: (1,)}, TRAJECTORY)


def fit_gaussian(sums: TrajectorySums) -> dict[str, Tensor]:
    """The Gaussian with these moments, as a Markov chain over positions, float32.

    Of a sketch it is that of whole trajectories: x = m + factor e.

    x_0 = m_0 + first e_0 and x_{k+1} = m_{k+1} + step_k (x_k - m_k) + noise_k e_{k+1} with standard
    normal e. Each tail latent is a chain of its own. Where there are fewer patients than numbers,
    the steps are those of least norm. Tied moments give one step and one noise, which keep the one
    covariance at every position.

    Returns:
        `gaussian/mean` (K, D + tail), `gaussian/first` (D, D), `gaussian/step` and
        `gaussian/noise` (K - 1, D, D), `gaussian/tail_sd` (K, tail), `gaussian/tail_step`
        (K - 1, tail): correlation with the position before. Of a sketch: `gaussian/mean` and
        `gaussian/factor` (K (D + tail), columns).

    Raises:
        DataError: the sums hold no patient.
    """
    if sums.form.columns:
        mean = sums.mean("mean")
        root = factor(mean.flatten(), sums.mean("sketch"))
        return {GAUSSIAN + "mean": mean.float(), GAUSSIAN + "factor": root.float().contiguous()}
    within, following, (tail, tail_next) = covariances(sums)
    if sums.form.tied:
        chain = stationary_chain(within, following, sums.form.steady)
        return tied_gaussian(sums.mean("mean"), chain, tail, tail_next)
    inverse = torch.linalg.pinv(within[:-1], rtol=_RELATIVE_RANK, hermitian=True)
    step = following @ inverse
    rest = within[1:] - step @ following.mT
    sd = tail.clamp_min(0).sqrt()
    carried = tail_next / (sd[1:] * sd[:-1]).clamp_min(1e-12)
    found = {
        "mean": sums.mean("mean"),
        "first": symmetric_root(within[0]),
        "step": step,
        "noise": symmetric_root(rest),
        "tail_sd": sd,
        "tail_step": carried.clamp(-1, 1),
    }
    return {GAUSSIAN + name: value.float().contiguous() for name, value in found.items()}


def tied_gaussian(
    mean: Tensor, chain: StationaryChain, tail: Tensor, tail_next: Tensor
) -> dict[str, Tensor]:
    """The Gaussian with one covariance at all positions, in the form of :func:`fit_gaussian`.

    Args:
        mean: (K, D + tail).
        chain: of the joint state.
        tail: variances of the tail, (tail,).
        tail_next: covariances of its latents with themselves at the next position, (tail,).
    """
    k = len(mean)
    sd = tail.clamp_min(0).sqrt()
    carried = (tail_next / sd.square().clamp_min(1e-12)).clamp(-1, 1)
    found = {
        "mean": mean,
        "first": chain.first,
        "step": chain.step.expand(k - 1, -1, -1),
        "noise": chain.noise.expand(k - 1, -1, -1),
        "tail_sd": sd.expand(k, -1),
        "tail_step": carried.expand(k - 1, -1),
    }
    return {GAUSSIAN + name: value.float().contiguous() for name, value in found.items()}


def gaussian_shapes(form: TrajectoryForm) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what :func:`fit_gaussian` returns."""
    k, d, t = form.positions, form.width, len(form.tail)
    if form.columns:
        return {GAUSSIAN + ("factor" if n == "sketch" else n): s for n, s in form.shapes.items()}
    shapes = {
        "mean": (k, d + t),
        "first": (d, d),
        "step": (k - 1, d, d),
        "noise": (k - 1, d, d),
        "tail_sd": (k, t),
        "tail_step": (k - 1, t),
    }
    return {GAUSSIAN + name: shape for name, shape in shapes.items()}


def covariances(sums: TrajectorySums) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Within positions (K, D, D), with the next (K - 1, D, D); the same of the tail.

    Of tied sums (D, D) each.
    """
    mean = sums.mean("mean")
    joint, tail = mean[:, : sums.form.width], mean[:, sums.form.width :]
    products = {
        "within": joint[:, :, None] * joint[:, None, :],
        "next": joint[1:, :, None] * joint[:-1, None, :],
        "tail_within": tail.square(),
        "tail_next": tail[1:] * tail[:-1],
    }
    if sums.form.tied:
        products = {name: value.mean(0) for name, value in products.items()}
    left = {name: sums.mean(name) - value for name, value in products.items()}
    return left["within"], left["next"], (left["tail_within"], left["tail_next"])


def _added(a: Tensor, b: Tensor) -> Tensor:
    total = a + b
    # int64 wraps around in silence: then the sum's sign differs from that of both terms
    if bool((((a ^ total) & (b ^ total)) < 0).any()):
        raise DataError(
            "cannot add the moments of trajectories",
            seen="a sum does not fit in 64 bits",
            remedy="Nothing was added. Look for the site whose sums are too large.",
        )
    return total
