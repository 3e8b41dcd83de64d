"""From finished trainings to one table and `reach.json`; no patient's name is in either."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from lift.config.plan import WindowRule
from lift.config.simulation import SimulationConfig
from lift.errors import ConfigError
from lift.files import write_json
from lift.metrics.table import PatientMetrics, entries, summarise
from lift.randomness import derive_seed
from lift.strict_json import parse_json
from lift_benchmarks.reach.config import Entry, ReachConfig, list_entries, reference_row
from lift_benchmarks.reach.run import PLAIN_ROWS, Digests, entry_file, is_finished

NO_MIXER: Final = "no_mixer"
SHOWN: Final = ("psnr_db", "psnr_invariant_db", "ssim", "dz_corr", "hf_error")
_FILE: Final = "reach.json"
_SEED: Final = derive_seed(0, "reach")


@dataclass(frozen=True)
class Drawn:
    """What the figure needs of one data set.

    Attributes:
        name: of its settings.
        phantom: whether every site is a phantom.
        held_out: patients.
        reference: PSNR of the pooled rival, dB; None where it is not there.
        lines: row without a network -> PSNR, dB.
        points: (kind, mode) -> (parameters, PSNR, low, high), by parameters; the ends are those
            of the paired difference to the reference, None where there is none.
    """

    name: str
    phantom: bool
    held_out: int
    reference: float | None
    lines: Mapping[str, float]
    points: Mapping[tuple[str, str], Sequence[tuple[int, float, float | None, float | None]]]


def write_summary(
    config: SimulationConfig, reach: ReachConfig, digests: Digests, out: Path
) -> bool:
    """Write `reach.json` of what has finished; False when there is nothing to write yet.

    A training that is not there in every fold, or of other settings, is left out.

    Args:
        config: the data set's.
        reach: the models'.
        digests: every file that there should be in the end.
        out: folder of the result.
    """
    finished = {path for path, digest in digests.items() if is_finished(path, digest)}
    rows_files = {path for path in digests if path.stem == PLAIN_ROWS}
    if not rows_files <= finished:
        return False
    folders = sorted(path.parent for path in rows_files)
    plain = [_read(folder / f"{PLAIN_ROWS}.json") for folder in folders]
    figures: dict[str, dict[str, dict[str, PatientMetrics]]] = {}
    for fold in plain:
        for row, sites in fold["rows"].items():
            _add(figures, row, sites)
    models = []
    for entry in list_entries(reach):
        files = [entry_file(folder, entry) for folder in folders]
        if not finished.issuperset(files):
            continue
        records = [_read(file) for file in files]
        for record in records:
            _add(figures, entry.name, record["metrics"])
        models.append(_model_row(entry, records))
    rows = [*plain[0]["rows"], *(model["name"] for model in models)]
    references = (NO_MIXER, reference_row(reach))
    pairs = [(row, other) for row in rows for other in references if row != other]
    rule = config.plan.preprocessing.rule(config.plan.task.target)
    table = summarise(
        figures,
        seed=_SEED,
        comparisons=pairs,
        protocol="ct" if isinstance(rule, WindowRule) else "mr",
    )
    people = [fold["patients"] for fold in plain]
    write_json(
        out / _FILE,
        {
            "name": config.name,
            "data_statement": config.data_statement,
            "phantom": config.phantom,
            "folds": len(folders),
            "patients": {part: [fold[part] for fold in people] for part in people[0]},
            "held_out": sum(fold["test"] for fold in people),
            "settings": reach.model_dump(mode="json"),
            "reference": reference_row(reach),
            "models": models,
            "pooled": {row: entries(table.pooled[row]) for row in rows},
            "comparisons": {
                name: entries(found) for name, found in table.comparisons.pooled.items()
            },
        },
    )
    return True


def _model_row(entry: Entry, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parameters = records[0]["parameters"]
    flat = all(record["stopped"] == "plateau" for record in records)
    return {
        "name": entry.name,
        "kind": entry.model.kind,
        "width": entry.model.width,
        "mode": entry.mode,
        "parameters": parameters,
        # a pooled training sends nothing: what a round of the same network would send
        "update_bytes": {"float16": 2 * parameters, "float32": 4 * parameters},
        "steps": [record["steps"] for record in records],
        "kept": [record["kept"] for record in records],
        "core_s": round(sum(record["core_s"] for record in records), 1),
        "stopped": "plateau" if flat else "budget",
        "curve_of": records[0]["curve_of"],
        "curves": [record["curve"] for record in records],
    }


def _add(
    figures: dict[str, dict[str, dict[str, PatientMetrics]]],
    row: str,
    sites: Mapping[str, Mapping[str, PatientMetrics]],
) -> None:
    for site, patients in sites.items():
        figures.setdefault(site, {}).setdefault(row, {}).update(patients)


def read_drawn(out: Path) -> Drawn:
    """What is drawn of a finished folder.

    Raises:
        ConfigError: there is no result in it.
    """
    data = read_summary(out)
    means = {row: table["psnr_db"]["value"] for row, table in data["pooled"].items()}
    reference = means.get(data["reference"])
    points: dict[tuple[str, str], list[tuple[int, float, float | None, float | None]]] = {}
    for model in data["models"]:
        pair = data["comparisons"].get(f"{model['name']} - {data['reference']}", {}).get("psnr_db")
        low = high = None
        if reference is not None and pair is not None and pair["low"] is not None:
            low, high = reference + pair["low"], reference + pair["high"]
        point = (model["parameters"], means[model["name"]], low, high)
        points.setdefault((model["kind"], model["mode"]), []).append(point)
    names = {model["name"] for model in data["models"]}
    return Drawn(
        name=data["name"],
        phantom=data["phantom"],
        held_out=data["held_out"],
        reference=reference,
        lines={row: mean for row, mean in means.items() if row not in names},
        points={key: sorted(found) for key, found in points.items()},
    )


def read_summary(out: Path) -> dict[str, Any]:
    """The content of `reach.json`.

    Raises:
        ConfigError: there is no result in the folder.
    """
    try:
        return _read(out / _FILE)
    except (OSError, ValueError):
        raise ConfigError(
            "there is nothing to show",
            where=str(out),
            seen=f"no {_FILE}",
            remedy="Give the folder of a run that has finished at least one row.",
        ) from None


def show(console: Console, out: Path) -> None:
    """The table on a terminal."""
    data = read_summary(out)
    reference = data["reference"]
    marks = "PHANTOM volumes; " if data["phantom"] else ""
    table = Table(
        title=f"{data['name']}: {marks}means over {data['held_out']} held-out patients, 95% "
        "intervals",
        caption=f"against {reference}: mean paired difference of PSNR, dB; core s: of all folds; "
        "update: of a round in half precision",
    )
    table.add_column("row", no_wrap=True)
    for heading in (
        "parameters",
        "update kB",
        "steps",
        "core s",
        "stopped",
        "PSNR dB",
        "best contrast dB",
        "SSIM",
        "dz_corr",
        "HF error",
        f"- {reference}",
        f"- {NO_MIXER}",
    ):
        table.add_column(heading, justify="right")
    models = {model["name"]: model for model in data["models"]}
    for row, figures in data["pooled"].items():
        model = models.get(row)
        about = ["0", "", "", "", ""]
        if model is not None:
            about = [
                f"{model['parameters']:,}",
                f"{model['update_bytes']['float16'] / 1000:.0f}",
                "+".join(map(str, model["steps"])),
                f"{model['core_s']:.0f}",
                model["stopped"],
            ]
        if model is not None and next(iter(models)) == row:
            table.add_section()
        table.add_row(
            row,
            *about,
            *(_mean(figures, metric) for metric in SHOWN),
            _difference(data, row, reference),
            _difference(data, row, NO_MIXER),
        )
    console.print(table)


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = parse_json(path.read_bytes())
    return data


def _mean(figures: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    if metric not in figures:
        return ""
    value = figures[metric]["value"]
    return f"{value:.2f}" if metric.endswith("_db") else f"{value:.3f}"


def _difference(data: Mapping[str, Any], row: str, reference: str) -> str:
    found = data["comparisons"].get(f"{row} - {reference}", {}).get("psnr_db")
    if found is None or not math.isfinite(found["value"]):
        return ""
    if found["low"] is None:
        return f"{found['value']:+.2f}"
    return f"{found['value']:+.2f} [{found['low']:.2f}, {found['high']:.2f}]"
