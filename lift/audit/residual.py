"""Measure the noise in a release: everything outside the canaries' span is noise.

A pipeline that is audited with canaries alone releases a sum of their directions and noise. The
part of it that is orthogonal to all directions holds no canary, so its sum of squares over the
variance that was claimed follows a chi-square distribution with as many degrees of freedom as the
part has numbers. Too small a sum refutes the claimed noise. Anything else that a pipeline may add
outside the span only makes the sum larger: the test never accuses a pipeline of too little noise
for that.

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
LEVEL: Final = 0.001
"""Probability with which right noise is refused."""


@dataclass(frozen=True)
class ResidualNoise:
    """The noise of a release, measured.

    Attributes:
        ratio: its standard deviation over the claimed one.
        numbers: how many independent numbers it was measured by.
        p_value: probability that noise of the claimed size is as small as this, or smaller.
    """

    ratio: float
    numbers: int
    p_value: float

    @property
    def enough(self) -> bool:
        """Whether the claimed noise is not refuted, at `LEVEL`."""
        return self.p_value >= LEVEL

    @property
    def smallest_sure(self) -> float:
        """Less than this share of the claimed noise is refused, 999 times in 1000."""
        return math.sqrt(chi2.ppf(LEVEL, self.numbers) / chi2.ppf(1 - LEVEL, self.numbers))


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
        p_value=float(chi2.cdf(squares, numbers)),
    )
