"""The doors under attack: what must be closed is tried, over every route that Flower has."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import socketserver
import sqlite3
import ssl
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.routing import iter_route_contexts
from flwr.app import RecordDict
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.routers.fleet import node_auth

from lift.config.plan import NoPrivacy, Plan, TaskPlan
from lift.protocol.codec import encode
from lift.protocol.flower.children import write_local_certificate
from lift.protocol.flower.executor import SuperNode
from lift.protocol.flower.records import pack
from lift.protocol.flower.superlink import (
    LARGEST_REQUEST_BYTES,
    LOCAL_PATHS,
    OPEN_PATHS,
    SECRET_HEADER,
    Door,
    make_app,
)
from lift.protocol.flower.supernode import CHILD_PATHS, SuperNodeSettings
from lift.protocol.messages import Kind, Parcel, StatisticsRequest
from lift_client.enrolment import enrol
from lift_server.certificates import renew_server_certificate
from lift_server.provisioning import init_folder
from tests.federation.attackers import (
    LOCAL_CERTIFICATE,
    LOCAL_KEY,
    SITES,
    ChildApi,
    Outlaw,
    Server,
    first_reply,
    in_background,
    make_key,
    running_server,
    signature_of,
    site_settings,
    stub_fab,
)
from tests.federation.world import until

pytestmark = pytest.mark.timeout(300)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "X")
SECRET = "s" * 64
EMPTY = {"content-length": "0", "content-type": PROTOBUF_MEDIA_TYPE}
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("doors")) as made:
        yield made


@pytest.fixture(scope="module")
def app(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same app in this process, with a state of its own."""
    database = tmp_path_factory.mktemp("app") / "superlink.db"
    with warnings.catch_warnings():
        # Flower's way of calling its migrations
        warnings.simplefilter("ignore", DeprecationWarning)
        return make_app(dataclasses.replace(server.settings, database=str(database)))


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


def ask(
    app: Any,
    method: str,
    path: str,
    headers: Mapping[str, str],
    *,
    kind: str = "http",
    body: bytes = b"",
) -> list[dict[str, Any]]:
    """The events that an ASGI app answers with, without a network between."""
    sent: list[dict[str, Any]] = []
    chunks: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return chunks.pop() if chunks else {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    scope = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 443),
    }
    asyncio.run(app(scope, receive, send))
    return sent


def status(app: Any, method: str, path: str, headers: Mapping[str, str] = EMPTY) -> int:
    return int(ask(app, method, path, headers)[0]["status"])


def test_every_open_path_exists_in_flowers_app(app: Any) -> None:
    assert set(routes(app)) >= OPEN_PATHS
    assert set(routes(app)) >= LOCAL_PATHS


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


# --- the fleet, with keys ---------------------------------------------------------------------


