"""The table of a finished benchmark beside published figures: terminal and `benchmark.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from lift.files import write_json
from lift.metrics.table import BETTER, entries
from lift.records.metrics import METRICS_FILE, Metrics
from lift.records.published import PUBLISHED_FILE, Published
from lift.records.run import read_run_record
from lift.report.terms import METHODS, METRICS, in_known_order, method_term, metric_decimals
from lift.strict_json import parse_json, parse_model
from lift_benchmarks.public.folders import Benchmark

SUMMARY_FILE: Final = "benchmark.json"
SHOWN: Final[dict[Benchmark, tuple[str, ...]]] = {
    "brats": ("psnr_crop_db", "ssim_crop", "psnr_db", "ssim", "dz_corr"),
    "synthrad": ("mae", "mae_bone", "mae_soft", "psnr_db", "ssim", "ms_ssim_ct", "dz_corr"),
}
"""Columns of each benchmark: the challenge's figures first."""


def write_summary(run: Path, out: Path, benchmark: Benchmark) -> Path:
    """Write `out/benchmark.json` from the records of a finished run, and return its path."""
    metrics = parse_model(Metrics, (run / METRICS_FILE).read_bytes())
    record = read_run_record(run)
    told = parse_model(Published, (run / PUBLISHED_FILE).read_bytes())
    first = next(iter(metrics.pooled.values()), {})
    path = out / SUMMARY_FILE
    write_json(
        path,
        {
            "benchmark": benchmark,
            "phantom": record.phantom,
            "statement": "PHANTOM" if record.phantom else "real volumes",
            "data_statement": record.data_statement,
            "title": told.title,
            "held_out": max((measure.n or 0 for measure in first.values()), default=0),
            "methods": {row: entries(table) for row, table in metrics.pooled.items()},
            "differences": {
                name: entries(table) for name, table in metrics.comparisons.pooled.items()
            },
            "published": told.model_dump(mode="json"),
        },
    )
    return path


def show(console: Console, path: Path) -> None:
    """Both tables on a terminal."""
    data: dict[str, Any] = parse_json(path.read_bytes())
    mark = "PHANTOM volumes; " if data["phantom"] else ""
    own = Table(
        title=f"{data['title']}: {mark}means over {data['held_out']} held-out persons, "
        "95% intervals"
    )
    own.add_column("row", no_wrap=True)
    columns = [
        metric
        for metric in SHOWN[data["benchmark"]]
        if any(metric in figures for figures in data["methods"].values())
    ]
    units = {
        metric: next(f[metric]["unit"] for f in data["methods"].values() if metric in f)
        for metric in columns
    }
    for metric in columns:
        arrow = {"higher": "↑", "lower": "↓"}[BETTER[metric]]
        unit = f", {units[metric]}" if units[metric] else ""
        own.add_column(f"{METRICS[metric].label}{unit} {arrow}", justify="right")
    for row in in_known_order(set(data["methods"]), METHODS):
        figures = data["methods"][row]
        cells = [_cell(figures.get(metric), metric, units[metric]) for metric in columns]
        own.add_row(method_term(row).label, *cells)
    console.print(own)
    told = data["published"]
    others = Table(
        title="Published figures" + (" (PHANTOM run: not comparable)" if data["phantom"] else ""),
        caption=told["statement"],
    )
    for heading in ("method", "figure", "source", "what is not comparable"):
        others.add_column(heading, overflow="fold")
    for one in told["rows"]:
        figure = f"{one['low']:g}" + (f" to {one['high']:g}" if one["high"] is not None else "")
        others.add_row(one["method"], f"{one['metric']}: {figure}", one["source"], one["differs"])
    console.print(others)


def _cell(measure: dict[str, Any] | None, metric: str, unit: str) -> str:
    if measure is None:
        return ""
    decimals = metric_decimals(metric, unit)
    text = f"{measure['value']:.{decimals}f}"
    if measure.get("low") is None:
        return text
    return f"{text} [{measure['low']:.{decimals}f}, {measure['high']:.{decimals}f}]"
