"""What each process of ours sets at its start: importing a module sets nothing."""

from __future__ import annotations

import os
from typing import Final

_DEFAULTS: Final = {
    # Read when torch loads its thread pool: waiting threads soon sleep instead of spinning. On a
    # machine that others use as well, spinning made a training step ten times slower; sleeping at
    # once made it half as slow again on a quiet one.
    "GOMP_SPINCOUNT": "20000",
}
_PROMISES: Final = {
    # read when flwr is imported: no telemetry, no look-up of newer versions, no installing
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""What hospitals were promised: it holds whatever the environment says."""


def prepare_process() -> None:
    """To be called once at the start of a process, before torch and flwr are imported.

    Processes that this one starts inherit it.
    """
    os.environ.update(prepared_environment())


def prepared_environment() -> dict[str, str]:
    """This process's environment, with what a process of ours needs added."""
    return {**_DEFAULTS, **os.environ, **_PROMISES}
