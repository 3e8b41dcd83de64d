"""The choice of a site's model: the run's mixer, unless its patients favour another.

Joining must never cost a hospital anything against staying out. So each site compares what it could
use on patients whom none of it was fitted to. It leaves the run's mixer for something simpler that
does better, and for something that costs as much only where the gain is larger than its standard
error. With a few patients the one-standard-error rule toward the simplest (Breiman et al. 1984) is
too timid: on phantoms it loses .1 dB of what is gained here (docs/lab-notes.md).
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
    """The method that a site uses.

    Args:
        figures: method, simplest first -> PSNR in dB of each patient, in one order for all.
        otherwise: the method that nothing needs to speak for: the run's mixer.

    Raises:
        ValueError: figures of different length, one that is not finite, or none of `otherwise`.
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
    if otherwise not in figures:
        raise ValueError(f"no figures of the method {otherwise!r}")
    start = names.index(otherwise)
    gains = values - values[start]
    needed = gains.std(axis=1, ddof=1) / np.sqrt(patients)
    needed[:start] = 0
    means = gains.mean(axis=1)
    better = np.where(means > needed, means, -np.inf)
    # the first of equals is the simplest
    best = int(better.argmax()) if (better > 0).any() else start
    return Choice(
        names[best],
        {name: float(own.mean()) for name, own in zip(names, values, strict=True)},
        patients,
    )
