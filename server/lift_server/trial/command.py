"""`lift-server try`, as it is typed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import typer
from rich.console import Console

from lift_server.trial.run import run_trial
from lift_server.trial.settings import FEWEST_ROUNDS, Privacy, Trial

_PIPE_WIDTH: Final = 120


def try_federation(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to create, or that of an earlier trial.")
    ],
    sites: Annotated[int, typer.Option(min=2, max=12, help="Number of sites.")] = 3,
    patients: Annotated[
        int, typer.Option(min=6, max=200, help="Phantom patients of each site.")
    ] = 8,
    rounds: Annotated[
        int, typer.Option(min=FEWEST_ROUNDS, max=100, help="Training rounds.")
    ] = FEWEST_ROUNDS,
    privacy: Annotated[Privacy, typer.Option(help="Privacy mode of the plan.")] = "none",
    drill: Annotated[
        bool | None,
        typer.Option(
            "--drill/--no-drill",
            help="Afterwards run it again, kill a site and the server, remove a site, and show "
            "what happens. Default: ask on a terminal, else no.",
        ),
    ] = None,
) -> None:
    """Try a whole federation on this machine: a server and sites as real processes, on phantoms.

    It makes the folder with the commands of the guides, runs the federation over TLS on loopback
    with its live page, and writes the report of the run and each site's own. All programs end
    with this one. Run the same command again to resume.
    """
    signal.signal(signal.SIGTERM, _stop)
    trial = Trial(sites=sites, patients=patients, rounds=rounds, privacy=privacy)

    def wanted() -> bool:
        if drill is not None:
            return drill
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        return typer.confirm(
            "Run the drill (kill a site and the server, remove a site)?", default=True, err=True
        )

    width = None if sys.stderr.isatty() else _PIPE_WIDTH
    run_trial(folder, trial, drill=wanted, console=Console(stderr=True, width=width))


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends this program as Ctrl-C does: all that it started ends first."""
    del number, frame
    raise KeyboardInterrupt
