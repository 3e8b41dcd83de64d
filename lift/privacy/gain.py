"""The mean gain of a mixer that was trained under noise, clipped and noisy.

Each site gives two numbers over its validation patients: the sum of their gains over no mixer, each
clipped, and how many they are. Both get noise together, as one Gaussian mechanism: with or without
one patient the pair moves by at most 1. All sites' sums together give a mean with an interval.

A patient's gain must depend on this patient and the finished mixer alone. Curves that were fitted
to others would break that, so a plan with this release has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from lift.config.privacy import GainRelease
from lift.guard import Verdict
from lift.privacy.noise import SecureStream, add_noise

_NUMBERS: Final = 2
_NORMAL_95: Final = 1.959964
_FEWEST_NOISE_STDS: Final = 3.0


@dataclass(frozen=True)
class PooledGain:
    """The gain of the mixer, from the noisy sums of all sites.

    Attributes:
        value_db: mean gain in PSNR over no mixer, dB, of gains clipped at the plan's bound; None
            where the noise hides how many patients there are.
        low_db: lower end of the 95% interval, of noise and patients together; None likewise.
        high_db: upper end.
        sites: how many sent sums.
    """

    value_db: float | None
    low_db: float | None
    high_db: float | None
    sites: int

    @property
    def verdict(self) -> Verdict:
        """`helped` or `harmed` where the whole interval lies on one side of 0."""
        if self.low_db is None or self.high_db is None:
            return "undecided"
        if self.low_db > 0:
            return "helped"
        return "harmed" if self.high_db < 0 else "undecided"


def release_gain(
    gains_db: Sequence[float], release: GainRelease, stream: SecureStream
) -> NDArray[np.float32]:
    """A site's two noisy numbers, (2,): of clipped gains, and of patients.

    A patient whose gain is not finite adds nothing. Also no patient at all gives two numbers:
    whether a site sends must tell nothing.

    Args:
        gains_db: one a person; of several volumes the mean.
        release: bound and noise.
        stream: source of the noise.
    """
    known = [gain for gain in gains_db if math.isfinite(gain)]
    clipped = [max(-release.clip_db, min(gain, release.clip_db)) for gain in known]
    exact = torch.tensor([math.fsum(clipped) / release.clip_db, float(len(known))]).double()
    # a patient moves either number by at most 1: the pair by at most 1 after this
    scaled = {"sums": exact / math.sqrt(_NUMBERS)}
    return add_noise(scaled, release.noise_multiplier, stream)["sums"].numpy()


def pooled_gain(sums: Sequence[NDArray[np.float32]], release: GainRelease) -> PooledGain:
    """The mean gain that sites' sums tell, with an interval that is rather too wide.

    The interval takes the known noise of both sums, and the largest spread that gains between the
    bounds can have around this mean (Bhatia & Davis 2000).

    Args:
        sums: of each site, see :func:`release_gain`.
        release: of the plan.
    """
    if not sums:
        return PooledGain(None, None, None, 0)
    total = np.sum(np.stack(sums).astype(np.float64), axis=0) * math.sqrt(_NUMBERS)
    patients = float(total[1])
    noise_std = release.noise_multiplier * math.sqrt(_NUMBERS * len(sums))
    if patients < max(_FEWEST_NOISE_STDS * noise_std, 2.0):
        return PooledGain(None, None, None, len(sums))
    share = float(np.clip(total[0] / patients, -1.0, 1.0))
    by_noise = (noise_std / patients) ** 2 * (1 + share**2)
    by_patients = (1 - share**2) / patients
    half = _NORMAL_95 * math.sqrt(by_noise + by_patients)
    clip = release.clip_db
    return PooledGain(
        round(share * clip, 3),
        round((share - half) * clip, 3),
        round((share + half) * clip, 3),
        len(sums),
    )
