"""The two doors of the server: what is open, to whom, and that all else is closed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from lift.protocol.flower.superlink import (
    LARGEST_REQUEST_BYTES,
    LOCAL_PATHS,
    OPEN_PATHS,
    SECRET_HEADER,
    Door,
)
from lift.protocol.flower.waiting import NEWS_PATH
from tests.federation.attackers import (
    EMPTY,
    Server,
    ask,
    post,
)

pytestmark = pytest.mark.timeout(300)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "X")
SECRET = "s" * 64
TRICKS = (
    "/",
    "//",
    "*",
    "//v1/fleet/pull-object",
    "/v1//fleet/pull-object",
    "/v1/fleet/pull-object/",
    "/v1/fleet/pull-object/.",
    "/v1/fleet/PULL-OBJECT",
    "/V1/fleet/pull-object",
    "/v1/fleet/pull-object%20",
    "/v1/fleet/pull-object%00",
    "/v1/fleet/pull-object%0d%0a",
    "/v1/fleet/pull-object;x",
    "/v1/fleet/pull-object%3fx",
    "/v1/fleet/pull-object%23x",
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/..%2fcontrol%2flist-nodes",
    "/v1/fleet/%252e%252e/control/list-nodes",
    "/v1/fleet/pull-object/../../control/list-nodes",
    "/v1%2fcontrol%2flist-nodes",
    "/v1/%63ontrol/list-nodes",
    "/health/../v1/control/list-nodes",
    "/v1/control/list-nodes?/v1/fleet/pull-object",
    "/v1/control/list-nodes#/v1/fleet/pull-object",
    "https://localhost/v1/control/list-nodes",
    "https://localhost/v1/runtime/acquire-task?x",
    "/HEALTH",
    "/health/",
    "/.well-known/x",
    "\\v1\\control\\list-nodes",
)


def routes(app: Any) -> list[str]:
    """The path of every route; those with a parameter would need a value for it."""
    found: set[str] = {str(context.path or "") for context in iter_route_contexts(app.routes)}
    found.discard("")
    assert len(found) > 20
    assert not [path for path in found if "{" in path]
    return sorted(found)


class Witness:
    """An app that says when it was reached."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def status(app: Any, method: str, path: str, headers: Mapping[str, str] = EMPTY) -> int:
    return int(ask(app, method, path, headers)[0]["status"])


def test_every_open_path_exists_in_flowers_app(app: Any) -> None:
    assert set(routes(app)) >= OPEN_PATHS
    # our own, before the app
    assert set(routes(app)) >= LOCAL_PATHS - {NEWS_PATH}
    assert NEWS_PATH not in routes(app)


def test_no_path_that_controls_or_admits_is_open() -> None:
    assert {path for path in OPEN_PATHS if not path.startswith("/v1/fleet/")} == {"/health"}
    assert not [path for path in OPEN_PATHS if "register" in path]
    assert not [path for path in LOCAL_PATHS if path.startswith("/v1/fleet/")]


@pytest.mark.parametrize("method", METHODS)
def test_the_public_door_answers_404_for_every_route_that_is_not_open(
    app: Any, method: str
) -> None:
    witness = Witness()
    door = Door(witness, OPEN_PATHS)
    for path in routes(app):
        assert status(door, method, path) == (299 if path in OPEN_PATHS else 404), path
    assert set(witness.reached) == OPEN_PATHS


@pytest.mark.parametrize("method", METHODS)
def test_the_local_door_needs_the_secret_and_holds_its_list_alone(app: Any, method: str) -> None:
    witness = Witness()
    door = Door(witness, LOCAL_PATHS, secret=SECRET.encode())
    wrong = ("", "S" * 64, SECRET[:-1], SECRET + "s", f"{SECRET}, {SECRET}", "Bearer " + SECRET)
    for path in routes(app):
        known = status(door, method, path, EMPTY | {SECRET_HEADER: SECRET})
        assert known == (299 if path in LOCAL_PATHS else 404), path
        for secret in (None, *wrong):
            more = {} if secret is None else {SECRET_HEADER: secret}
            # what is not in the list is 404 for everybody, so that nothing can be guessed
            closed = 403 if path in LOCAL_PATHS - {"/health"} else known
            assert status(door, method, path, EMPTY | more) == closed, (path, secret)


def test_a_route_that_flower_adds_is_closed_until_somebody_opens_it() -> None:
    witness = Witness()
    for door in (Door(witness, OPEN_PATHS), Door(witness, LOCAL_PATHS, secret=SECRET.encode())):
        for path in ("/v1/fleet/new", "/v1/control/new", "/v2/fleet/pull-object", "/metrics"):
            assert status(door, "POST", path, EMPTY | {SECRET_HEADER: SECRET}) == 404
    assert not witness.reached


def test_a_websocket_is_refused_in_its_own_words() -> None:
    events = ask(Door(Witness(), OPEN_PATHS), "GET", "/health", {}, kind="websocket")
    assert events[0]["type"] in {"websocket.close", "websocket.http.response.start"}


@pytest.mark.parametrize("path", TRICKS)
def test_path_tricks_reach_nothing(server: Server, path: str) -> None:
    code, answer = server.raw(post(path))
    assert code in {400, 404}
    assert len(answer.partition(b"\r\n\r\n")[2]) < 40


