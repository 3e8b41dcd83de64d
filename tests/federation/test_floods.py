"""A flood of silent connections: they are closed, and a site is answered meanwhile."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from pathlib import Path

import pytest

from lift.protocol.flower.floods import (
    HANDSHAKE_S,
    MOST_OF_ONE_ADDRESS,
    REQUEST_S,
    raise_descriptor_limit,
)
from tests.federation.attackers import SITES, Server

pytestmark = pytest.mark.timeout(120)
SILENT = 1100
"""More than the usual limit of 1,024 descriptors of a process."""


def closed_within(connections: list[socket.socket], seconds: float) -> int:
    """How many of them the other side closes in this time."""
    poll = select.poll()
    left = {connection.fileno() for connection in connections}
    for number in left:
        poll.register(number, select.POLLIN | select.POLLHUP)
    closed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for number, _ in poll.poll(100):
            poll.unregister(number)
            left.discard(number)
            closed += 1
        if not left:
            break
    return closed


def test_connections_that_never_begin_cut_no_site_off(server: Server) -> None:
    port = server.settings.listen_port
    with contextlib.ExitStack() as stack:
        raise_descriptor_limit()
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(SILENT)
        ]
        assert server.outlaw(SITES[0]).activate().is_success
        assert closed_within(silent, HANDSHAKE_S + 20) == SILENT


def test_connections_that_ask_for_nothing_are_closed_and_have_a_limit(server: Server) -> None:
    context = ssl.create_default_context(cafile=str(Path(server.settings.ca)))
    port = server.settings.listen_port
    with contextlib.ExitStack() as stack:
        idle: list[socket.socket] = []
        refused = 0
        for _ in range(MOST_OF_ONE_ADDRESS + 40):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            try:
                idle.append(
                    stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
                )
            except OSError:
                refused += 1
        # it is closed as soon as it is there: before or after the client thinks that it has it
        assert closed_within(idle, 2.0) + refused >= 40
        assert closed_within(idle, REQUEST_S + 20) + refused == MOST_OF_ONE_ADDRESS + 40
    assert server.outlaw(SITES[1]).activate().is_success
