"""The aims of a run that makes new volumes, and what looks better than it can be.

An aim is met by a figure that lies within its bound. A figure that is better than the frozen
decoder can draw is none: it says that the distance was pleased, not that the volumes are good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from lift.markup import Markup, foreign, number, pointer, table, tag
from lift.records.metrics import METRICS_FILE, Measure, Table
from lift.records.shipped import Source
from lift.report.read import Run
from lift.report.terms import (
    GENERATED_METRICS,
    REAL_ROWS,
    SHIPPED_ROWS,
    method_term,
)

FRECHET: Final = ("frechet_axial", "frechet_coronal", "frechet_sagittal")
CEILING: Final = "reconstruction"
WARNING: Final = "closer to real than the decoder can draw: a warning, not a success"

_AUC: Final = {"auc_content": 0.75, "auc_texture": 0.85}
_SHARE_OF_CEILING: Final = 1.3
_BELOW_CEILING: Final = 0.9
_ORDER: Final = 0.95
_OUTCOMES: Final = {"met": "▲ met", "missed": "▼ missed", "warning": f"▼ {WARNING}"}
Outcome = Literal["met", "missed", "warning"]


@dataclass(frozen=True)
class Aim:
    """One aim of one row: the figure's metric, its bound in words, and what became of it."""

    row: str
    metric: str
    value: float
    bound: str
    outcome: Outcome


def aims_of(pooled: Mapping[str, Table], shipped: Source | None = None) -> list[Aim]:
    """The aims of all rows that a run makes for use and has figures of.

    A mapper that is not shipped has figures and no aims.

    - AUC of content at most .75, of texture .85, and as far below .5 at most: an AUC far below it
      says that the sets are not independent, not that they are alike;
    - Frechet distance of each plane at most 1.3 times that of the reconstruction; a warning below
      .9 times;
    - order correlation at least .95;
    - mean distance to the nearest training volume not below the held-out volumes': their interval's
      lower end.

    Args:
        pooled: METHOD -> METRIC -> measure.
        shipped: what the run ships, where it had a choice.
    """
    rows = SHIPPED_ROWS[:1] if shipped == "gaussian" else SHIPPED_ROWS
    return [aim for row in rows if row in pooled for aim in _aims_of_row(row, pooled)]


def warnings(pooled: Mapping[str, Table]) -> dict[tuple[str, str], str]:
    """(METHOD, METRIC) of generated rows whose Frechet distance beats the reconstruction's by 10%.

    Rows of real volumes have no warning: nothing had to draw them.
    """
    return {
        (row, metric): WARNING
        for row in pooled
        if row not in REAL_ROWS
        for metric in FRECHET
        if _beats_ceiling(_value(pooled, row, metric), _value(pooled, CEILING, metric))
    }


def headline(run: Run) -> str:
    """How many aims each shipped row meets, in one line."""
    aims = aims_of(run.metrics.pooled, run.record.shipped) if run.metrics is not None else []
    if not aims:
        return "The run has no figures yet."
    parts = []
    for row in dict.fromkeys(aim.row for aim in aims):
        own = [aim.outcome for aim in aims if aim.row == row]
        part = f"{method_term(row).label}: {own.count('met')} of {len(own)} aims met"
        if found := own.count("warning"):
            part += f", {found} {'warning' if found == 1 else 'warnings'}"
        parts.append(part)
    return "; ".join(parts) + ". See the table of aims."


def aims_content(run: Run) -> tuple[Markup, ...]:
    """The table of aims, and the warnings of other rows; empty without figures."""
    aims = aims_of(run.metrics.pooled, run.record.shipped) if run.metrics is not None else []
    if run.metrics is None or not aims:
        return ()
    rows = []
    for aim in aims:
        place = pointer(METRICS_FILE, "pooled", aim.row, aim.metric, "value")
        colour = None if aim.outcome == "met" else "worse"
        rows.append(
            [
                foreign(method_term(aim.row).label),
                tag("td", GENERATED_METRICS[aim.metric].label),
                tag("td", number(aim.value, place, 3)),
                tag("td", aim.bound),
                tag("td", _OUTCOMES[aim.outcome], class_=colour),
            ]
        )
    caption = (
        "Aims for the released volumes of this run, against the held-out volumes of all sites."
    )
    headings = ["row", "aim", "figure", "bound", "outcome"]
    content = [table(caption, headings, rows, kind="words")]
    lacked = [GENERATED_METRICS[name].label for name in _AUC if not _has(run.metrics.pooled, name)]
    if lacked:
        content.append(
            tag(
                "p",
                f"No figure, so the aim is neither met nor missed: {', '.join(lacked)}.",
                class_="note",
            )
        )
    return tuple(content)


def _has(pooled: Mapping[str, Table], metric: str) -> bool:
    return any(metric in pooled[row] for row in SHIPPED_ROWS if row in pooled)


def _aims_of_row(row: str, pooled: Mapping[str, Table]) -> Iterator[Aim]:
    for metric, most in _AUC.items():
        value = _value(pooled, row, metric)
        if value is not None:
            bound = f"{1 - most:.2f} to {most:.2f}"
            met = max(value, 1 - value) <= most
            yield Aim(row, metric, value, bound, "met" if met else "missed")
    for metric in FRECHET:
        value, ceiling = _value(pooled, row, metric), _value(pooled, CEILING, metric)
        if value is None or ceiling is None:
            continue
        most = _SHARE_OF_CEILING * ceiling
        bound = (
            f"at most {_SHARE_OF_CEILING:g} times the reconstruction's {ceiling:.3f}: {most:.3f}"
        )
        outcome: Outcome = "met" if value <= most else "missed"
        if _beats_ceiling(value, ceiling):
            outcome = "warning"
        yield Aim(row, metric, value, bound, outcome)
    value = _value(pooled, row, "order_correlation")
    if value is not None:
        met = value >= _ORDER
        yield Aim(
            row, "order_correlation", value, f"at least {_ORDER:g}", "met" if met else "missed"
        )
    value = _value(pooled, row, "nearest_distance")
    held_out = pooled.get("held_out", {}).get("nearest_distance", Measure())
    if value is not None and held_out.value is not None:
        least = held_out.value if held_out.low is None else held_out.low
        bound = f"at least {least:.3f}, the lower end of the held-out volumes' {held_out.value:.3f}"
        yield Aim(row, "nearest_distance", value, bound, "met" if value >= least else "missed")


def _beats_ceiling(value: float | None, ceiling: float | None) -> bool:
    return value is not None and ceiling is not None and value < _BELOW_CEILING * ceiling


def _value(pooled: Mapping[str, Table], row: str, metric: str) -> float | None:
    return pooled.get(row, {}).get(metric, Measure()).value
