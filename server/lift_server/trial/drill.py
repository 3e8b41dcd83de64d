"""The drill: kill a site, kill the server, remove a site, and see what happens.

It is a second run of the same plan, so that its first rounds can be compared with the undisturbed
ones.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from lift.config.server import ServerConfig
from lift.errors import ProtocolError
from lift.files import file_digest
from lift.records.rounds import RoundRecord
from lift_server.sites.roster import remove_site
from lift_server.trial.folder import DRILL_FILE, TrialFolder
from lift_server.watch.rounds_file import RoundsFile
from lift_server.watch.status import ServerStatus
from lift_server.watch.status_view import read_status

_LOOK_EVERY_S: Final = 0.1
_LONGEST_S: Final = 600.0
_LONGEST_UNNOTICED_S: Final = 60.0


@dataclass(frozen=True)
class Deed:
    """What was done, what was seen, and the seconds that it cost the run."""

    done: str
    seen: str
    cost_s: float


def run_drill(folder: TrialFolder, say: Callable[[str], None]) -> list[Deed]:
    """Run the plan again, disturb it, and return what was seen.

    Raises:
        ProtocolError: something that was waited for did not come.
        Exit: the server ended with an error.
    """
    return _Drill(folder, say).run()


def show_deeds(deeds: list[Deed], console: Console) -> None:
    """Print the table of a drill."""
    table = Table(title="The drill", title_justify="left", box=None, header_style="bold")
    table.add_column("deed", no_wrap=True)
    table.add_column("what was seen")
    table.add_column("cost", justify="right", no_wrap=True)
    for deed in deeds:
        table.add_row(deed.done, deed.seen, f"{deed.cost_s:.0f} s")
    console.print(table)
    console.print(
        "cost: seconds that the round took beyond an undisturbed one", style="dim", highlight=False
    )


class _Drill:
    def __init__(self, folder: TrialFolder, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._config: ServerConfig = folder.drill_settings()
        self._rounds = RoundsFile(self._config.output)
        self._closed: dict[int, float] = {}
        self._expected = set(folder.trial.names)
        self._fallen: list[str] = []

    def run(self) -> list[Deed]:
        shutil.rmtree(self._config.output, ignore_errors=True)
        crew, names = self._folder.crew, self._folder.trial.names
        self._say(f"the plan runs again, into {self._config.output}")
        self._start_server()
        for name in names:
            self._folder.start_site(name)
        self._wait_closed(1)
        self._say(f"round 1, undisturbed: {self._took(1):.0f} s")
        deeds = [self._kill_site(2, names[0]), self._kill_server(3)]
        deeds.append(self._remove_site(4, names[-1]))
        same = self._same_until(3)
        self._wait(lambda: crew.ended("server") is not None, "the end of the run")
        crew.stop("server", *names)
        self._check_server()
        began = time.monotonic()
        self._folder.enrol_again(names[-1])
        deeds.append(Deed(f"admit {names[-1]} again", "with a new key", time.monotonic() - began))
        if same is not None:
            self._say(
                "after both kills the mixer of round 3 is "
                f"{'the same, bit for bit,' if same else 'NOT the same'} as in the first run"
            )
        return deeds

    def _kill_site(self, number: int, name: str) -> Deed:
        crew = self._folder.crew
        self._wait_at_work(number, name)
        self._say(f"round {number}: killing site {name} at its work")
        self._expected.discard(name)
        crew.kill(name)
        began = time.monotonic()
        noticed = self._unnoticed_s(name, began)
        self._folder.start_site(name)
        self._expected.add(name)
        line = self._wait_closed(number)
        seen = "" if noticed is None else f"off-line after {noticed:.0f} s, started again; "
        came = "it answered after all" if name in line.counted else "the round went on without it"
        return self._deed(f"kill site {name}", f"{seen}{came}: {_counted(line)}", number)

    def _kill_server(self, number: int) -> Deed:
        self._wait_at_work(number, *self._folder.trial.names)
        self._say(f"round {number}: killing the server")
        self._folder.crew.kill("server")
        self._start_server()
        line = self._wait_closed(number)
        seen = f"started again, it took round {number} up again: {_counted(line)}"
        return self._deed("kill the server", seen, number)

    def _remove_site(self, number: int, name: str) -> Deed:
        self._say(f"round {number}: removing site {name}")
        self._expected.discard(name)
        # what the command does, without the seconds of its start: a round may be shorter
        remove_site(self._config, name)
        self._wait_closed(number)
        line = self._wait_closed(number + 1)
        refused = "it is not asked any more" if name not in line.asked else "it is still asked"
        seen = f"from round {number + 1} on {refused}: {_counted(line)}"
        return self._deed(f"remove site {name}", seen, number + 1)

    def _start_server(self) -> None:
        server = self._folder.server
        self._folder.crew.start("server", "lift-server", "--config", server / DRILL_FILE)

    def _same_until(self, number: int) -> bool | None:
        """Whether the mixers up to a round equal those of the first run; None under noise."""
        if self._folder.trial.privacy != "none":
            return None
        files = [f"checkpoints/round-{i:04d}.safetensors" for i in range(number + 1)]
        first, again = self._folder.settings().output, self._config.output
        return all(file_digest(first / file) == file_digest(again / file) for file in files)

    def _unnoticed_s(self, name: str, began: float) -> float | None:
        """Seconds until the server knew that a site is gone; None if it did not notice."""
        while (passed := time.monotonic() - began) < _LONGEST_UNNOTICED_S:
            status = self._status()
            if status is not None and not status.sites[name].online:
                return passed
            time.sleep(_LOOK_EVERY_S)
        return None

    def _wait_at_work(self, number: int, *names: str) -> None:
        def at_work() -> bool:
            status = self._status()
            return (
                status is not None
                and status.phase == "round"
                and status.round == number
                and all(
                    name in status.sites and status.sites[name].state == "asked" for name in names
                )
            )

        self._wait(at_work, f"round {number}")

    def _wait_closed(self, number: int) -> RoundRecord:
        """The line of a training round, when it is on record."""

        def closed() -> bool:
            for line in self._rounds.read().trained:
                self._closed.setdefault(line.round, time.monotonic())
            if 0 not in self._closed and self._rounds.read().lines:
                self._closed[0] = time.monotonic()
            return number in self._closed

        self._wait(closed, f"the end of round {number}")
        return next(line for line in self._rounds.read().trained if line.round == number)

    def _took(self, number: int) -> float:
        return self._closed[number] - self._closed[number - 1]

    def _deed(self, done: str, seen: str, number: int) -> Deed:
        """What was done in a round, with the sites that fell over meanwhile."""
        fallen, self._fallen = self._fallen, []
        if fallen:
            seen += f"; ended with an error and started again: {', '.join(fallen)}"
        return Deed(done, seen, max(0.0, self._took(number) - self._took(1)))

    def _status(self) -> ServerStatus | None:
        return read_status(self._config)

    def _wait(self, so: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _LONGEST_S
        while not so():
            if time.monotonic() > end:
                raise ProtocolError(
                    f"the drill waited in vain for {what}",
                    where=str(self._folder.root / "logs"),
                    seen=f"nothing for {_LONGEST_S:.0f} s",
                    remedy="The first run and its reports are whole. See the logs in that folder.",
                )
            self._check_server()
            self._fallen += self._folder.keep_sites(self._expected, self._say)
            time.sleep(_LOOK_EVERY_S)

    def _check_server(self) -> None:
        if self._folder.crew.ended("server"):
            log = self._folder.crew.log("server")
            self._say(f"the server has ended with an error: {log}")
            raise click.exceptions.Exit(self._folder.crew.ended("server") or 1)


def _counted(line: RoundRecord) -> str:
    return f"{len(line.counted)} of {len(line.asked)} counted"
