"""Shared parts of all command lines: errors become four-part messages and exit codes."""

from __future__ import annotations

import contextlib
import logging
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final, cast

import click
import typer

from lift.errors import EXIT_CODES, DataError, DiskError, LiftError
from lift.files import NO_ROOM
from lift.logs import LinesAsRecords, LogFormat, log_to_terminal
from lift.process import files_kept_private, prepare_process

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

_DISTRIBUTION: Final = "lift-federated"
# what else a report of a fault has to name: NAME -> the package that pip installs
_BESIDE: Final = {"Flower": "flwr", "torch": "torch"}
_NO_WRAP: Final = 10_000


def _show_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        sys.stdout.write(version_line(context.find_root().info_name or "lift") + "\n")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Print the versions and exit."
    ),
]
"""`--version` of a program. It is handled before anything else."""
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format", help="Form of the log. json: one JSON object per line, also on stderr."
    ),
]
"""`--log-format` of a program that runs for long."""


def version_line(program: str) -> str:
    """Return the installed versions of a program and of its main dependencies.

    Imports nothing: torch and flwr would take seconds.
    """
    ours = _version(_DISTRIBUTION) or "(unknown version: not installed by pip)"
    beside = [f"{name} {_version(package) or 'absent'}" for name, package in _BESIDE.items()]
    return f"{program} {ours} ({', '.join(beside)}, Python {platform.python_version()})"


def run_command(app: typer.Typer, program: str) -> None:
    """Run a typer application and exit with the code from `lift/errors.py`.

    The process is prepared first: an application imports torch and flwr only in its commands.
    Only the user can read what a command writes (files 0600, folders 0700).
    A :class:`LiftError` is printed in its four parts. A bug of this software is written to a log
    file, and its path is printed. A traceback is never printed.
    """
    prepare_process()
    with files_kept_private():
        code = _guarded(lambda: app(prog_name=program, standalone_mode=False), program)
    sys.exit(code)


@contextlib.contextmanager
def log_lines(program: str, log_format: LogFormat) -> Iterator[None]:
    """In JSON all that the block tells on stderr is a record, why it ended included.

    In text it changes nothing: the program says what it says.
    """
    if log_format == "text":
        yield
        return
    with log_to_terminal(log_format):
        try:
            yield
        except click.exceptions.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            told, code = _told(error, program)
            logger.error("event=ended exit=%d %s", code, told)  # noqa: TRY400  # told to an operator
            raise click.exceptions.Exit(code) from None


def console_of(log_format: LogFormat, name: str) -> Console:
    """Return a console on stderr. In JSON each line that is written to it is a record of `name`."""
    from rich.console import Console  # a tenth of a second that other commands need not pay

    if log_format == "text":
        return Console(stderr=True)
    lines = cast("IO[str]", LinesAsRecords(logging.getLogger(name)))
    return Console(file=lines, width=_NO_WRAP)


def _guarded(command: Callable[[], object], program: str) -> int:
    try:
        outcome = command()
    except click.exceptions.Exit as error:
        return error.exit_code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 RUF100  # the last line of defence
        told, code = _told(error, program)
        _say(told.render(program) if isinstance(told, LiftError) else f"{program}: {told}")
        return code
    return outcome if isinstance(outcome, int) else 0


def _told(error: BaseException, program: str) -> tuple[LiftError | str, int]:
    """What an operator reads of the end of a command, and its exit code."""
    if isinstance(error, LiftError):
        return error, error.exit_code
    if isinstance(error, click.ClickException):
        code = EXIT_CODES["config"].number
        return f"{error.format_message()} [config, exit {code}]\n  See `{program} --help`.", code
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        return "stopped; run the same command again to go on", 130
    if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
        refusal = _file_error(error)
        return refusal, refusal.exit_code
    if isinstance(error, Exception) and _is_full_memory(error):
        from lift.device import memory_error

        refused = memory_error("the GPU")
        return refused, refused.exit_code
    logging.getLogger("lift").error("event=bug", exc_info=error)
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"{program}-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        traceback.print_exception(error, file=log)
    code = EXIT_CODES["bug"].number
    return (
        f"a fault of this software [bug, exit {code}]\n"
        f"  Details are in '{Path(log.name)}'. Please report them.",
        code,
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _file_error(error: OSError) -> DataError:
    """Return the error for a path, permission or disk space that the operator must fix."""
    kind = DiskError if error.errno in NO_ROOM else DataError
    return kind(
        "cannot read or write a file",
        where=str(error.filename or "the output folder"),
        seen=error.strerror or type(error).__name__,
        remedy="Check the path, its permissions and the free disk space, then run the same "
        "command again. Finished work is kept.",
    )


def _is_full_memory(error: Exception) -> bool:
    """Return whether the memory of a GPU is full. Without torch, no GPU is in use."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
