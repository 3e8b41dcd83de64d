"""From finished cells to one table, `summary.json` and `summary.png`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from lift.files import write_json
from lift.metrics.intervals import Interval, bootstrap_mean, paired_difference
from lift.randomness import derive_seed
from lift.strict_json import parse_json
from lift_benchmarks.utility.cells import Cell, cell_order
from lift_benchmarks.utility.figure import draw

ROWS: Final = ("no_mixer", "z_median", "z_filter", "federated")
METRICS: Final = ("psnr_db", "dz_corr", "hf_error", "hf_coherence")
_SEED: Final = derive_seed(0, "utility")


@dataclass(frozen=True)
class CellSummary:
    """One row of the table.

    Attributes:
        patients: training patients of all sites together.
        mode: privacy mode.
        epsilon: what a patient is promised; None: no promise.
        delta: at which; None without privacy.
        values: METHOD -> METRIC -> mean over held-out patients.
        gains: `no_mixer` or `z_filter` -> METRIC -> mean paired difference of the federated
            mixer, with its 95% interval.
        kept: METRIC -> gain over no_mixer as a share of the cohort's gain without privacy; None
            where that cell has not run.
    """

    patients: int
    mode: str
    epsilon: float | None
    delta: float | None
    values: Mapping[str, Mapping[str, float]]
    gains: Mapping[str, Mapping[str, Interval]]
    kept: Mapping[str, float | None]


def summarise_cells(out: Path) -> list[CellSummary]:
    """Every finished cell of a folder, in the table's order."""
    found: dict[Cell, dict[str, Any]] = {}
    for path in sorted((out / "cells").glob("*.json")):
        data = parse_json(path.read_bytes())
        found[Cell(data["patients"], data["mode"], data["epsilon"])] = data
    summaries: dict[Cell, CellSummary] = {}
    for cell in cell_order(list(found)):
        data = found[cell]
        methods = data["methods"]
        gains = {
            over: {metric: _gain(methods, over, metric) for metric in METRICS}
            for over in ("no_mixer", "z_filter")
        }
        open_cell = summaries.get(Cell(cell.patients, "none"))
        summaries[cell] = CellSummary(
            patients=cell.patients,
            mode=cell.mode,
            epsilon=cell.epsilon,
            delta=data["delta"],
            values={row: {m: _mean(methods[row], m) for m in METRICS} for row in ROWS},
            gains=gains,
            kept={
                metric: None
                if open_cell is None
                else gains["no_mixer"][metric].value / open_cell.gains["no_mixer"][metric].value
                for metric in ("psnr_db", "dz_corr")
            },
        )
    return list(summaries.values())


def write_summary(out: Path) -> None:
    """Write `summary.json` and `summary.png` of what has finished."""
    cells = summarise_cells(out)
    write_json(
        out / "summary.json",
        {
            "statement": "PHANTOM volumes; no patient was scanned",
            "unit": "patient",
            "relation": "add_remove",
            "cells": [asdict(cell) for cell in cells],
        },
    )
    draw(cells, out / "summary.png")


def show(console: Console, cells: Sequence[CellSummary]) -> None:
    """The table on a terminal."""
    table = Table(
        title="gain under patient-level privacy, PHANTOM volumes; means over held-out patients, "
        "95% intervals",
        caption="kept: share of the gain over no_mixer that the same cohort has without privacy; "
        "z_filter spends the same epsilon",
    )
    table.add_column("patients", justify="right")
    table.add_column("mode", no_wrap=True)
    table.add_column("epsilon", justify="right")
    for heading in (
        "PSNR - no_mixer",
        "kept",
        "dz_corr - no_mixer",
        "kept",
        "PSNR - z_filter",
        "dz_corr - z_filter",
        "HF error",
        "coherence",
    ):
        table.add_column(heading, justify="right")
    last = None
    for cell in cells:
        if last is not None and last != cell.patients:
            table.add_section()
        last = cell.patients
        over, against = cell.gains["no_mixer"], cell.gains["z_filter"]
        table.add_row(
            str(cell.patients),
            cell.mode,
            epsilon_text(cell.epsilon),
            _interval(over["psnr_db"]),
            _share(cell.kept["psnr_db"]),
            _interval(over["dz_corr"]),
            _share(cell.kept["dz_corr"]),
            _interval(against["psnr_db"]),
            _interval(against["dz_corr"]),
            f"{cell.values['federated']['hf_error']:.3f}",
            f"{cell.values['federated']['hf_coherence']:.3f}",
        )
    console.print(table)
    console.print(_rows(cells))


def epsilon_text(epsilon: float | None) -> str:
    """The level as a table shows it."""
    return "infinite" if epsilon is None else f"{epsilon:g}"


def _rows(cells: Sequence[CellSummary]) -> Table:
    """The plain rows that stand beside every mixer."""
    table = Table(title="the rows beside it")
    for heading in ("patients", "row", "epsilon", "PSNR dB", "dz_corr", "HF error", "coherence"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    seen = set()
    for cell in cells:
        for row in ROWS[:3]:
            # what needs no patient is the same in every cell
            key = (row, None) if row != "z_filter" else (row, (cell.patients, cell.epsilon))
            if key in seen:
                continue
            seen.add(key)
            values = cell.values[row]
            table.add_row(
                str(cell.patients) if row == "z_filter" else "",
                row,
                epsilon_text(cell.epsilon) if row == "z_filter" else "",
                f"{values['psnr_db']:.2f}",
                *(f"{values[metric]:.3f}" for metric in METRICS[1:]),
            )
    return table


def _gain(methods: Mapping[str, Any], over: str, metric: str) -> Interval:
    pairs = [
        (figures[metric], methods[over][patient][metric])
        for patient, figures in sorted(methods["federated"].items())
        if metric in figures and metric in methods[over][patient]
    ]
    mixed, other = zip(*pairs, strict=True)
    return paired_difference(mixed, other, seed=_SEED).interval


def _mean(figures: Mapping[str, Mapping[str, float]], metric: str) -> float:
    values = [each[metric] for _, each in sorted(figures.items()) if metric in each]
    return bootstrap_mean(values, seed=_SEED).value


def _interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:+.2f}"
    return f"{found.value:+.2f} [{found.low:.2f}, {found.high:.2f}]"


def _share(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.0%}"
