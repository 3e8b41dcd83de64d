"""Rows, differences and costs of a run with plain networks, as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from lift.records.metrics import Cost, Costs, Measure, Metrics, read_metrics
from lift.records.rows import PLAIN_ROWS
from lift.records.run import read_run_record

SHOWN: Final[Mapping[str, str]] = {
    "psnr_db": "PSNR dB",
    "psnr_invariant_db": "best contrast dB",
    "ssim": "SSIM",
    "dz_corr": "dz_corr",
    "hf_error": "HF error",
    "perceptual": "perceptual",
    "dice": "Dice",
}
"""Figure -> heading; one that the run has not measured has no column."""
_COMPARED: Final = {"psnr_db": ("ours - row, dB", 2), "dice": ("ours - row, Dice", 3)}
_COSTS: Final = (
    *("parameters", "kB a round", "training CPU s", "steps", "stopped"),
    *("volume s", "GFLOP", "one pass", "MB"),
)


def show_rows(console: Console, out: Path) -> None:
    """Quality and costs of a finished run, row by row; nothing where no costs were measured.

    Raises:
        OSError: a record cannot be read.
        ValueError: a record is not what a run writes.
    """
    metrics = read_metrics(out)
    if metrics.costs is None:
        return
    record = read_run_record(out)
    console.print(_quality(metrics, f"{record.name}: {'PHANTOM' if record.phantom else 'real'}"))
    console.print(_costs(metrics, metrics.costs))


def _quality(metrics: Metrics, of: str) -> Table:
    main = metrics.main
    held_out = max(m.n or 0 for figures in metrics.pooled.values() for m in figures.values())
    measured = {metric for figures in metrics.pooled.values() for metric in figures}
    shown = [metric for metric in SHOWN if metric in measured]
    compared = [metric for metric in _COMPARED if metric in measured]
    table = Table(
        title=f"{of} volumes; means over {held_out} test patients, 95% intervals",
        caption=f"ours: {main}",
    )
    table.add_column("row", no_wrap=True)
    for heading in (*(SHOWN[m] for m in shown), *(_COMPARED[m][0] for m in compared)):
        table.add_column(heading, justify="right")
    for row, figures in metrics.pooled.items():
        against = metrics.comparisons.pooled.get(f"{main} - {row}", {})
        table.add_row(
            row,
            *(_mean(figures, metric) for metric in shown),
            *(
                _interval(against.get(metric, Measure()), _COMPARED[metric][1], signed=True)
                for metric in compared
            ),
            style=None if row in PLAIN_ROWS else "bold",
        )
    return table


def _costs(metrics: Metrics, costs: Costs) -> Table:
    threads = "one thread" if costs.threads == 1 else f"{costs.threads} threads"
    table = Table(
        title=f"what a row costs, on {threads}",
        caption="training: at one site, centralised in the one place; a volume: the largest test "
        "volume; one pass: GFLOP without windows",
    )
    table.add_column("row", no_wrap=True)
    for heading in _COSTS:
        table.add_column(heading, justify="right")
    for row in metrics.pooled:
        if row in costs.rows:
            style = None if row in PLAIN_ROWS else "bold"
            table.add_row(row, *_of_row(costs.rows[row]), style=style)
    return table


def _mean(figures: Mapping[str, Measure], metric: str) -> str:
    return _interval(figures.get(metric, Measure()), 2 if metric.endswith("_db") else 3)


def _interval(measure: Measure, decimals: int, *, signed: bool = False) -> str:
    if measure.value is None:
        return ""
    sign = "+" if signed else ""
    value = f"{measure.value:{sign}.{decimals}f}"
    if measure.low is None or measure.high is None:
        return value
    return f"{value} [{measure.low:.{decimals}f}, {measure.high:.{decimals}f}]"


def _of_row(cost: Cost) -> list[str]:
    def told(value: float | None, by: float = 1, decimals: int = 0) -> str:
        return "" if value is None else f"{value / by:,.{decimals}f}"

    return [
        told(cost.parameters),
        told(cost.sent_bytes, 1e3, 1),
        told(cost.training_cpu_s),
        told(cost.steps),
        cost.stopped or "",
        told(cost.inference_s, 1, 2),
        told(cost.inference_flops, 1e9, 1),
        told(cost.one_pass_flops, 1e9, 1),
        told(cost.peak_mb),
    ]
