"""What both sides do with the one child process that each of them has."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Final

from lift.files import write_atomically

_STOP_S: Final = 10.0


def keep_loopback_direct() -> None:
    """Our own requests to 127.0.0.1 never go through a proxy, whatever the environment names."""
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))


def write_secret(path: Path) -> None:
    """A new secret in a file of mode 0600, in place of the one before."""
    write_atomically(path, secrets.token_hex(32).encode(), mode=0o600)


def start_child(module: str, settings: str, log: Path) -> subprocess.Popen[bytes]:
    """Start one of our modules with its settings; what it says goes to `log`.

    Its standard input is a pipe that only we hold: it closes when this process ends.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603  # our own module, no shell
            [sys.executable, "-m", module, settings],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )


def end_child(child: subprocess.Popen[bytes]) -> None:
    """Ask the child to end, wait, and end it."""
    child.terminate()
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdin is not None:
        child.stdin.close()
