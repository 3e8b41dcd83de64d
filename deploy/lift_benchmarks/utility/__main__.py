"""`make bench-privacy`: measure the cost of patient-level privacy. Writes a table and a figure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lift.commands import run_command

PROGRAM = "bench-privacy"
_SETTINGS = Path(__file__).parent / "settings.yaml"
_PIPE_WIDTH = 170
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def bench(
    config: Annotated[Path, typer.Option(help="Settings (YAML).")] = _SETTINGS,
    output: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("out/bench-privacy"),
    cohort: Annotated[
        list[int] | None, typer.Option(help="Run only this cohort size. May be repeated.")
    ] = None,
) -> None:
    """Measure the gain over no mixer and over an equally private z-filter, on phantoms.

    It takes hours. Run the same command again to go on: finished cells are kept, and one that was
    broken off goes on from its last round. Table and figure are written after every cell.
    """
    # torch reads its environment when it is imported, and `main` sets it
    from lift_benchmarks.utility.cells import UtilityConfig, list_cells
    from lift_benchmarks.utility.run import run_cell
    from lift_benchmarks.utility.summary import show, summarise_cells, write_summary
    from lift_simulation.progress import Reporter, table_console

    settings = UtilityConfig.from_yaml(config)
    reporter = Reporter(Console(stderr=True), {})
    cells = [
        cell for cell in list_cells(settings) if cohort is None or cell.patients in set(cohort)
    ]
    for done, cell in enumerate(cells, start=1):
        with reporter.stage(f"{cell.name} ({done} of {len(cells)})"):
            run_cell(settings, cell, output, reporter)
        write_summary(output)
    show(table_console(_PIPE_WIDTH), summarise_cells(output))
    sys.stdout.write(f"result: {output / 'summary.json'}\nfigure: {output / 'summary.png'}\n")


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)


if __name__ == "__main__":
    main()
