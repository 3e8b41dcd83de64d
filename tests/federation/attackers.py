"""Tools of an attacker at the server: raw bytes, and sites that keep no rule."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from lift.protocol.flower.coordinator import Coordinator, SuperLink, make_secret
from lift.protocol.flower.superlink import SuperLinkSettings
from lift.protocol.messages import Answer, Parcel
from lift.protocol.transport import Transport
from lift_server.sites.provisioning import init_folder
from tests.federation.world import until
from tests.ports import free_port

EMPTY = {"content-length": "0", "content-type": PROTOBUF_MEDIA_TYPE}
SITES = ("east", "north", "west")
Deflated = tuple[str, dict[str, bytes], ObjectTree]
"""Identity of the head, contents by identity, tree of identities."""


@dataclass
class Server:
    """A SuperLink that runs, with the keys of the sites that it admitted."""

    settings: SuperLinkSettings
    superlink: SuperLink
    coordinator: Coordinator
    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)

    @property
    def secret(self) -> str:
        """What opens the local door."""
        return Path(self.settings.secret).read_text(encoding="ascii")

    def admit(self, *sites: str) -> None:
        """Make the admitted sites exactly these."""
        self.coordinator.admit({site: public_line(self.keys[site]) for site in sites})

    def outlaw(self, site: str) -> Outlaw:
        """A site by hand, with the key that was admitted."""
        return Outlaw(self.settings.listen_port, Path(self.settings.ca), self.keys[site])

    def raw(self, content: bytes, port: int | None = None) -> tuple[int, bytes]:
        """Status and the whole answer to bytes sent after TLS."""
        port = self.settings.listen_port if port is None else port
        context = ssl.create_default_context(cafile=self.settings.ca)
        answer = b""
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            # a server that has answered need not read the rest
            with contextlib.suppress(OSError):
                connection.sendall(content)
            with contextlib.suppress(OSError):
                while more := connection.recv(65536):
                    answer += more
        return status_of(answer), answer

    @contextlib.contextmanager
    def exchange(
        self, requests: Mapping[str, Parcel], deadline_s: float
    ) -> Iterator[Future[dict[str, Answer]]]:
        """One exchange in a run of its own, while the block plays the sites."""
        answers: list[dict[str, Answer]] = []

        def ask(transport: Transport) -> None:
            answers.append(transport.exchange(requests, deadline_s=deadline_s))

        def run() -> dict[str, Answer]:
            self.coordinator.run(ask)
            return answers[0]

        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(run)
            try:
                yield answer
            except TimeoutError:
                # nobody was asked: the reason is the other thread's
                answer.result(60)
                raise


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """A SuperLink child with TLS on that admits `SITES`."""
    init_folder(folder, ["localhost"], "trial")
    certificates = folder / "certificates"
    settings = SuperLinkSettings(
        listen_host="127.0.0.1",
        listen_port=free_port(),
        control_port=free_port(),
        ca=str(certificates / "ca.pem"),
        certificate=str(certificates / "server.pem"),
        key=str(certificates / "server.key"),
        database=str(folder / "superlink.db"),
        secret=str(folder / "executor.secret"),
        second_sessions=str(folder / "second-sessions.txt"),
    )
    make_secret(Path(settings.secret))
    superlink = SuperLink(settings, folder / "superlink.log")
    with superlink.running():
        coordinator = Coordinator(superlink, settings)
        server = Server(settings, superlink, coordinator, {site: make_key() for site in SITES})
        try:
            server.admit(*SITES)
            yield server
        finally:
            coordinator.close()


class Outlaw:
    """A site that speaks to the fleet's API by hand and may lie about anything."""

    def __init__(self, port: int, ca: Path, key: ec.EllipticCurvePrivateKey) -> None:
        self._address = f"https://localhost:{port}/v1/fleet/"
        self._ca = ca
        self.key = key
        self.node = Node()

    @property
    def public_key(self) -> bytes:
        """As Flower writes it."""
        return public_key_to_bytes(self.key.public_key())

    def send(
        self,
        name: str,
        request: Any,
        *,
        late_by: timedelta = timedelta(),
        changed: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Post one signed request.

        `late_by` moves the time that is signed into the past; `changed` replaces headers.
        """
        stamp = signature_of(self.key, now() - late_by) | dict(changed or {})
        with httpx.Client(
            verify=ssl.create_default_context(cafile=str(self._ca)), trust_env=False, timeout=10
        ) as client:
            return client.post(
                self._address + name,
                content=request.SerializeToString(),
                headers={"content-type": PROTOBUF_MEDIA_TYPE} | stamp,
            )

    def activate(self) -> httpx.Response:
        """Join; the node's number is kept."""
        request = ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=1800)
        response = self.send("activate-node", request)
        if response.is_success:
            joined = ActivateNodeResponse.FromString(response.content)
            self.node = Node(node_id=joined.node_id)
        return response

    def pull(self, timeout_s: float = 20.0) -> Metadata:
        """Wait for the next message that is meant for this site."""
        found: list[Metadata] = []

        def look() -> bool:
            response = self.send("pull-messages", PullMessagesRequest(node=self.node))
            response.raise_for_status()
            pulled = PullMessagesResponse.FromString(response.content).messages_list
            found.extend(message_from_proto(proto).metadata for proto in pulled)
            return bool(found)

        until(look, timeout_s, "a message for the site")
        return found[0]

    def push(self, metadata: Metadata, deflated: Deflated) -> None:
        """Push a message with this outer description and these objects, whatever they are."""
        self.deliver(metadata.run_id, self.announce(metadata, deflated), deflated)

    def announce(self, metadata: Metadata, deflated: Deflated) -> PushMessagesResponse:
        """The first half of a push: what will come."""
        head, _, tree = deflated
        proto = message_to_proto(make_message(metadata=metadata, content=RecordDict()))
        proto.metadata.message_id = head
        request = PushMessagesRequest(
            node=self.node,
            messages_list=[proto],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.1],
        )
        response = self.send("push-messages", request)
        response.raise_for_status()
        pushed: PushMessagesResponse = PushMessagesResponse.FromString(response.content)
        return pushed

    def deliver(self, run_id: int, pushed: PushMessagesResponse, deflated: Deflated) -> None:
        """The second half: the objects that the server asked for."""
        for identity in pushed.objects_to_push:
            request = PushObjectRequest(
                node=self.node,
                run_id=run_id,
                session_id=pushed.session_id,
                object_id=identity,
                object_content=deflated[1][identity],
            )
            answer = self.send("push-object", request)
            answer.raise_for_status()
            assert PushObjectResponse.FromString(answer.content).stored