def post(
    path: str,
    *,
    method: str = "POST",
    host: str = "localhost",
    more: str = "",
    length: str | None = "0",
) -> bytes:
    """One request without a body, byte by byte."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {PROTOBUF_MEDIA_TYPE}"]
    lines += ["Connection: close"]
    lines += [more] if more else []
    lines += [f"Content-Length: {length}"] if length is not None else []
    return "\r\n".join([*lines, "", ""]).encode()


def node_requests(node: Node) -> dict[str, Any]:
    """One request for every fleet path that acts for a node."""
    return {
        "deactivate-node": DeactivateNodeRequest(node_id=node.node_id),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
        "pull-messages": PullMessagesRequest(node=node),
        "push-messages": PushMessagesRequest(node=node),
        "get-run": GetRunRequest(node=node, run_id=1),
        "get-fab": GetFabRequest(node=node, hash_str="0" * 64, run_id=1),
        "push-object": PushObjectRequest(node=node, run_id=1, object_id="0" * 64),
        "pull-object": PullObjectRequest(node=node, run_id=1, object_id="0" * 64),
        "confirm-message-received": ConfirmMessageReceivedRequest(
            node=node, run_id=1, message_object_id="0" * 64
        ),
    }


def node_rows(server: Server) -> list[tuple[Any, ...]]:
    """Every row that the server keeps of its nodes."""
    with sqlite3.connect(f"file:{server.settings.database}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT * FROM node ORDER BY node_id").fetchall()
    database.close()
    return rows


@pytest.fixture(scope="module")
def sites(server: Server) -> dict[str, Outlaw]:
    """The admitted sites, connected."""
    made = {name: server.outlaw(name) for name in SITES}
    for site in made.values():
        assert site.activate().is_success
    return made


@pytest.fixture
def east(sites: dict[str, Outlaw]) -> Outlaw:
    """One of them."""
    return sites["east"]


def test_every_open_path_that_acts_for_a_node_is_attacked() -> None:
    tried = {f"/v1/fleet/{name}" for name in node_requests(Node(node_id=1))}
    assert tried | {"/health", "/v1/fleet/activate-node"} == OPEN_PATHS
    assert all(("POST", path) in PROTOBUF_REQUEST_TYPES for path in OPEN_PATHS - {"/health"})


def test_an_unknown_key_is_refused_and_leaves_no_trace(server: Server, east: Outlaw) -> None:
    stranger = Outlaw(server.settings.listen_port, Path(server.settings.ca), make_key())
    before = node_rows(server)
    assert not stranger.activate().is_success
    for name, request in node_requests(east.node).items():
        assert stranger.send(name, request).status_code == 401, name
    register = RegisterNodeFleetRequest(public_key=stranger.public_key)
    assert stranger.send("register-node", register).status_code == 404
    assert east.send("register-node", register).status_code == 404
    unregister = UnregisterNodeFleetRequest(node_id=east.node.node_id)
    assert east.send("unregister-node", unregister).status_code == 404
    assert node_rows(server) == before


def test_a_sites_key_speaks_for_no_other_site(server: Server, sites: dict[str, Outlaw]) -> None:
    east, north = sites["east"], sites["north"]
    before = node_rows(server)
    for node in (north.node, Node(), Node(node_id=2**63), Node(node_id=1)):
        for name, request in node_requests(node).items():
            assert east.send(name, request).status_code == 401, name
    stolen = ActivateNodeRequest(public_key=north.public_key, heartbeat_interval=30)
    assert east.send("activate-node", stolen).status_code == 401
    assert node_rows(server) == before


@pytest.mark.parametrize("late_by", [timedelta(minutes=10), timedelta(minutes=-10)])
def test_a_clock_that_is_ten_minutes_off_is_refused(
    server: Server, east: Outlaw, late_by: timedelta
) -> None:
    before = node_rows(server)
    request = ActivateNodeRequest(public_key=east.public_key, heartbeat_interval=30)
    for name, one in {"activate-node": request, **node_requests(east.node)}.items():
        assert east.send(name, one, late_by=late_by).status_code == 401, name
    assert node_rows(server) == before
    heartbeat = SendNodeHeartbeatRequest(node=east.node, heartbeat_interval=1800)
    assert east.send("send-node-heartbeat", heartbeat).is_success


def test_a_signature_that_was_overheard_is_worth_nothing_after_its_window(
    server: Server, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key()
    overheard = signature_of(key, now()) | EMPTY
    request = ActivateNodeRequest(
        public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=30
    )
    door = Door(app, OPEN_PATHS)

    def replayed(after_s: float) -> int:
        moment = now() + timedelta(seconds=after_s)
        monkeypatch.setattr(node_auth, "now", lambda: moment)
        body = request.SerializeToString()
        events = ask(door, "POST", "/v1/fleet/activate-node", overheard, body=body)
        return int(events[0]["status"])

    # within the window it is as good as new: then the key is asked for, and is not admitted
    assert [replayed(after_s) for after_s in (0, 290)] == [412, 412]
    assert [replayed(after_s) for after_s in (306, 3600, 1e7, -60)] == [401] * 4


def test_a_signature_counts_for_its_own_time_and_key_alone(server: Server, east: Outlaw) -> None:
    request = SendNodeHeartbeatRequest(node=east.node, heartbeat_interval=30)
    own = signature_of(east.key, now())
    foreign = signature_of(make_key(), now())
    older = signature_of(east.key, now() - timedelta(minutes=20))
    key, stamp, signature = own
    for forged in (
        {stamp: own[stamp], signature: older[signature]},
        {signature: foreign[signature]},
        {key: foreign[key]},
        {signature: ""},
        {signature: "!"},
        {signature: "AAAA"},
        {key: "AAAA"},
        {stamp: "yesterday"},
        {stamp: "2026-01-01"},
        {stamp: datetime.now(UTC).replace(tzinfo=None).isoformat()},
    ):
        assert east.send("send-node-heartbeat", request, changed=forged).status_code == 401, forged


def test_a_key_of_another_kind_is_refused(server: Server, east: Outlaw) -> None:
    request = SendNodeHeartbeatRequest(node=east.node, heartbeat_interval=30)
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    text = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key = next(iter(signature_of(east.key, now())))
    answer = east.send("send-node-heartbeat", request, changed={key: b64encode(text).decode()})
    assert answer.status_code == 401


def test_a_removed_site_is_refused_at_once_and_the_others_are_not(
    server: Server, sites: dict[str, Outlaw]
) -> None:
    east, west = sites["east"], sites["west"]
    server.admit("east", "north")
    for name, request in node_requests(west.node).items():
        assert west.send(name, request).status_code == 401, name
    assert not west.activate().is_success
    heartbeat = SendNodeHeartbeatRequest(node=east.node, heartbeat_interval=1800)
    assert east.send("send-node-heartbeat", heartbeat).is_success
    # its old key stays out, whatever name it is brought back under
    server.keys["west-again"] = server.keys["west"]
    server.admit("east", "north", "west-again")
    assert not west.activate().is_success


def test_an_answer_of_the_public_door_tells_nothing_of_the_server(
    server: Server, east: Outlaw
) -> None:
    answers = [server.raw(post(path))[1] for path in ("/docs", "/v1/fleet/get-run", "/health")]
    answers += [east.send(n, r).content for n, r in node_requests(Node(node_id=5)).items()]
    for answer in answers:
        for private in (b"Traceback", b"/superlink", b".db", b"uvicorn", b"sqlalchemy", b"File "):
            assert private not in answer


# --- at the site: loopback --------------------------------------------------------------------


def a_request() -> RecordDict:
    task = TaskPlan(source=("t1n",), target="t2f")
    plan = Plan(task=task, privacy=NoPrivacy(mode="none"))
    return pack(encode(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))))


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> ChildApi:
    folder = tmp_path_factory.mktemp("child")
    return ChildApi(stub_fab(), a_request(), folder, secret=SECRET.encode())


def test_the_childs_api_gives_nothing_without_secret_or_token(child: ChildApi) -> None:
    paths = {str(found.path or "") for found in iter_route_contexts(child.app.routes)} - {""}
    # a route that Flower adds is closed until it stands in the list
    assert len(paths) > 15
    assert paths > CHILD_PATHS
    wrong = [
        {},
        {"flwr-task-token": "x"},
        {"flwr-task-token": ""},
        {"authorization": "Bearer x"},
        {"authorization": "Bearer"},
    ]
    with child.running(), child.http() as client:
        for path in sorted(paths - CHILD_PATHS):
            for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
                assert client.request(method, path).status_code == 404, path
        for path in sorted(CHILD_PATHS):
            for headers in wrong:
                sent = headers | {"content-type": PROTOBUF_MEDIA_TYPE}
                answer = client.post(path, content=b"", headers=sent)
                assert answer.status_code in {401, 403}, (path, headers, answer)
                plain = headers | {"content-type": "application/json"}
                assert client.post(path, content=b"{}", headers=plain).status_code >= 400
            for method in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS"):
                assert client.request(method, path).status_code in {405, 411}, path
    assert not child.replies()


@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect", "/openapi.json"])
def test_the_childs_api_has_no_page_for_anybody(child: ChildApi, path: str) -> None:
    with child.running(), child.http() as client:
        assert client.get(path).status_code == 404


def test_an_impostor_on_the_local_port_gets_no_answer(tmp_path: Path) -> None:
    (tmp_path / "executor.secret").write_bytes(SECRET.encode())
    write_local_certificate(tmp_path / LOCAL_CERTIFICATE, tmp_path / LOCAL_KEY)
    (tmp_path / "elsewhere").mkdir()
    impostor = ChildApi(stub_fab(), a_request(), tmp_path / "elsewhere", secret=None)
    asked: list[Parcel] = []
    assert first_reply(impostor, tmp_path, asked) is None
    assert not asked


# --- at the site: whom it talks to ------------------------------------------------------------


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
