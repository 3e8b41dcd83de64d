"""Ports of 127.0.0.1 for the servers that tests start."""

import os
import random
import socket
from collections.abc import Mapping

# Below the ports that Linux (from 32768) and macOS (from 49152) give to outgoing connections: so
# nobody's connection takes a port between the moment it is found free and a server's listening.
_FIRST, _LAST = 20_000, 32_000

# what pytest-xdist tells each of its workers
_WORKER, _WORKERS = "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"

_drawn = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody holds at this moment and that this process was not given before.

    Workers of pytest-xdist draw from ranges of their own: a port that one of them found free
    is not listened on yet when another one looks.

    Raises:
        RuntimeError: no free port was found among a thousand.
    """
    ports = port_range(os.environ)
    for _ in range(1000):
        port = _drawn.choice(ports)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    message = f"no free port between {ports[0]} and {ports[-1]} on 127.0.0.1"
    raise RuntimeError(message)


def free_ports(number: int) -> list[int]:
    """`number` ports that all differ; see `free_port`."""
    return [free_port() for _ in range(number)]


def port_range(environment: Mapping[str, str]) -> range:
    """The ports that a process with this environment draws from."""
    worker = int(environment.get(_WORKER, "gw0").removeprefix("gw"))
    size = (_LAST - _FIRST) // int(environment.get(_WORKERS, "1"))
    return range(_FIRST + worker * size, _FIRST + (worker + 1) * size)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
