"""The bench's figure: drawn whole, with no warning, for any number of cohorts and epsilons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lift.metrics.intervals import Interval
from lift_benchmarks.utility.figure import draw

METRICS = ("psnr_db", "dz_corr")
VALUES = {"no_mixer": 1.0, "z_median": 1.2, "z_filter": 1.5, "federated": 2.0}
_GAIN = {metric: Interval(value=1.0, low=0.6, high=1.3, n=9) for metric in METRICS}


@dataclass(frozen=True)
class OneCell:
    """As much of a cell as is drawn."""

    patients: int
    mode: str
    epsilon: float | None

    @property
    def values(self) -> Mapping[str, Mapping[str, float]]:
        return {method: dict.fromkeys(METRICS, value) for method, value in VALUES.items()}

    @property
    def gains(self) -> Mapping[str, Mapping[str, Interval]]:
        return {"no_mixer": _GAIN, "z_filter": _GAIN}


def _cells(cohorts: int, epsilons: list[float | None]) -> list[OneCell]:
    cells = []
    for patients in range(60, 60 * cohorts + 1, 60):
        cells.append(OneCell(patients, "none", None))
        for mode in ("patient-local", "patient-central"):
            cells += [OneCell(patients, mode, epsilon) for epsilon in epsilons]
    return cells


@pytest.mark.parametrize(
    ("cohorts", "epsilons"),
    [(1, []), (1, [8.0]), (1, [1.0, 8.0, None]), (2, [8.0]), (4, [8.0, None])],
)
def test_nothing_of_the_figure_is_cut_off(
    tmp_path: Path, cohorts: int, epsilons: list[float | None]
) -> None:
    path = tmp_path / "summary.png"
    draw(_cells(cohorts, epsilons), path)
    picture = imread(path)[..., :3]
    assert np.ptp(picture) == 1
    for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert edge.min() == 1
