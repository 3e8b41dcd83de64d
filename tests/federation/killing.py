"""Runs one of the real commands and kills processes at one exact point of their rounds.

`python -m tests.federation.killing FOLDER lift-client --site site.yaml`: when this process comes
to the point of the schedule in FOLDER, the victim of that round gets SIGKILL; see
`tests.federation.schedule`. The same command again goes on with the rest of the schedule.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.federation.schedule import LOSING, VICTIMS, Schedule
from tests.federation.world import children

_NOTICED_S = 1.0
"""By then both sites have asked the server for something new."""


def main(folder: Path, arguments: list[str]) -> None:
    """Patch the point, then run the command to its end."""
    sys.argv = arguments
    schedule = Schedule.read(folder)
    if arguments[0] == "lift-client":
        _patch_site(schedule)
        from lift_client.cli import main as command
    else:
        _patch_server(schedule)
        from lift_server.cli import main as command
    command()


def _strike(
    schedule: Schedule, point: str, round_index: int, *, first: Callable[[], None] | None = None
) -> None:
    """Kill whose turn it is, when this is the point of the schedule; `first` just before."""
    death = schedule.take(round_index) if schedule.point == point else None
    if death is None:
        return
    if first is not None:
        first()
    name, is_child = VICTIMS[death.victim]
    target = schedule.pid(name)
    if is_child:
        (target,) = children(target)
    os.kill(target, signal.SIGKILL)


def _patch_site(schedule: Schedule) -> None:
    executor: Any = importlib.import_module("lift.protocol.flower.executor")
    paired: Any = importlib.import_module("lift_client.tasks.paired")
    training: Any = paired.train_round
    pushing: Any = executor.push_message
    current = {"round": 0}

    def train_round(*args: Any, **kwargs: Any) -> Any:
        current["round"] = kwargs["round_index"]
        _strike(schedule, "before_training", current["round"])
        report = kwargs.get("report")

        def step(number: int) -> None:
            _strike(schedule, "while_training", current["round"])
            if report is not None:
                report(number)

        return training(*args, **{**kwargs, "report": step})

    def push_message(*args: Any, **kwargs: Any) -> Any:
        if schedule.point == LOSING and schedule.take(current["round"]) is not None:
            raise httpx.RemoteProtocolError("the connection ended at this moment")
        # the journal has its line; nothing has left yet
        _strike(schedule, "while_sending", current["round"])
        result = pushing(*args, **kwargs)
        _strike(schedule, "after_sending", current["round"])
        return result

    paired.train_round = train_round
    executor.push_message = push_message


def _patch_server(schedule: Schedule) -> None:
    updates: Any = importlib.import_module("lift_server.rounds.updates")
    store: Any = importlib.import_module("lift_server.rounds.store")
    loop: Any = importlib.import_module("lift_server.rounds.loop")
    grid: Any = importlib.import_module("flwr.superlink.grid.http_grid")
    training: Any = loop._Rounds._updated
    pushing: Any = grid.push_objects
    reviewing: Any = updates.review_update
    averaging: Any = updates.combined
    writing: Any = store.write_checkpoint
    current = {"round": 0}

    def updated(rounds: Any, round_index: int, *args: Any, **kwargs: Any) -> Any:
        current["round"] = round_index
        return training(rounds, round_index, *args, **kwargs)

    def push_objects(*args: Any, **kwargs: Any) -> Any:
        # the sites have the request's name by then, and none of its parts
        noticed = partial(time.sleep, _NOTICED_S)
        _strike(schedule, "while_handing_out", current["round"], first=noticed)
        return pushing(*args, **kwargs)

    def review_update(*args: Any, **kwargs: Any) -> Any:
        # the mean is told no round; what it is the mean of was reviewed just before
        current["round"] = kwargs["round_index"]
        return reviewing(*args, **kwargs)

    def combined(*args: Any, **kwargs: Any) -> Any:
        _strike(schedule, "while_aggregating", current["round"])
        return averaging(*args, **kwargs)

    def write_checkpoint(folder: Path, checkpoint: Any) -> None:
        leave = partial(_leave_half, folder, checkpoint.round)
        _strike(schedule, "in_checkpoint", checkpoint.round, first=leave)
        writing(folder, checkpoint)

    loop._Rounds._updated = updated
    grid.push_objects = push_objects
    updates.review_update = review_update
    updates.combined = combined
    store.write_checkpoint = write_checkpoint


def _leave_half(folder: Path, round_index: int) -> None:
    """What a crash in the middle of the two files may leave."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"round-{round_index:04d}.safetensors"
    (folder / f".{name}.0123abcd.part").write_bytes(b"half")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