def reply_metadata(to: Metadata, **changes: Any) -> Metadata:
    """What an honest reply says of itself, with some of it changed."""
    at = now().timestamp()
    values: dict[str, Any] = {
        "run_id": to.run_id,
        "message_id": "",
        "src_node_id": to.dst_node_id,
        "dst_node_id": SUPERLINK_NODE_ID,
        "reply_to_message_id": to.message_id,
        "group_id": to.group_id,
        "created_at": at,
        "ttl": to.created_at + to.ttl - at,
        "message_type": to.message_type,
    }
    return Metadata(**(values | changes))


def deflate(metadata: Metadata, content: RecordDict) -> Deflated:
    """A message as the objects that travel."""
    message = make_message(metadata=metadata, content=content)
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return message.object_id, contents, get_object_tree(message)


def deflated_by_hand(*contents: bytes) -> Deflated:
    """Objects of any content; the last one is the head, the others are its children."""
    named = {hashlib.sha256(content).hexdigest(): content for content in contents}
    *children, head = named
    tree = ObjectTree(object_id=head, children=[ObjectTree(object_id=name) for name in children])
    return head, named, tree


def flower_object(kind: str, body: bytes, children: Iterable[str] = ()) -> bytes:
    """An object with the head that the store asks for, whatever its body holds."""
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body


def signature_of(key: ec.EllipticCurvePrivateKey, at: datetime) -> dict[str, str]:
    """The headers by which a site proves its key, signed at any time."""
    stamp = at.isoformat()
    public = public_key_to_bytes(key.public_key())
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public).decode("ascii"),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, stamp.encode())).decode("ascii"),
    }


def make_key() -> ec.EllipticCurvePrivateKey:
    """A site's key."""
    return ec.generate_private_key(ec.SECP384R1())


def public_line(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half as a roster keeps it."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def status_of(answer: bytes) -> int:
    """Status of a raw HTTP answer; 0 when there is none."""
    parts = answer.split(b" ", 2)
    return int(parts[1]) if answer.startswith(b"HTTP/") and len(parts) > 2 else 0


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
