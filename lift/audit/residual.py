"""Measure the noise in a release: everything outside the canaries' span is noise.

A pipeline that is audited with canaries alone releases a sum of their directions and noise. The
part of it that is orthogonal to all directions holds no canary, so its sum of squares over the
variance that was claimed follows a chi-square distribution with as many degrees of freedom as the
part has numbers. Too small a sum refutes the claimed noise. Anything else that a pipeline may add
outside the span only makes the sum larger: the test never accuses a pipeline of too little noise
for that. A sum that is too large is told too. It is no failure of privacy.

The sum's relative standard deviation is sqrt(2 / numbers). With `NUMBERS` of them .95 of the
claimed noise has a p value below `TOLD`, 999 times in 1000.

The canaries' bound and this test look at different parts of a release: guesses at what is inside
the span, this at the rest. They are independent where the pipeline is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

Floats = NDArray[np.float64]
NUMBERS: Final = 12_000
"""Independent numbers by which noise is measured, at least, where a run can be audited longer."""
LEVEL: Final = 0.001
"""Probability with which right noise is refused."""
TOLD: Final = 1e-5
"""Probability of right noise at which `smallest_found` is stated."""
_ALMOST_ALWAYS: Final = 0.999


@dataclass(frozen=True)
class ResidualNoise:
    """The noise of a release, measured.

    Attributes:
        ratio: its standard deviation over the claimed one.
        numbers: how many independent numbers it was measured by.
        steps: how many releases they are from.
        p_value: probability that noise of the claimed size is as small as this, or smaller.
        p_more: probability that noise of the claimed size is as large as this, or larger.
    """

    ratio: float
    numbers: int
    steps: int
    p_value: float
    p_more: float

    @property
    def enough(self) -> bool:
        """Whether the claimed noise is not refuted, at `LEVEL`."""
        return self.p_value >= LEVEL

    @property
    def more(self) -> bool:
        """Whether there is more noise than claimed, at `LEVEL`: no failure of privacy."""
        return self.p_more < LEVEL

    @property
    def smallest_found(self) -> float:
        """Less than this share of the claimed noise has a p value below `TOLD`, almost always: 999
        times in 1000.
        """
        least, most = chi2.ppf(TOLD, self.numbers), chi2.ppf(_ALMOST_ALWAYS, self.numbers)
        return math.sqrt(least / most)


def residual_noise(
    releases: Sequence[Floats], directions: Floats, noise_std: float
) -> ResidualNoise:
    """How large the noise outside the span of the directions is, against what was claimed.

    Args:
        releases: what each step released, (parameters,); only canaries took part.
        directions: of the canaries, (canaries, parameters), fewer than parameters.
        noise_std: claimed standard deviation of the noise of one number of a release, above 0.

    Raises:
        ValueError: as many directions as parameters, or a standard deviation that is not positive.
    """
    if not (math.isfinite(noise_std) and noise_std > 0):
        raise ValueError(f"a positive standard deviation is needed (seen: {noise_std})")
    # orthonormal: of directions that depend on each other, those that add nothing are left out
    _, lengths, basis = np.linalg.svd(directions, full_matrices=False)
    basis = basis[lengths > lengths.max() * 1e-9]
    count, parameters = basis.shape
    if count >= parameters:
        raise ValueError(f"{parameters} parameters, all of them spanned by {count} directions")
    seen = np.stack(releases, axis=1)
    outside = seen - basis.T @ (basis @ seen)
    squares = float(np.sum(outside * outside)) / noise_std**2
    numbers = (parameters - count) * seen.shape[1]
    return ResidualNoise(
        ratio=math.sqrt(squares / numbers),
        numbers=numbers,
        steps=seen.shape[1],
        p_value=float(chi2.cdf(squares, numbers)),
        p_more=float(chi2.sf(squares, numbers)),
    )
