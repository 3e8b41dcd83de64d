"""The fleet: every request needs the key of the node that it speaks for."""

from __future__ import annotations

import sqlite3
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
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
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.routers.fleet import node_auth

from lift.protocol.flower.superlink import (
    OPEN_PATHS,
    Door,
)
from tests.federation.attackers import (
    EMPTY,
    SITES,
    Outlaw,
    Server,
    ask,
    make_key,
    post,
    signature_of,
)

pytestmark = pytest.mark.timeout(300)


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
