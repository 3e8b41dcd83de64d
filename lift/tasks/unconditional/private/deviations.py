"""A Gaussian of trajectories from noisy deviations: post-processing, which costs no privacy.

Sites sent what their patients deviate by from the public Gaussian of the decoder's bundle. Means
are smooth along the body, as patients are: each frequency of each number is taken for as likely to
deviate as that of a public patient is, times one share for all, which the noisy means themselves
tell (empirical Bayes). Of covariances each group of numbers is shrunk toward the public ones by
the share of its energy that noise explains. Hopeless noise leaves the public Gaussian.

Source: Robbins 1956 (empirical Bayes); James and Stein 1961.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from lift.config.privacy import StatisticsOnce
from lift.errors import DataError
from lift.tasks.unconditional.moments import TrajectoryForm, TrajectorySums, tied_gaussian
from lift.tasks.unconditional.private.gaussian import noise_std, positive, shrunk
from lift.tasks.unconditional.private.moments import lengths_of
from lift.tasks.unconditional.public_gaussian import PublicGaussian
from lift.tasks.unconditional.stationary import stationary_chain

_SHARES: Final = np.geomspace(1e-4, 10, 61)
"""What a cohort's mean may deviate by, as a share of the variance of patients."""
_LEAST_VARIANCE: Final = 0.01
_RELATIVE_RANK: Final = 1e-7


def fit_noisy_deviations(
    total: TrajectorySums, privacy: StatisticsOnce, sites: int, public: PublicGaussian
) -> dict[str, Tensor]:
    """The Gaussian behind `sites` noisy releases, in the form of `fit_gaussian`, always finite.

    The tail is the public one.

    Guarantee: no mean deviates further than one patient may, no covariance is larger (trace, in
    public variances) than one patient's bound or the public one, and the chain has the same
    covariance at every position.

    Args:
        total: of `sites` releases, with the public number of patients.
        privacy: the plan's section, for each of the kinds that were sent.
        sites: number of releases in the total.
        public: what they are deviations from.

    Raises:
        DataError: there is no release.
    """
    if total.patients < 1:
        raise DataError(
            "cannot make a Gaussian of trajectories",
            seen="no site sent moments",
            remedy="Run the federation again with sites that answer.",
        )
    form, sd = public.form, public.sd
    k, d = form.positions, form.width
    lengths = lengths_of(public.sent, privacy.trajectories, deviations=True)
    std = noise_std(total, privacy, sites, deviations=True)
    within = public.within / sd[:, None] / sd
    following = public.following / sd[:, None] / sd

    variances = _variances(within, following, form)
    mean = _expected(total.mean("mean"), variances, float(std["mean"][0]))
    longest = float(mean.norm(dim=-1).max())
    mean = mean * min(1.0, lengths.joint / max(longest, 1e-300))

    second = mean.mT @ mean / k
    found = _second_moments(total.mean("within"), within + second, std["within"])
    most = max(lengths.product**2, float((within + second).trace()))
    found = found * min(1.0, most / max(float(found.trace()), 1e-300))
    own = positive(found - second)
    after = total.mean("next") - mean[1:].mT @ mean[:-1] / (k - 1)
    after = shrunk(after, _carried(within, following, own), std["next"])

    chain = stationary_chain(own * sd[:, None] * sd, after * sd[:, None] * sd, form.steady)
    states = public.mean.clone()
    states[:, :d] += mean * sd
    return tied_gaussian(states, chain, public.tail_within, public.tail_following)


def mean_noise(form: TrajectoryForm, privacy: StatisticsOnce, patients: int, sites: int) -> float:
    """Standard deviation of the noise in a cohort's mean, in public standard deviations.

    Args:
        form: of what is sent.
        privacy: the plan's section, for each of the kinds that are sent.
        patients: the public number of all sites together.
        sites: that send.
    """
    total = TrajectorySums(form, patients, {})
    return float(noise_std(total, privacy, sites, deviations=True)["mean"][0])


def _variances(within: Tensor, following: Tensor, form: TrajectoryForm) -> Tensor:
    """Variance of a public patient's deviation by frequency along the body, (K, D).

    Steady numbers have the frequency 0 alone.
    """
    k, steady = form.positions, form.steady
    own = within.diagonal().clamp_min(_LEAST_VARIANCE)
    kept = (following.diagonal() / own).clamp(0, 1)
    kept[len(kept) - steady :] = 1
    places = torch.arange(k, dtype=torch.float64)
    alike = kept ** (places[:, None] - places).abs()[..., None]
    waves = _waves(k)
    found = torch.einsum("ka,abd,kb->kd", waves, alike, waves).clamp_min(0) * own
    found[1:, len(kept) - steady :] = 0
    return found


def _expected(noisy: Tensor, variances: Tensor, std: float) -> Tensor:
    """Means along the body, (K, D), given noisy ones and how much each frequency may deviate."""
    waves = _waves(len(noisy))
    seen = waves @ noisy
    known = variances > 0
    energy, spread = seen[known].square(), variances[known]
    likely = [
        -float((level.log() + energy / level).sum())
        for level in (share * spread + std**2 for share in (0.0, *_SHARES))
    ]
    share = (0.0, *_SHARES)[int(np.argmax(likely))]
    gain = share * variances / (share * variances + std**2)
    expected: Tensor = waves.mT @ (gain * seen)
    return expected


def _waves(positions: int) -> Tensor:
    """The orthonormal cosines along the body, (K frequencies, K positions)."""
    return torch.from_numpy(dct(np.eye(positions), axis=0, norm="ortho"))


def _second_moments(noisy: Tensor, prior: Tensor, std: Tensor) -> Tensor:
    """Mean products within a position, (D, D): of eigenvalues >= 0.

    The noise is independent in all numbers: that of two equal ones averages to half its variance.
    """
    both = (noisy + noisy.mT) / 2
    row, column = torch.triu_indices(len(both), len(both), offset=1)
    found = torch.diag(shrunk(both.diagonal(), prior.diagonal(), std))
    found[row, column] = shrunk(both[row, column], prior[row, column], std / math.sqrt(2))
    found[column, row] = found[row, column]
    return positive(found)


def _carried(within: Tensor, following: Tensor, own: Tensor) -> Tensor:
    """The public ties with the next position, of another covariance: root_own T root_own."""
    levels, axes = torch.linalg.eigh(within)
    kept = levels > _RELATIVE_RANK * levels.max()
    inverse = (axes * torch.where(kept, levels.clamp_min(1e-300).rsqrt(), 0)) @ axes.mT
    levels, axes = torch.linalg.eigh(own)
    root = (axes * levels.clamp_min(0).sqrt()) @ axes.mT
    carried: Tensor = root @ inverse @ following @ inverse @ root
    return carried
