"""What may stand between a site and its server: a CONNECT proxy, and an ear behind TLS."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.federation.world import Federation
from tests.ports import free_port


class _Listener:
    """Accepts on 127.0.0.1 until it is closed; each connection has its thread."""

    def __init__(self) -> None:
        self.port = free_port()
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self._threads: list[threading.Thread] = []

    @contextlib.contextmanager
    def accepting(self, handle: Callable[[socket.socket], None]) -> Iterator[None]:
        def accept() -> None:
            while True:
                try:
                    connection, _ = self._socket.accept()
                except OSError:
                    return
                thread = threading.Thread(target=guarded, args=(connection,), daemon=True)
                thread.start()

        def guarded(connection: socket.socket) -> None:
            with contextlib.suppress(OSError, ssl.SSLError), connection:
                handle(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            thread.join(5)


class ConnectProxy:
    """An HTTP proxy that knows CONNECT alone, and whom it was asked for."""

    def __init__(self) -> None:
        self._listener = _Listener()
        self.targets: set[str] = set()

    @property
    def url(self) -> str:
        """For `HTTPS_PROXY`."""
        return f"http://127.0.0.1:{self._listener.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """It answers inside the block."""
        with self._listener.accepting(self._handle):
            yield

    def _handle(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        if method != "CONNECT":
            connection.sendall(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
            return
        self.targets.add(target)
        host, port = target.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as server:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            _pump_both(connection, server, lambda _: None)


class TlsTap:
    """Ends the sites' TLS with the server's own certificate, and keeps all that they sent."""

    def __init__(self) -> None:
        self._listener = _Listener()
        self._lock = threading.Lock()
        self._seen = bytearray()
        self._server: tuple[int, Path] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """It answers inside the block."""
        with self._listener.accepting(self._handle):
            yield

    @property
    def address(self) -> str:
        """What sites dial instead of the server's."""
        return f"localhost:{self._listener.port}"

    def stand_before(self, federation: Federation) -> None:
        """Sites dial this instead of the server."""
        port = int(federation.server_settings()["address"].split(":")[1])
        self._server = (port, federation.server / "certificates")
        for name in federation.sites:
            path = federation.site(name) / "kit" / "kit.json"
            kit = json.loads(path.read_text(encoding="utf-8"))
            kit["address"] = self.address
            path.write_text(json.dumps(kit), encoding="utf-8")

    def everything(self) -> bytes:
        """All bytes that sites sent, after TLS."""
        with self._lock:
            return bytes(self._seen)

    def _handle(self, connection: socket.socket) -> None:
        assert self._server is not None
        port, certificates = self._server
        inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inside.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        outside = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        with (
            inside.wrap_socket(connection, server_side=True) as site,
            socket.create_connection(("127.0.0.1", port)) as plain,
            outside.wrap_socket(plain, server_hostname="localhost") as server,
        ):
            _pump_both(site, server, self._keep)

    def _keep(self, content: bytes) -> None:
        with self._lock:
            self._seen += content


def _pump_both(site: socket.socket, server: socket.socket, sent: Callable[[bytes], None]) -> None:
    """Carry bytes both ways until one side closes; `sent` sees those of the site."""

    def pump(source: socket.socket, sink: socket.socket, look: Callable[[bytes], None]) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while content := source.recv(65536):
                look(content)
                sink.sendall(content)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=pump, args=(server, site, lambda _: None), daemon=True)
    back.start()
    pump(site, server, sent)
    back.join(5)
