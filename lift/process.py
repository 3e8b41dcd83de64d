"""Process settings, applied at the start of each program. Importing a module sets nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

_DEFAULTS: Final = {
    # Read when torch loads its thread pool: waiting threads soon sleep instead of spinning. On a
    # machine that others use as well, spinning made a training step ten times slower; sleeping at
    # once made it half as slow again on a quiet one.
    "GOMP_SPINCOUNT": "20000",
}
_PRIVATE: Final = 0o077
_PROMISES: Final = {
    # read when flwr is imported: no telemetry, no look-up of newer versions, no installing
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""What hospitals were promised: it holds whatever the environment says."""


def prepare_process() -> None:
    """Prepare a process. Call once at its start, before torch and flwr are imported.

    Processes that this one starts inherit it.
    """
    os.environ.update(prepared_environment())


def keep_files_private() -> int:
    """Make all files of this process private from now on: files 0600, folders 0700.

    A mode that a file asks for is narrowed too. Processes that this one starts inherit it. To
    hand a file on to somebody else on this machine is the user's own decision (`chmod`).

    Returns:
        The umask before.
    """
    return os.umask(_PRIVATE)


@contextlib.contextmanager
def files_kept_private() -> Iterator[None]:
    """Inside the block :func:`keep_files_private` holds for the whole process."""
    before = keep_files_private()
    try:
        yield
    finally:
        os.umask(before)


def prepared_environment() -> dict[str, str]:
    """Return this process's environment, with the variables that our child processes need."""
    return {**_DEFAULTS, **os.environ, **_PROMISES}
