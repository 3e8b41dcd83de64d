"""The port of 127.0.0.1 at which the two processes of a client meet."""

from __future__ import annotations

import contextlib
import socket


def free_local_port(wanted: int) -> int:
    """This port of 127.0.0.1, or a free one where something listens there already."""
    for port in (wanted, 0):
        with socket.socket() as trial:
            # as the server that will listen there
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                trial.bind(("127.0.0.1", port))
                return int(trial.getsockname()[1])
    return wanted
