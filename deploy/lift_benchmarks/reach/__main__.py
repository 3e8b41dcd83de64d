"""`make reach`: compare quality with the number of parameters. Writes a table and a figure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lift.commands import run_command
from lift.config.simulation import SimulationConfig

PROGRAM = "reach"
_SETTINGS = Path(__file__).parent / "settings.yaml"
_PIPE_WIDTH = 170
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def reach(
    output: Annotated[Path, typer.Option(help="Folder of the result.")],
    config: Annotated[
        Path | None,
        typer.Option(help="Settings of a simulation (YAML). Without it, only draw the figure."),
    ] = None,
    settings: Annotated[Path, typer.Option(help="Models and budgets (YAML).")] = _SETTINGS,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Result folder of another data set, to draw as well. May be repeated."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Run only this training, KIND-WIDTH-MODE. May be repeated."),
    ] = None,
) -> None:
    """Train mixers of several sizes and a plain 3D U-Net to their plateau, and compare the PSNR.

    Takes about 30 minutes. Run the same command again to resume: finished trainings are kept. The
    table and the figure are written after every training.
    """
    # torch reads its environment when it is imported, and `main` sets it
    from lift.errors import ConfigError
    from lift_benchmarks.reach.config import ReachConfig, list_entries
    from lift_benchmarks.reach.figure import draw
    from lift_benchmarks.reach.run import Digests, run_data_set
    from lift_benchmarks.reach.summary import read_drawn, show, write_summary
    from lift_simulation.progress import Reporter, table_console

    figure = output / "reach.png"
    others = list(beside or [])
    if config is None:
        draw([read_drawn(folder) for folder in others], figure)
        sys.stdout.write(f"figure: {figure}\n")
        return
    simulation, chosen = SimulationConfig.from_yaml(config), ReachConfig.from_yaml(settings)
    entries = list_entries(chosen)
    unknown = sorted(set(model or []) - {entry.name for entry in entries})
    if unknown:
        raise ConfigError(
            "there is no such training",
            where="--model",
            seen=", ".join(unknown),
            remedy=f"Give one of: {', '.join(entry.name for entry in entries)}.",
        )
    reporter = Reporter(Console(stderr=True), {})
    reporter.line(f"{simulation.name}: {simulation.data_statement}")

    def written(digests: Digests) -> None:
        if write_summary(simulation, chosen, digests, output):
            draw([read_drawn(folder) for folder in (output, *others)], figure)

    wanted = entries if model is None else [entry for entry in entries if entry.name in model]
    run_data_set(simulation, chosen, output, reporter, entries=wanted, done=written)
    show(table_console(_PIPE_WIDTH), output)
    sys.stdout.write(f"result: {output / 'reach.json'}\nfigure: {figure}\n")


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)


if __name__ == "__main__":
    main()
