"""`lift-simulate`: run a whole federation in one process."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lift.commands import LogFormatOption, VersionOption, console_of, log_lines, run_command
from lift.config.simulation import SimulationConfig

PROGRAM = "lift-simulate"
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
_DEMO = Path(__file__).parent / "demo.yaml"
_PIPE_WIDTH = 270


@app.command()
def simulate(
    config: Annotated[
        Path | None,
        typer.Option(help="Settings (YAML). Default: the built-in demo on phantom volumes."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the result. Default: out/NAME.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved plan and its privacy cost, then exit."),
    ] = False,
    epsilon: Annotated[
        float | None,
        typer.Option(help="With --dry-run: print the noise multiplier that this epsilon needs."),
    ] = None,
    clip_norms: Annotated[
        bool,
        typer.Option(
            "--clip-norms",
            help="Measure the gradient norms of patients at phantom sites, suggest clip norms, "
            "then exit.",
        ),
    ] = False,
    log_format: LogFormatOption = "text",
    _version: VersionOption = False,
) -> None:
    """Run a federation of simulated sites, from statistics and rounds to baselines and report.

    Run the same command again to resume. A finished run is not changed.
    """
    with log_lines(PROGRAM, log_format):
        settings = SimulationConfig.from_yaml(config or _DEMO)
        from lift_simulation import (
            run,
        )  # torch and flwr take seconds: a typo must not wait for them

        if dry_run:
            sys.stdout.write(json.dumps(run.dry_run(settings, epsilon=epsilon), indent=2) + "\n")
            return
        from lift.logs import log_to_file
        from lift_simulation.progress import Reporter, table_console

        out = output or Path("out") / settings.name
        reporter = Reporter(console_of(log_format, "lift_simulation.terminal"), settings.budget_s)
        if clip_norms:
            from lift_simulation.clip_norms import measure_clip_norms

            with reporter.stage("clip norms"):
                found = measure_clip_norms(settings, out, reporter)
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
            return
        reporter.line(f"{settings.name}: {settings.data_statement}")
        reporter.line(run.privacy_line(settings))
        command = shlex.join([PROGRAM, *sys.argv[1:]])
        with log_to_file(out / "log.txt", log_format):
            report = run.simulate(settings, out, reporter, command=command)
        reporter.line(f"{sum(reporter.seconds.values()):.0f} s in total")
        if settings.plain_networks or "three_planes" in settings.compare:
            from lift_simulation.plain.table import show_rows

            show_rows(table_console(_PIPE_WIDTH), out)
        sys.stdout.write(f"result: {out}\nreport: {report}\n")


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)
