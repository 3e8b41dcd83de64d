"""A trial from its first file to the reports: server and sites as real processes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from lift.errors import ConfigError
from lift.files import held_alone
from lift_server.sites.provisioning import CONFIG_FILE
from lift_server.sites.roster import Roster
from lift_server.trial.children import run_command
from lift_server.trial.drill import Deed, run_drill, show_deeds
from lift_server.trial.folder import TrialFolder, open_folder
from lift_server.trial.settings import Trial
from lift_server.watch.status_view import is_complete

_LOOK_EVERY_S: Final = 0.2
MIXER_FILE: Final = "mixer.safetensors"


def run_trial(root: Path, wanted: Trial, *, drill: Callable[[], bool], console: Console) -> None:
    """Make the folder, run the federation to its end, write all reports, offer the drill.

    The same call resumes what was broken off, and says what is there when all is done.

    Args:
        root: folder of the trial.
        wanted: what it is made of.
        drill: whether to run the drill; asked when the reports are there.
        console: where to tell what is done.

    Raises:
        LiftError: the folder cannot be used.
        Exit: a program of the trial ended with an error, and said why.
    """
    folder = open_folder(root, wanted)
    stages = _Stages(console)
    with held_alone(root / "lock", _running(root)), _said(stages.say), folder.crew.kept():
        with stages.stage("set-up"):
            folder.make(stages.say)
            for name in _removed(folder):
                stages.say(f"{name} was removed, and is admitted again with a new key")
                folder.enrol_again(name)
        if not _is_whole(folder):
            with stages.stage("federation"):
                _federate(folder, stages.say)
        with stages.stage("sites' own reports"):
            _write_reports(folder, stages.say)
        _say_results(folder, console)
        if drill():
            with stages.stage("drill"):
                deeds: list[Deed] = run_drill(folder, stages.say)
            show_deeds(deeds, console)
        _say_next(folder, console)


class _Stages:
    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.say(f"{name}: {time.monotonic() - began:.0f} s")


@contextmanager
def _said(say: Callable[[str], None]) -> Iterator[None]:
    """When somebody ends the block, say so when all programs have ended."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped, with all programs of the trial; the same command goes on")
        raise


def _federate(folder: TrialFolder, say: Callable[[str], None]) -> None:
    """Server and sites until the server has ended by itself."""
    crew, names = folder.crew, folder.trial.names
    say(f"starting the server and {len(names)} sites; what the sites write: {crew.log('NAME')}")
    crew.start("server", "lift-server", "--config", folder.server / CONFIG_FILE, shown=True)
    for name in names:
        folder.start_site(name)
    while (code := crew.ended("server")) is None:
        folder.keep_sites(names, say)
        time.sleep(_LOOK_EVERY_S)
    crew.stop(*names)
    if code != 0:
        raise click.exceptions.Exit(code)


def _is_whole(folder: TrialFolder) -> bool:
    output = folder.settings().output
    # the report is written last
    return is_complete(output) and (output / "report.html").is_file()


def _write_reports(folder: TrialFolder, say: Callable[[str], None]) -> None:
    for name in folder.trial.names:
        if not folder.report(name).is_file():
            say(f"{name}: lift-client report")
            # under noise no site was asked for a verdict, so none has the mixer
            mixer = folder.settings().output / MIXER_FILE
            given = () if folder.trial.privacy == "none" else ("--mixer", mixer)
            path = folder.site_file(name)
            run_command("lift-client", "report", "--phantom", "--site", path, *given)


def _removed(folder: TrialFolder) -> list[str]:
    """Sites that a drill removed, and that were not admitted again because it was broken off."""
    admitted = Roster.read(folder.settings().sites).admitted_keys
    return [name for name in folder.trial.names if name not in admitted]


def _say_results(folder: TrialFolder, console: Console) -> None:
    output = folder.settings().output
    lines = [
        f"mixer: {output / MIXER_FILE}",
        f"report of the run: {output / 'report.html'}",
        *(f"report of {name}: {folder.report(name)}" for name in folder.trial.names),
    ]
    if folder.trial.privacy == "none":
        again = folder.root / "simulated"
        lines += [
            "the same mixer, bit for bit, from one process:",
            f"  lift-simulate --config {_quoted(folder.simulation)} --output {_quoted(again)}",
            f"  cmp {_quoted(output / MIXER_FILE)} {_quoted(again / MIXER_FILE)}",
        ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _say_next(folder: TrialFolder, console: Console) -> None:
    server, name = _quoted(folder.server), folder.trial.names[0]
    port = folder.settings().listen_port
    text = f"""\
next: this folder is a federation as the guides make it. To move {name} to another machine:
  here   lift-server remove-site {server} {name}
  here   lift-server renew {server} --host HOST      HOST: the name of this machine
         server.yaml: address "HOST:{port}", listen_host 0.0.0.0, and another output
  there  lift-client enroll {name} --folder {name}   then the lines of `lift-client phantom`
  here   lift-server add-site {server} {name} {name}/site.pub   then send the kit
  there  lift-client check --site {name}/site.yaml
  here   lift-server --config {_quoted(folder.server / CONFIG_FILE)}
  all    lift-client --site site.yaml
the live page of a run that is over: lift-server page {server}"""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _running(root: Path) -> ConfigError:
    return ConfigError(
        "this trial is already running",
        where=str(root),
        seen="its lock is held",
        remedy="Nothing was changed. Wait for it, end it with Ctrl-C, or name another folder.",
    )
