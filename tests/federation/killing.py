"""Runs one of the real commands and, at one exact point of one round, kills a process.

`python -m tests.federation.killing POINT ROUND VICTIM_FILE lift-client --site site.yaml`: when
this process reaches POINT of ROUND, the process whose id stands in VICTIM_FILE gets SIGKILL
(`child` on its second line: that process's child instead). It happens once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.federation.world import children

SITE_POINTS = ("before_training", "while_training", "while_sending", "after_sending")
LOSING = "losing_an_answer"
"""Nobody is killed: the way to the site's own SuperNode breaks while the answer is handed over."""
SERVER_POINTS = ("while_aggregating", "in_checkpoint")


def main(point: str, at_round: int, victim: Path, arguments: list[str]) -> None:
    """Patch the point, then run the command to its end."""
    sys.argv = arguments

    def strike() -> None:
        fired = victim.with_suffix(".fired")
        if fired.exists():
            return
        fired.touch()
        lines = victim.read_text(encoding="ascii").split()
        pid = int(lines[0])
        target = children(pid)[0] if lines[1:] == ["child"] else pid
        os.kill(target, signal.SIGKILL)

    if arguments[0] == "lift-client":
        _patch_site(point, at_round, strike)
        from lift_client.cli import main as command
    else:
        _patch_server(point, at_round, strike)
        from lift_server.cli import main as command
    command()


def _patch_site(point: str, at_round: int, strike: Callable[[], None]) -> None:
    executor: Any = importlib.import_module("lift.protocol.flower.executor")
    paired: Any = importlib.import_module("lift_client.paired")

    training: Any = paired.train_round
    current = {"round": 0}
    lost: list[int] = []

    def train_round(*args: Any, **kwargs: Any) -> Any:
        current["round"] = kwargs["round_index"]
        if current["round"] == at_round and point == "before_training":
            strike()
        report = kwargs.get("report")

        def step(number: int, loss: float) -> None:
            if current["round"] == at_round and point == "while_training":
                strike()
            if report is not None:
                report(number, loss)

        return training(*args, **{**kwargs, "report": step})

    def push_message(*args: Any, **kwargs: Any) -> Any:
        if current["round"] == at_round and point == LOSING and not lost:
            lost.append(at_round)
            raise httpx.RemoteProtocolError("the connection ended at this moment")
        # the journal has its line; nothing has left yet
        if current["round"] == at_round and point == "while_sending":
            strike()
        result = pushing(*args, **kwargs)
        if current["round"] == at_round and point == "after_sending":
            strike()
        return result

    pushing: Any = executor.push_message
    paired.train_round = train_round
    executor.push_message = push_message


def _patch_server(point: str, at_round: int, strike: Callable[[], None]) -> None:
    updates: Any = importlib.import_module("lift_server.updates")
    store: Any = importlib.import_module("lift_server.store")

    averaging: Any = updates.mean_update
    writing: Any = store.write_checkpoint
    done = {"rounds": 0}

    def mean_update(*args: Any, **kwargs: Any) -> Any:
        done["rounds"] += 1
        if done["rounds"] == at_round and point == "while_aggregating":
            strike()
        return averaging(*args, **kwargs)

    def write_checkpoint(folder: Path, checkpoint: Any) -> None:
        if checkpoint.round == at_round and point == "in_checkpoint":
            # what a crash in the middle of the two files may leave
            folder.mkdir(parents=True, exist_ok=True)
            name = f"round-{at_round:04d}.safetensors"
            (folder / f".{name}.0123abcd.part").write_bytes(b"half")
            strike()
        writing(folder, checkpoint)

    updates.mean_update = mean_update
    store.write_checkpoint = write_checkpoint


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
