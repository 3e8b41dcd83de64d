"""Runs trackers in a process of its own, and says which addresses its Python code dialled.

`python -m tests.lift.tracking_child OUT SETTINGS DONE ROUNDS`: the record in OUT holds the rounds
before DONE; those up to ROUNDS follow live. The process is killed there, unless ROUNDS is 5.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from lift.config.tracking import TrackingSettings
from lift.tracking.run import Tracking
from tests.lift.tracking_world import ABOUT, HOSTILE, METRICS, SITES, line, write_rounds

NAMES = (*HOSTILE, *SITES)
DIALLED: list[str] = []


def _watched(event: str, arguments: tuple[Any, ...]) -> None:
    # every connection of Python code passes here, whatever library makes it
    if event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        DIALLED.append(repr(arguments[1]))
    elif event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        DIALLED.append(repr(arguments[0]))


def main() -> None:
    """As the round loop: the record first, then the trackers."""
    sys.addaudithook(_watched)
    out, settings, done, rounds = sys.argv[1:]
    warnings: list[str] = []
    chosen = TrackingSettings.from_data(json.loads(settings), "test")
    tracking = Tracking(chosen, Path(out), say=warnings.append, close_within_s=60)
    path = Path(out) / "rounds.jsonl"
    write_rounds(path, int(done), NAMES)
    tracking.begin(ABOUT, path)
    for number in range(int(done), int(rounds)):
        write_rounds(path, number + 1, NAMES)
        tracking.round_done(line(number, NAMES))
    finished = int(rounds) == 5
    if finished:
        tracking.finished(METRICS)
    tracking.close(complete=finished)
    sys.stdout.write(json.dumps({"dialled": DIALLED, "warnings": warnings}))
    sys.stdout.flush()
    if not finished:
        os._exit(9)


if __name__ == "__main__":
    main()
