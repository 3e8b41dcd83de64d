"""Become a command that ends with the process that started it, even if that one is killed.

`python -m lift_server.trial.bound PARENT PROGRAM ARGUMENT...`: the kernel keeps the promise over
the start of the program (prctl(2), PR_SET_PDEATHSIG), so the program need not know of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_SET_PARENT_DEATH_SIGNAL: Final = 1


def main() -> None:
    """Entry point."""
    parent, *command = sys.argv[1:]
    expected = int(parent)
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    # it may have ended before
    if os.getppid() == expected:
        os.execv(command[0], command)  # noqa: S606  # our own command, no shell


if __name__ == "__main__":
    main()
