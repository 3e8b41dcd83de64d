"""Which model a site uses: the simplest that its own patients do not show to be worse.

Joining must never cost a hospital anything against staying out. So each site compares what it could
use, simplest first, on patients whom none of it was fitted to, and takes the first one that is
within one standard error of the best (the one-standard-error rule of Breiman et al. 1984).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Base = Literal["no_mixer", "curves", "z_filter", "mixer"]
FEWEST_PATIENTS: Final = 2
"""With fewer nothing can be compared."""


@dataclass(frozen=True)
class Use:
    """What of a finished mixer a site uses.

    Attributes:
        base: the generator alone, the site's curves on it, the fitted z-filter on those, or the
            mixer on those.
        strength: how much of its change of the generator's prediction, 0 to 1.
    """

    base: Base = "mixer"
    strength: float = 1.0

    @property
    def name(self) -> str:
        """As a table shows it: `mixer x 0.5`."""
        return self.base if self.strength == 1 else f"{self.base} x {self.strength:g}"


STRENGTHS: Final = (0.75, 0.5, 0.25)
"""Beside 1: the steps of a mixer toward no mixer."""
USES: Final = (
    Use("no_mixer"),
    Use("curves"),
    Use("z_filter"),
    Use("mixer"),
    *(Use("mixer", strength) for strength in STRENGTHS),
)
"""What a site may use, simplest first. A step toward no mixer costs as much as the mixer: it is
taken where the mixer itself is clearly too much."""


@dataclass(frozen=True)
class Choice:
    """What a site uses.

    Attributes:
        method: name of the method.
        psnr_db: by method, the mean over the patients; empty where nothing could be compared.
        patients: how many were compared.
    """

    method: str
    psnr_db: dict[str, float]
    patients: int


def blend(pred: Floats, result: Floats, strength: float) -> Floats:
    """A part (0 to 1) of what a method changes of the prediction; 1 is its result itself."""
    if strength == 1:
        return result
    return np.asarray(pred + np.float32(strength) * (result - pred))


def choose(figures: Mapping[str, Sequence[float]], *, otherwise: str) -> Choice:
    """The simplest method within one standard error of the best.

    Args:
        figures: method, simplest first -> PSNR in dB of each patient, in one order for all.
        otherwise: the method where there are too few patients to compare.

    Raises:
        ValueError: figures of different length, or one that is not finite.
    """
    if not figures:
        return Choice(otherwise, {}, 0)
    names = list(figures)
    values = np.array([figures[name] for name in names], dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError("every method needs a finite figure of every patient")
    patients = values.shape[1]
    if patients < FEWEST_PATIENTS:
        return Choice(otherwise, {}, patients)
    best = values[int(values.mean(1).argmax())]
    chosen = names[0]
    for name, own in zip(names, values, strict=True):
        lost = best - own
        if lost.mean() <= lost.std(ddof=1) / np.sqrt(patients):
            chosen = name
            break
    means = {name: float(own.mean()) for name, own in zip(names, values, strict=True)}
    return Choice(chosen, means, patients)
