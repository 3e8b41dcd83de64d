"""The processes of a trial. All of them are ordinary commands, and end with this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

import click

from lift.errors import ConfigError

_STOP_S: Final = 20.0


class Crew:
    """Programs that run, by name.

    Args:
        logs: folder for what they write, `NAME.txt`.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """No program outlives the block."""
        try:
            yield
        finally:
            self.stop(*self._running)

    def start(self, name: str, program: str, *arguments: str | Path, shown: bool = False) -> None:
        """Start a program in the background; `shown`: it writes to our own terminal."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            output: IO[bytes] | None = None
            if not shown:
                output = files.enter_context(self.log(name).open("ab"))
            # a session of its own: Ctrl-C reaches us alone, and we end it in order
            self._running[name] = subprocess.Popen(  # noqa: S603  # our own command, no shell
                _bound(program, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def ended(self, name: str) -> int | None:
        """The exit code of a program that has ended; None while it runs."""
        return self._running[name].poll()

    def log(self, name: str) -> Path:
        """The file of what a program writes."""
        return self._logs / f"{name}.txt"

    def kill(self, name: str) -> None:
        """End a program with SIGKILL, as a power cut would."""
        self._running[name].kill()
        self._running[name].wait()

    def stop(self, *names: str) -> None:
        """Ask programs to end, all at once, and end those that do not."""
        running = [self._running[name] for name in names]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_command(program: str, *arguments: str | Path) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        Exit: it failed; its message is on stderr, and its exit code becomes ours.
    """
    done = subprocess.run(  # noqa: S603  # our own command, no shell
        _bound(program, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        raise click.exceptions.Exit(done.returncode)
    return done.stdout


def _bound(program: str, *arguments: str | Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "lift_server.trial.bound",
        str(os.getpid()),
        _path(program),
        *map(str, arguments),
    ]


def _path(program: str) -> str:
    """A command of this very installation, or the one on PATH."""
    found = shutil.which(program, path=sysconfig.get_path("scripts")) or shutil.which(program)
    if found is None:
        raise ConfigError(
            f"cannot start {program}",
            where=sysconfig.get_path("scripts"),
            seen="there is no such command, nor on PATH",
            remedy="Install this package whole: `lift-server try` needs the site's program too.",
        )
    return found
