"""`make downstream`: test whether new volumes help a segmenter. Writes a table and a figure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lift.commands import run_command

PROGRAM = "downstream"
_FOLDER = Path(__file__).parent
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def downstream(
    output: Annotated[Path, typer.Option(help="Folder of the result.")],
    config: Annotated[
        Path, typer.Option(help="Settings of a simulation of new volumes (YAML).")
    ] = _FOLDER / "phantom.yaml",
    settings: Annotated[Path, typer.Option(help="Pairs and segmenters (YAML).")] = _FOLDER
    / "settings.yaml",
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="Run only this cell, ROW or ROW-NUMBER, with all seeds. May be repeated."
        ),
    ] = None,
) -> None:
    """Measure the Dice of a segmenter trained on few patients, on generated pairs, and on both.

    Takes about 15 minutes. Run the same command again to resume: finished trainings are kept. The
    table and the figure are written after every training.
    """
    # torch reads its environment when it is imported, and `main` sets it
    from lift.config.simulation import SimulationConfig
    from lift.errors import ConfigError
    from lift_benchmarks.downstream.config import DownstreamConfig, list_entries
    from lift_benchmarks.downstream.run import Digests, check_data_set, run_data_set
    from lift_benchmarks.downstream.summary import (
        FIGURE_FILE,
        TABLE_FILE,
        read_summary,
        table,
        write_summary,
    )
    from lift_simulation.progress import Reporter

    simulation, chosen = SimulationConfig.from_yaml(config), DownstreamConfig.from_yaml(settings)
    entries = list_entries(chosen, check_data_set(simulation, chosen))
    unknown = sorted(set(cell or []) - {entry.cell for entry in entries})
    if unknown:
        raise ConfigError(
            "there is no such cell",
            where="--cell",
            seen=", ".join(unknown),
            remedy=f"Give one of: {', '.join(sorted({entry.cell for entry in entries}))}.",
        )
    reporter = Reporter(Console(stderr=True), {})
    reporter.line(f"{simulation.name}: {simulation.data_statement}")

    def written(digests: Digests) -> None:
        write_summary(simulation, chosen, digests, output)

    wanted = entries if cell is None else [entry for entry in entries if entry.cell in cell]
    run_data_set(simulation, chosen, output, reporter, entries=wanted, done=written)
    sys.stdout.write(table(read_summary(output)))
    sys.stdout.write(f"result: {output / TABLE_FILE}\nfigure: {output / FIGURE_FILE}\n")


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)


if __name__ == "__main__":
    main()
