"""Output of `lift-client choose`: the methods, the choice, and where it is stored."""

from __future__ import annotations

import json
import sys
from typing import Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from lift_client.own.choosing import Chosen

_PIPE_WIDTH: Final = 160
_UNPROTECTED: Final = (
    "this run promises privacy to patients, and this mixer is outside that promise: it was trained "
    "without noise. "
)


def show(chosen: Chosen, *, as_json: bool) -> None:
    """Print the table and the choice on stdout, and notes about an own mixer on stderr."""
    own = chosen.own_mixer
    if as_json:
        data = {
            "chosen": chosen.choice.method,
            "patients": chosen.choice.patients,
            "methods": [vars(row) for row in chosen.rows],
            "curves": str(chosen.curves),
            "own_mixer": None if own is None else str(own),
        }
        sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
    else:
        _show_table(chosen)
        sys.stdout.write(f"chosen: {chosen.choice.method}\ncurves: {chosen.curves}\n")
        if own is not None:
            sys.stdout.write(f"own mixer: {own}\n")
    if own is not None:
        sys.stderr.write(
            f"note: {_UNPROTECTED if chosen.protected else ''}{own.name} was trained on this "
            "site's own patients: use it at this site. It must never leave, and no command "
            "releases it\n"
        )


def _show_table(chosen: Chosen) -> None:
    if not chosen.rows:
        sys.stdout.write("too few validation patients to compare: at least 2 are needed\n")
        return
    table = Table(box=SIMPLE, title=f"{chosen.choice.patients} validation patients, PSNR in dB")
    for heading in ("method", "mean", "minus the chosen", "standard error"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in chosen.rows:
        is_chosen = row.method == chosen.choice.method
        cells = ("", "") if is_chosen else (f"{row.difference_db:+.2f}", f"{row.error_db:.2f}")
        table.add_row(row.method, f"{row.psnr_db:.2f}", *cells)
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
