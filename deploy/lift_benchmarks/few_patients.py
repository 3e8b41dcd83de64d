"""`make few-patients`: measure the gain of a federation by the number of patients of a site."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from matplotlib.figure import Figure
from rich.console import Console

from lift.commands import run_command
from lift.config.simulation import SimulationConfig
from lift.errors import ConfigError
from lift.files import write_atomically, write_json
from lift.records.run import read_run_record
from lift.report.terms import method_term
from lift.strict_json import parse_json
from lift_simulation.shipped import shipped_settings

PROGRAM = "few-patients"
_SETTINGS: Final = Path("presets/few-patients.yaml")
SUMMARY_FILE: Final = "few-patients.json"
FIGURE_FILE: Final = "few-patients.png"
_ROWS: Final = ("curves_z_filter", "local_only", "local_curves", "federated_curves")
_REFERENCE: Final = "local_curves"
_MAIN: Final = "federated_curves"
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def few_patients(
    config: Annotated[
        Path | None,
        typer.Option(help="Settings (YAML) of the sites. Default: the preset few-patients."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("out/few-patients"),
    number: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Training patients of each site. May be repeated; all is run last."
        ),
    ] = None,
) -> None:
    """Run one federation for each number of training patients, with the same test patients.

    Run the same command again to resume. The table and the figure are written after every
    federation.
    """
    config = config or shipped_settings() / _SETTINGS
    settings = SimulationConfig.from_yaml(config)
    if settings.several_runs or settings.late or settings.plan.mixer.contrast == "none":
        raise ConfigError(
            "these settings cannot be compared by number of patients",
            where=str(config),
            seen="folds, a site that joins afterwards, or a mixer without contrast",
            remedy="Give settings of one federation with mixer.contrast: curves.",
        )
    from lift.logs import log_to_file
    from lift_simulation import run
    from lift_simulation.progress import Reporter

    reporter = Reporter(Console(stderr=True), {})
    folders: list[Path] = []
    for most in (*sorted(set(number or (1, 2, 4))), None):
        folder = output / f"train-{'all' if most is None else most}"
        reporter.line(f"{folder.name}: {settings.data_statement}")
        _share_cohorts(folders, folder)
        with log_to_file(folder / "log.txt"):
            run.simulate(limited(settings, most, output / "cache"), folder, reporter, command="")
        folders.append(folder)
        write_summary(folders, output)
    shutil.rmtree(output / "cache", ignore_errors=True)
    sys.stdout.write(f"result: {output / SUMMARY_FILE}\nfigure: {output / FIGURE_FILE}\n")


def limited(settings: SimulationConfig, most: int | None, cache: Path) -> SimulationConfig:
    """The same federation with at most so many training patients a site."""
    split = settings.plan.split.model_copy(update={"most_training": most})
    return settings.model_copy(
        update={
            "plan": settings.plan.model_copy(update={"split": split}),
            "compare": ("curves", "local_only", "local_curves"),
            "clean_phantom": None,
            "cache": settings.cache.model_copy(update={"folder": cache}),
        }
    )


def write_summary(folders: Sequence[Path], output: Path) -> None:
    """Table and figure of the federations that are finished."""
    cells = [_cell(folder) for folder in folders]
    write_json(output / SUMMARY_FILE, {"cells": cells})
    phantom = all(cell["phantom"] for cell in cells)
    write_atomically(output / FIGURE_FILE, drawn(cells, phantom=phantom))


def _cell(folder: Path) -> dict[str, Any]:
    metrics = parse_json((folder / "metrics.json").read_text(encoding="utf-8"))
    record = read_run_record(folder)
    training = [site.patients["train"] for site in record.sites]
    difference = metrics["comparisons"]["pooled"][f"{_MAIN} - {_REFERENCE}"]
    return {
        "training_patients": training,
        "mean_training_patients": sum(training) / len(training),
        "phantom": record.phantom,
        "psnr_db": {
            row: metrics["pooled"][row]["psnr_db"]
            for row in ("no_mixer", *_ROWS, "chosen")
            if row in metrics["pooled"]
        },
        f"{_MAIN} - {_REFERENCE}": {
            metric: difference[metric]
            for metric in ("psnr_db", "psnr_invariant_db", "dz_corr")
            if metric in difference
        },
    }


def drawn(cells: Sequence[Mapping[str, Any]], *, phantom: bool) -> bytes:
    """The figure, PNG: PSNR of the rows, and below what joining adds to training alone."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained", dpi=120)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    numbers = [cell["mean_training_patients"] for cell in cells]
    for row in _ROWS:
        term = method_term(row)
        values = [cell["psnr_db"][row]["value"] for cell in cells]
        above.plot(numbers, values, color=term.colour, marker=term.marker, label=term.label)
    gains = [cell[f"{_MAIN} - {_REFERENCE}"]["psnr_db"] for cell in cells]
    values = [gain["value"] for gain in gains]
    spread = [
        [gain["value"] - (gain["value"] if gain["low"] is None else gain["low"]) for gain in gains],
        [
            (gain["value"] if gain["high"] is None else gain["high"]) - gain["value"]
            for gain in gains
        ],
    ]
    below.errorbar(
        numbers, values, yerr=spread, color=method_term(_MAIN).colour, marker="o", capsize=3
    )
    below.axhline(0, color="#999999", linewidth=0.8)
    above.set_ylabel("PSNR (dB)")
    below.set_ylabel("joining adds (dB)")
    below.set_xlabel("training patients of each site")
    below.set_xscale("log", base=2)
    below.set_xticks(numbers, [f"{number:.3g}" for number in numbers])
    below.minorticks_off()
    for panel in (above, below):
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    above.legend(frameon=False, fontsize=9)
    kind = "PHANTOM volumes" if phantom else "real volumes"
    tested = gains[-1]["n"]
    figure.suptitle(
        f"{kind}, the same {tested} test patients\nbelow: {method_term(_MAIN).label} minus "
        f"{method_term(_REFERENCE).label}, 95% intervals",
        fontsize=10,
    )
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _share_cohorts(done: Sequence[Path], folder: Path) -> None:
    """The phantoms of the first federation are those of all: linked, not written again."""
    if done and (done[0] / "cohorts").is_dir() and not (folder / "cohorts").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(done[0] / "cohorts", folder / "cohorts", copy_function=os.link)


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)


if __name__ == "__main__":
    main()
