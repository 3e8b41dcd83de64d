"""Shared parts of all command lines: errors become four-part messages and exit codes."""

from __future__ import annotations

import logging
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final

import click
import typer

from lift.errors import EXIT_CODES, DataError, DiskError, LiftError
from lift.files import NO_ROOM
from lift.process import files_kept_private, prepare_process

_DISTRIBUTION: Final = "lift-federated"
# what else a report of a fault has to name: NAME -> the package that pip installs
_BESIDE: Final = {"Flower": "flwr", "torch": "torch"}


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


def _guarded(command: Callable[[], object], program: str) -> int:
    try:
        outcome = command()
    except LiftError as error:
        _say(error.render(program))
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.Abort:
        _say(f"{program}: stopped; run the same command again to go on")
        return 130
    except click.ClickException as error:
        usage = error.format_message()
        _say(f"{program}: {usage} [config, exit 2]\n  See `{program} --help`.")
        return EXIT_CODES["config"].number
    except KeyboardInterrupt:
        _say(f"{program}: stopped; run the same command again to go on")
        return 130
    except Exception as error:  # noqa: BLE001 RUF100  # the last line of defence of a command
        if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
            refusal = _file_error(error)
            _say(refusal.render(program))
            return refusal.exit_code
        if _is_full_memory(error):
            from lift.device import memory_error

            refused = memory_error("the GPU")
            _say(refused.render(program))
            return refused.exit_code
        logging.getLogger("lift").exception("event=bug")
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"{program}-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            traceback.print_exc(file=log)
        _say(
            f"{program}: a fault of this software [bug, exit {EXIT_CODES['bug'].number}]\n"
            f"  Details are in '{Path(log.name)}'. Please report them."
        )
        return EXIT_CODES["bug"].number
    return outcome if isinstance(outcome, int) else 0


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