def test_the_open_paths_answer_a_stranger_with_a_refusal(server: Server) -> None:
    for path in OPEN_PATHS - {"/health"}:
        assert server.raw(post(path))[0] == 401, path
        # the same path in other letters: the same door, the same refusal
        odd = "/" + "".join(f"%{ord(letter):02x}" for letter in path[1:])
        assert server.raw(post(odd))[0] == 401, path
        assert server.raw(post(f"https://localhost{path}?x=1#y"))[0] == 401, path
    assert server.raw(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost/v1/runtime/pull-object?",
        "localhost/v1/runtime/pull-object#",
        "x@localhost/v1/runtime/pull-object?",
        "[::1]/v1/runtime/pull-object?",
        "",
        "a\\b",
    ],
)
def test_a_host_header_cannot_stand_for_another_path(server: Server, host: str) -> None:
    # Flower decides by the whole URL who must prove a key: the path must be the door's path
    assert server.raw(post("/v1/fleet/pull-object", host=host))[0] in {400, 401}


def test_a_websocket_and_other_protocols_reach_nothing(server: Server) -> None:
    upgrade = (
        b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    for path in (b"/v1/fleet/pull-object", b"/v1/control/list-nodes", b"/docs"):
        assert server.raw(b"GET " + path + b" HTTP/1.1\r\n" + upgrade)[0] >= 400
    assert server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[0] in {0, 400}
    assert server.raw(b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n")[0] >= 400


@pytest.mark.parametrize("path", ["/v1/fleet/push-object", "/v1/fleet/activate-node"])
def test_a_large_request_is_refused_before_it_is_read(server: Server, path: str) -> None:
    for length in (LARGEST_REQUEST_BYTES + 1, 10**18):
        assert server.raw(post(path, length=str(length)))[0] == 413
    assert server.raw(post(path, length="9" * 5000))[0] in {400, 413}
    # the limit itself is not too much
    at_limit = EMPTY | {"content-length": str(LARGEST_REQUEST_BYTES)}
    assert status(Door(Witness(), OPEN_PATHS), "POST", path, at_limit) == 299


def test_a_request_without_a_length_is_refused(server: Server) -> None:
    chunked = "Transfer-Encoding: chunked"
    for method in ("POST", "PUT", "DELETE"):
        content = post("/v1/fleet/push-object", method=method, more=chunked, length=None)
        assert server.raw(content + b"5\r\nhello\r\n0\r\n\r\n")[0] == 411


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Transfer-Encoding: xchunked\r\nContent-Length: 4",
        "Transfer-Encoding: gzip, chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 99999999999",
        "Content-Length: +4",
        "Content-Length: -4",
        "Content-Length: 0x4",
    ],
)
def test_two_lengths_or_none_that_count_are_refused(server: Server, lines: str) -> None:
    content = post("/v1/fleet/push-object", more=lines, length=None)
    assert server.raw(content + b"0\r\n\r\n")[0] == 400


def test_on_a_real_listener_the_ca_certificate_opens_fleet_and_health_alone(
    server: Server, app: Any
) -> None:
    for path in routes(app):
        if path in OPEN_PATHS:
            continue
        for method in ("GET", "POST"):
            assert server.raw(post(path, method=method))[0] == 404, path
            secret = f"{SECRET_HEADER}: {server.secret}"
            assert server.raw(post(path, method=method, more=secret))[0] == 404, path


def test_the_real_local_door_needs_the_secret(server: Server) -> None:
    port = server.settings.control_port
    for path in LOCAL_PATHS - {"/health"}:
        assert server.raw(post(path), port)[0] == 403, path
    good = f"{SECRET_HEADER}: {server.secret}"
    assert server.raw(post("/v1/control/list-nodes", more=good), port)[0] == 200
    for path in ("/docs", "/openapi.json", "/v1/fleet/pull-object", "/v1/control/pull-artifacts"):
        assert server.raw(post(path, more=good), port)[0] == 404
    # a second header cannot be hidden before or behind the first
    twice = f"{good}\r\n{SECRET_HEADER}: x"
    assert server.raw(post("/v1/control/list-nodes", more=twice), port)[0] == 403


def test_the_local_door_listens_on_loopback_alone(server: Server) -> None:
    port = f"{server.settings.control_port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    bound = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert [place for place in bound if place.endswith(f":{port}")] == [f"0100007F:{port}"]
    assert f":{port} " not in Path("/proc/net/tcp6").read_text()


def test_without_tls_there_is_no_answer(server: Server) -> None:
    for port in (server.settings.listen_port, server.settings.control_port):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            with suppress(OSError):
                answer = plain.recv(1000)
        assert b"HTTP/" not in answer


def test_a_stale_tls_version_is_refused(server: Server) -> None:
    context = ssl.create_default_context(cafile=server.settings.ca)
    # an old client is what is played here
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version, context.maximum_version = (
            ssl.TLSVersion.TLSv1,
            ssl.TLSVersion.TLSv1_1,
        )
    with (
        socket.create_connection(("127.0.0.1", server.settings.listen_port), timeout=10) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")
