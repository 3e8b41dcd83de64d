"""Rows, differences and costs of a run with plain networks, as one table on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from lift.records.metrics import Cost, Measure, read_metrics
from lift.records.rows import PLAIN_ROWS
from lift.records.run import read_run_record

SHOWN: Final = ("psnr_db", "psnr_invariant_db", "ssim", "dz_corr", "hf_error")
_HEADINGS: Final = (
    *("PSNR dB", "best contrast dB", "SSIM", "dz_corr", "HF error", "ours - row, dB"),
    *("parameters", "kB a round", "training CPU s", "steps", "stopped"),
    *("volume s", "GFLOP", "one pass", "MB"),
)


def show_costs(console: Console, out: Path) -> None:
    """The table of a finished run; nothing where no costs were measured.

    Raises:
        OSError: a record cannot be read.
        ValueError: a record is not what a run writes.
    """
    metrics = read_metrics(out)
    if metrics.costs is None:
        return
    record = read_run_record(out)
    main = metrics.main
    held_out = max(m.n or 0 for figures in metrics.pooled.values() for m in figures.values())
    what = "PHANTOM volumes; " if record.phantom else ""
    table = Table(
        title=f"{record.name}: {what}means over {held_out} test patients, 95% intervals",
        caption=f"ours: {main}; training: at one site, centralised in the one place; a volume: the "
        f"largest test volume on {metrics.costs.threads} threads; one pass: GFLOP without windows",
    )
    table.add_column("row", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for row, figures in metrics.pooled.items():
        against = metrics.comparisons.pooled.get(f"{main} - {row}", {}).get("psnr_db", Measure())
        cost = metrics.costs.rows.get(row, Cost())
        table.add_row(
            row,
            *(_mean(figures, metric) for metric in SHOWN),
            _interval(against, 2, signed=True),
            *_costs(cost),
            style=None if row in PLAIN_ROWS else "bold",
        )
    console.print(table)


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


def _costs(cost: Cost) -> list[str]:
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
