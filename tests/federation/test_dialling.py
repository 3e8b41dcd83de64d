"""Whom a site talks to: its server, over TLS, and nobody else."""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lift.protocol.flower.executor import SuperNode
from lift.protocol.flower.supernode import SuperNodeSettings
from lift_client.enrolment import enrol
from lift_server.sites.certificates import renew_server_certificate
from lift_server.sites.provisioning import init_folder
from tests.federation.local_child import (
    in_background,
    site_settings,
)
from tests.federation.world import until

pytestmark = pytest.mark.timeout(300)


class Trap(socketserver.ThreadingTCPServer):
    """Takes connections, with TLS or without, and keeps what was said after the handshake."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, context: ssl.SSLContext | None = None, answer: bytes = b"") -> None:
        super().__init__(("0.0.0.0", 0), _Caught)  # noqa: S104  # two loopback addresses
        self.context = context
        self.answer = answer
        self.seen: list[bytes] = []
        self.refused = 0

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @contextmanager
    def running(self) -> Iterator[None]:
        with in_background(self.serve_forever), self:
            yield
            self.shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is part of the game."""


class _Caught(socketserver.BaseRequestHandler):
    server: Trap

    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.settimeout(5)
        if self.server.context is not None:
            try:
                connection = self.server.context.wrap_socket(connection, server_side=True)
            except OSError:
                self.server.refused += 1
                return
        with suppress(OSError):
            self.server.seen.append(connection.recv(65536))
            connection.sendall(self.server.answer)
            connection.close()


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's folder with a site's key in it."""
    folder = tmp_path_factory.mktemp("enrolled")
    init_folder(folder, ["localhost"], "trial")
    enrol(folder / "site", "north")
    return folder


def tls(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates = folder / "certificates"
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return context


def dial(
    settings: SuperNodeSettings,
    folder: Path,
    trap: Trap,
    done: Callable[[], bool] | None = None,
) -> None:
    """Let the real child dial until the trap has noticed, or until `done`."""
    node = SuperNode(settings, folder / "connection.log")
    with trap.running():
        node.look_after()
        try:
            until(lambda: bool(trap.seen or trap.refused), 30, "the site dials")
            if done is not None:
                with suppress(TimeoutError):
                    until(done, 5, "more")
        finally:
            # it would take its time to say goodbye to nobody
            os.kill(node.pid, signal.SIGKILL)
            node.stop()


def test_the_site_speaks_to_its_server(enrolled: Path, tmp_path: Path) -> None:
    trap = Trap(tls(enrolled))
    dial(site_settings(enrolled, f"localhost:{trap.port}"), tmp_path, trap)
    assert trap.seen[0].startswith(b"POST /v1/fleet/activate-node HTTP/1.1\r\n")


@pytest.mark.parametrize("flaw", ["foreign CA", "expired", "not yet valid", "wrong name"])
def test_the_site_says_nothing_to_a_server_with_a_wrong_certificate(
    enrolled: Path, tmp_path: Path, flaw: str
) -> None:
    folder, host = tmp_path / "server", "localhost"
    long_ago = datetime.now(UTC) - timedelta(days=1000)
    # only the server's certificate has ended by now, the authority's has not
    init_folder(folder, ["localhost"], "trial", now=long_ago if flaw == "expired" else None)
    ca = folder / "certificates" / "ca.pem"
    if flaw == "foreign CA":
        ca = enrolled / "certificates" / "ca.pem"
    elif flaw == "wrong name":
        host = "127.0.0.2"
    elif flaw == "not yet valid":
        at = datetime.now(UTC) + timedelta(days=100)
        renew_server_certificate(folder / "certificates", ["localhost"], now=at)
    trap = Trap(tls(folder))
    settings = site_settings(enrolled, f"{host}:{trap.port}")
    dial(SuperNodeSettings(**{**vars(settings), "ca": str(ca)}), tmp_path, trap)
    assert trap.refused, trap.seen
    assert not any(trap.seen)


def test_the_site_says_nothing_without_tls(enrolled: Path, tmp_path: Path) -> None:
    trap = Trap(None, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    dial(site_settings(enrolled, f"localhost:{trap.port}"), tmp_path, trap)
    # a TLS handshake record, and not a word of HTTP
    assert all(content[:1] == b"\x16" for content in trap.seen)
    assert not any(b"fleet" in content for content in trap.seen)


def test_the_site_dials_no_other_address_whatever_the_server_says(
    enrolled: Path, tmp_path: Path
) -> None:
    inside = Trap()
    there = f"http://127.0.0.1:{inside.port}/inside"
    answer = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n"
    trap = Trap(tls(enrolled), answer.encode())
    with inside.running():
        settings = site_settings(enrolled, f"localhost:{trap.port}")
        dial(settings, tmp_path, trap, lambda: bool(inside.seen))
    assert not inside.seen
