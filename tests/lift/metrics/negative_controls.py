"""Sets that the judge must reject, each with the aims that must miss it; bodies made of noise.

To add one, give it a line in `CONTROLS`: a set is any function that returns volumes. Volumes of
trained mappers are controls of their own: `tests/lift/unconditional/test_judged_mappers.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter

from lift.metrics.distribution import distribution_figures
from lift.metrics.judge import classifier_figures
from lift.metrics.neighbours import nearest_figures
from lift.metrics.reference import Reference
from lift.metrics.table import MetricValue
from lift.metrics.volume_sets import MeasuredSet
from lift.records.metrics import Measure, Table
from lift.report.aims import Aim, aims_of
from tests.lift.metrics.smooth_volumes import SHAPE, Array, measure, smooth
from tests.lift.metrics.smooth_volumes import body as own_body

COUNT: Final = 40
HELD_OUT, FRESH, TRAINING, CEILING = 0, 1000, 2000, 3000
"""First numbers of four sets of one source."""

TOLD: Final = frozenset({"auc_content", "auc_texture"})


@dataclass(frozen=True)
class Control:
    """A set that is not what it claims, and the metrics whose aims must miss it."""

    make: Callable[[], Sequence[Array]]
    misses: frozenset[str]


@functools.cache
def _anatomy() -> Array:
    return smooth(np.random.default_rng(98), SHAPE, 2.0)


def body(seed: int) -> Array:
    """A body with more of what all share than the other tests' ones: its slices are in order."""
    volume = own_body(seed)
    return np.where(volume > 0, np.clip(volume + 0.12 * _anatomy(), 0.05, 1), 0.0)


@functools.cache
def real_set(first: int, count: int = COUNT) -> MeasuredSet:
    """Bodies number `first` and so on: real volumes, of one source."""
    return measure([body(seed) for seed in range(first, first + count)])


def fresh(change: Callable[[Array, np.random.Generator], Array]) -> Callable[[], list[Array]]:
    def make() -> list[Array]:
        seeds = range(FRESH, FRESH + COUNT)
        return [change(body(seed), np.random.default_rng(seed)) for seed in seeds]

    return make


CONTROLS: Final = {
    "slices shuffled": Control(
        fresh(lambda volume, rng: volume[rng.permutation(len(volume))]),
        TOLD | {"order_correlation", "frechet_coronal", "frechet_sagittal"},
    ),
    "slices of other volumes": Control(
        fresh(
            lambda volume, rng: np.stack(
                [body(int(n))[i] for i, n in enumerate(rng.integers(FRESH, 1040, len(volume)))]
            )
        ),
        frozenset({"auc_texture", "frechet_coronal", "frechet_sagittal"}),
    ),
    "one volume, 60 times": Control(
        lambda: [body(FRESH)] * 60, TOLD | {"frechet_axial", "frechet_coronal"}
    ),
    "copies of training volumes": Control(
        lambda: [body(TRAINING + i) for i in range(COUNT)], frozenset({"nearest_distance"})
    ),
    "noisy copies of training volumes": Control(
        lambda: [
            np.clip(body(TRAINING + i) + np.random.default_rng(i).normal(0, 0.01, SHAPE), 0, 1)
            for i in range(COUNT)
        ],
        frozenset({"nearest_distance", "auc_texture"}),
    ),
    "blurred": Control(
        fresh(lambda volume, rng: np.asarray(gaussian_filter(volume, 0.7))),
        frozenset({"auc_texture", "frechet_coronal"}),
    ),
    "another contrast": Control(
        fresh(lambda volume, rng: volume**1.5), frozenset({"auc_content", "frechet_axial"})
    ),
    "flat": Control(
        fresh(lambda volume, rng: np.full_like(volume, volume.mean())),
        TOLD | {"order_correlation"},
    ),
}


@functools.cache
def reference() -> Reference:
    return Reference(real_set(HELD_OUT), training=real_set(TRAINING))


@functools.cache
def ceiling() -> Table:
    """What a perfect decoder would reconstruct: other real volumes."""
    return _table(figures_of(real_set(CEILING)))


def figures_of(volumes: MeasuredSet) -> dict[str, MetricValue]:
    """All that a report knows of a generated set."""
    training, real = real_set(TRAINING), reference()
    found = distribution_figures(volumes, real, seed=1, training=training, size=COUNT, halves=0)
    return found | classifier_figures(volumes, real.real, seed=1, repeats=4)


def judged(figures: dict[str, MetricValue]) -> list[Aim]:
    """The aims of a run that ships such a set."""
    held_out = nearest_figures(reference().real, real_set(TRAINING))
    rows = {
        "reconstruction": ceiling(),
        "held_out": _table(held_out),
        "federated": _table(figures),
    }
    return aims_of(rows)


@functools.cache
def control_figures(name: str) -> dict[str, MetricValue]:
    return figures_of(measure(CONTROLS[name].make()))


def _table(figures: dict[str, MetricValue]) -> Table:
    return {
        name: Measure(value=found.value, low=found.low, high=found.high, n=found.n)
        for name, found in figures.items()
    }
