"""A Gaussian of trajectories from noisy moments: post-processing, which costs no privacy.

The noise's level is public, and so is what to fall back on: the moments of
public volumes where the bundle has them (:mod:`lift.tasks.unconditional.private.deviations`). Where
it has none, over public slices latents have mean 0 and variance 1, whatever the position, and
neighbouring positions are alike. Every group of numbers is shrunk toward that by the share of its
energy that noise explains (James & Stein 1961),
all the way where noise may explain it all: exact moments stay as they are, and hopeless noise
leaves what is public alone.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from scipy.fft import dct, idct
from torch import Tensor

from lift.config.privacy import StatisticsOnce
from lift.errors import DataError
from lift.tasks.unconditional.moments import TrajectorySums, tied_gaussian
from lift.tasks.unconditional.private.moments import lengths_of, sensitivity, units
from lift.tasks.unconditional.stationary import stationary_chain, steady_share

_DEVIATIONS: Final = 2.0
"""Standard deviations above its mean at which the energy of numbers is no longer noise alone."""


def noise_std(
    total: TrajectorySums, privacy: StatisticsOnce, sites: int, *, deviations: bool = False
) -> dict[str, Tensor]:
    """Standard deviation of the noise in `total.mean(name)`, by name, broadcasting to its shape.

    Args:
        total: of `sites` releases.
        privacy: the plan's section, for each of the kinds that were sent.
        sites: number of releases in the total.
        deviations: they are moments of deviations from a public Gaussian.
    """
    lengths = lengths_of(total.form, privacy.trajectories, deviations=deviations)
    level = privacy.noise_multiplier * sensitivity(total.form, lengths) * math.sqrt(max(sites, 1))
    return {
        name: level * unit / total.patients for name, unit in units(total.form, lengths).items()
    }


def fit_noisy_gaussian(
    total: TrajectorySums, privacy: StatisticsOnce, sites: int
) -> dict[str, Tensor]:
    """The Gaussian behind `sites` noisy releases, in the form of `fit_gaussian`, always finite.

    Means along the body are shrunk toward 0 frequency by frequency; steady numbers have one mean.
    Squares, and products of two different latents, are shrunk toward 1 and 0, and what the means
    explain of them is taken off: the covariance, of eigenvalues at least 0. Products with the next
    position are shrunk toward those of a chain that keeps a share of every deviation, of which
    first the share is estimated and shrunk toward `correlation_length`, then all else.

    Guarantee: no mean is longer, and no covariance larger (trace), than one patient's bound, and
    the chain has the same covariance at every position.

    Args:
        total: of `sites` releases, tied, with the public number of patients.
        privacy: the plan's section, for each of the kinds that were sent.
        sites: number of releases in the total.

    Raises:
        DataError: there is no release.
    """
    if total.patients < 1:
        raise DataError(
            "cannot make a Gaussian of trajectories",
            seen="no site sent moments",
            remedy="Run the federation again with sites that answer.",
        )
    form, lengths = total.form, lengths_of(total.form, privacy.trajectories)
    std = noise_std(total, privacy, sites)
    k, d, fixed = form.positions, form.width, form.steady
    mean, mean_std = total.mean("mean"), std["mean"]
    moving = _smooth(mean[:, : d - fixed], mean_std[:1])
    still = shrunk(mean[:, d - fixed : d].mean(0), 0, mean_std[:1] / math.sqrt(k))
    joint = _within_length(torch.cat([moving, still.expand(k, -1)], dim=1), lengths.joint)
    tail = _within_length(_smooth(mean[:, d:], mean_std[d:][:1]), lengths.tail)

    squares = _squares(total.mean("within"), std["within"], lengths.joint)
    within = positive(squares - joint.mT @ joint / k)
    carried = math.exp(-1 / ((k - 1) * privacy.trajectories.correlation_length))
    following = total.mean("next") - joint[1:].mT @ joint[:-1] / (k - 1)
    following = _following(following, within, fixed, carried, std["next"])

    tail_squares = shrunk(total.mean("tail_within"), 1, std["tail_within"]).clamp_min(0)
    tail_squares = tail_squares * min(1.0, lengths.tail**2 / max(float(tail_squares.sum()), 1e-300))
    spread = (tail_squares - tail.square().mean(0)).clamp_min(0)
    tail_next = total.mean("tail_next") - (tail[1:] * tail[:-1]).mean(0)
    tail_next = shrunk(tail_next, carried * spread, std["tail_next"])
    chain = stationary_chain(within, following, fixed)
    return tied_gaussian(torch.cat([joint, tail], dim=1), chain, spread, tail_next)


def shrunk(noisy: Tensor, prior: Tensor | float, std: Tensor) -> Tensor:
    """All of some numbers, moved toward the prior by the share of noise in their energy.

    Energy that noise alone has in one of some thirty draws is taken for noise: of loud noise even
    a small share would be large.
    """
    away, count = noisy - prior, noisy.numel()
    energy, one = float(away.square().sum()), float(std.square().sum())
    if energy <= one * (count + _DEVIATIONS * math.sqrt(2 * count)):
        return prior + torch.zeros_like(away)
    return prior + away * (1 - one * count / energy)


def _smooth(mean: Tensor, std: Tensor) -> Tensor:
    """Means along the body, (K, n): each frequency is shrunk toward 0 by its own share."""
    if not mean.numel():
        return mean
    waves = torch.from_numpy(dct(mean.numpy(), axis=0, norm="ortho"))
    kept = torch.stack([shrunk(wave, 0, std) for wave in waves])
    smooth: Tensor = torch.from_numpy(idct(kept.numpy(), axis=0, norm="ortho"))
    return smooth


def _within_length(vectors: Tensor, longest: float) -> Tensor:
    """All rows by one factor, so that none is longer than a patient's can be."""
    if not vectors.numel():
        return vectors
    return vectors * min(1.0, longest / max(float(vectors.norm(dim=-1).max()), 1e-300))


def _squares(noisy: Tensor, std: Tensor, longest: float) -> Tensor:
    """Mean products within a position, (D, D): of eigenvalues >= 0, whose sum one patient bounds.

    The noise is independent in all numbers: that of two equal ones averages to half its variance.
    """
    both = (noisy + noisy.mT) / 2
    own = both.diagonal()
    row, column = torch.triu_indices(len(both), len(both), offset=1)
    mixed = shrunk(both[row, column], 0, std / math.sqrt(2))
    found = torch.diag(shrunk(own, 1, std))
    found[row, column] = mixed
    found[column, row] = mixed
    found = positive(found)
    return found * min(1.0, longest**2 / max(float(found.trace()), 1e-300))


def _following(noisy: Tensor, within: Tensor, steady: int, carried: float, std: Tensor) -> Tensor:
    """Covariance with the next position, (D, D): toward one share of all that is not steady."""
    fixed = steady_share(within, steady)
    free = within - fixed
    energy = float(free.square().sum())
    if energy > 0:
        seen = ((noisy - fixed) * free).sum() / energy
        carried = float(shrunk(seen, carried, std / math.sqrt(energy)).clamp(0, 1))
    return shrunk(noisy, fixed + carried * free, std)


def positive(symmetric: Tensor) -> Tensor:
    """What is positive in a symmetric matrix."""
    levels, axes = torch.linalg.eigh((symmetric + symmetric.mT) / 2)
    kept: Tensor = (axes * levels.clamp_min(0)) @ axes.mT
    return kept
