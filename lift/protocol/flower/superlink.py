"""The server's child process: Flower's SuperLink behind two listeners.

One app, two doors. The public one answers what a site needs and 404 for everything else: a
route that Flower adds is closed until it stands in `OPEN_PATHS`. The other one listens on
127.0.0.1 and holds the control of runs; there, too, every path that is not needed is closed.

The process ends when its parent does: it reads its standard input, a pipe that only closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Self

from lift.process import keep_files_private, prepare_process
from lift.protocol.flower.children import TLS_CIPHERS, end_with_parent, forbid_telemetry
from lift.protocol.flower.floods import Loop, guarded_protocol, raise_descriptor_limit
from lift.protocol.flower.forgetting import overwrite_what_is_deleted
from lift.protocol.flower.sessions import App, Receive, Scope, Send, Sessions
from lift.protocol.flower.short_way import ShortWay, fleet_answers, runtime_answers
from lift.protocol.flower.waiting import NEWS_PATH, Holding, News, NewsDesk, Telling
from lift.protocol.messages import PROTOCOL_VERSION, VERSION_HEADER

if TYPE_CHECKING:
    import uvicorn

LARGEST_REQUEST_BYTES: Final = 32 << 20
"""A larger request is refused with 413 before it is read."""
OPEN_PATHS: Final = frozenset(
    {
        "/health",
        "/v1/fleet/activate-node",
        "/v1/fleet/deactivate-node",
        "/v1/fleet/send-node-heartbeat",
        "/v1/fleet/pull-messages",
        "/v1/fleet/push-messages",
        "/v1/fleet/get-run",
        "/v1/fleet/get-fab",
        "/v1/fleet/push-object",
        "/v1/fleet/pull-object",
        "/v1/fleet/confirm-message-received",
    }
)
"""What the public port answers. Registering a node is not among it: the coordinator admits."""
LOCAL_PATHS: Final = frozenset(
    {
        "/health",
        "/v1/control/start-run",
        "/v1/control/stop-run",
        "/v1/control/list-runs",
        "/v1/control/register-node",
        "/v1/control/unregister-node",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/runtime/send-task-heartbeat",
        "/v1/runtime/pull-task-input",
        "/v1/runtime/push-task-output",
        "/v1/runtime/push-object",
        "/v1/runtime/pull-object",
        "/v1/runtime/confirm-message-received",
        "/v1/runtime/push-messages",
        "/v1/runtime/pull-messages",
        "/v1/runtime/get-nodes",
        NEWS_PATH,
    }
)
"""What 127.0.0.1 answers, to the holder of the executor's secret."""
SECRET_HEADER: Final = "x-lift-secret"  # noqa: S105  # a name, not a value
_ASKED: Final = frozenset({"/v1/runtime/push-messages", "/v1/runtime/push-object"})
"""Paths by which the coordinator sends a request to sites."""
_ANSWERED: Final = frozenset({"/v1/fleet/push-messages", "/v1/fleet/push-object"})
"""Paths by which a site sends its answer."""
_QUESTION: Final = "/v1/fleet/pull-messages"
_GRACE_S: Final = 2
LEASE_S: Final = 20.0
"""A site that was silent for so long is gone: two of Flower's shortest heartbeats."""
_LOOK_FOR_LOST_TASKS_S: Final = 1.0
_LOOK_FOR_END_S: Final = 0.1


@dataclass(frozen=True)
class ChildSettings:
    """Settings of a child process. Secrets are paths."""

    def to_json(self) -> str:
        """For the child's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_command_line(cls) -> Self:
        """In the child: what its first argument says."""
        return cls(**json.loads(sys.argv[1]))


@dataclass(frozen=True)
class SuperLinkSettings(ChildSettings):
    """Addresses and files of the child."""

    listen_host: str
    listen_port: int
    control_port: int
    ca: str
    certificate: str
    key: str
    database: str
    secret: str
    second_sessions: str
    """Gets a line, the public key, when a key was used for a second session."""


class Door:
    """An ASGI app that lets only some paths, and no large request, through to another.

    Args:
        app: the app behind it.
        paths: what is open; anything else is 404, whatever its method.
        secret: when given, every path but /health needs it in `SECRET_HEADER` (403).
    """

    def __init__(self, app: App, paths: frozenset[str], *, secret: bytes | None = None) -> None:
        self._app = app
        self._paths = paths
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event stream."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        plain = send

        async def send_with_version(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start":
                version = VERSION_HEADER.encode(), str(PROTOCOL_VERSION).encode()
                event = {**event, "headers": [*event.get("headers", []), version]}
            await plain(event)

        send = send_with_version
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope.get("path", "")
        if scope["type"] != "http" or path not in self._paths:
            await _answer(send, 404)
            return
        headers = dict(scope["headers"])
        if self._secret is not None and path != "/health" and not self._knows(headers):
            await _answer(send, 403)
            return
        if scope["method"] == "HEAD":
            # the server itself leaves the body out
            scope = {**scope, "method": "GET"}
        length = headers.get(b"content-length", b"")
        if not length.isdigit() and scope["method"] != "GET":
            await _answer(send, 411)
            return
        if length.isdigit() and int(length) > LARGEST_REQUEST_BYTES:
            await _answer(send, 413)
            return
        await self._app(scope, receive, send)

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        import hmac

        given = headers.get(SECRET_HEADER.encode(), b"")
        return self._secret is not None and hmac.compare_digest(given, self._secret)


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def check_senders() -> None:
    """Make Flower refuse a reply that does not come from the node whose key signed the request.

    Flower compares the key with the node that the request names, and not with the sender that
    the reply inside it names.
    """
    from fastapi import HTTPException
    from flwr.superlink.servicer.fleet import fleet_handlers

    plain: Any = fleet_handlers.push_messages

    def push_messages(request: Any, state: Any) -> Any:
        replies, trees = request.messages_list, request.message_object_trees
        if len(replies) != 1 or len(trees) != 1:
            raise HTTPException(400, "one reply a request")
        if replies[0].metadata.src_node_id != request.node.node_id:
            raise HTTPException(403, "a reply of another node")
        return plain(request, state)

    fleet_handlers.push_messages = push_messages


def spare_the_database() -> None:
    """Skip a database write of Flower in each request, which is not needed here.

    It counts bytes for a bill, and looks for tasks whose process is gone with every question:
    once a second is often enough.
    """
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

    look: Callable[[Any], None] = SqlLinkState._cleanup_expired_task_tokens  # noqa: SLF001
    looked = [-math.inf]

    def look_sometimes(state: Any) -> None:
        now = monotonic()
        if now - looked[0] >= _LOOK_FOR_LOST_TASKS_S:
            looked[0] = now
            look(state)

    for name, replacement in (
        ("_cleanup_expired_task_tokens", look_sometimes),
        ("store_traffic", lambda *_, **__: None),
    ):
        setattr(SqlLinkState, name, replacement)


def make_app(settings: SuperLinkSettings) -> App:
    """Flower's SuperLink app, with node authentication on and its state on disk."""
    from flwr.supercore.auth import load_superexec_auth_secret
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    forbid_telemetry()
    files = (settings.ca, settings.certificate, settings.key)
    ca, certificate, key = (Path(name).read_bytes() for name in files)
    config = SuperLinkLifespanConfig(
        control_address="127.0.0.1:0",
        health_server_address=None,
        host="127.0.0.1",
        port=settings.control_port,
        insecure=False,
        certificates=(ca, certificate, key),
        superexec_auth_secret=load_superexec_auth_secret(secret_file=settings.secret),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=settings.ca,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        database=settings.database,
        isolation="process",
        runtime_dependency_install=False,
    )
    check_senders()
    spare_the_database()
    overwrite_what_is_deleted()
    app: App = create_app(config, SuperLinkLifespan)
    return app


def door_config(
    settings: SuperLinkSettings, door: App, host: str, port: int, *, lifespan: bool
) -> uvicorn.Config:
    """How one door is served, over TLS.

    Args:
        settings: name the certificate and its key.
        door: what answers.
        host: where it listens.
        port: likewise.
        lifespan: whether the app starts and ends with this door.
    """
    import uvicorn

    return uvicorn.Config(
        door,
        host=host,
        port=port,
        lifespan="on" if lifespan else "off",
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        ssl_ciphers=TLS_CIPHERS,
        timeout_graceful_shutdown=_GRACE_S,
        access_log=False,
        server_header=False,
        log_level="warning",
        ws="none",
        http=guarded_protocol(),
        h11_max_incomplete_event_size=64 << 10,
    )


async def serve(settings: SuperLinkSettings) -> None:
    """Serve both doors until one of them ends."""
    import uvicorn

    app = make_app(settings)
    secret = Path(settings.secret).read_bytes()
    asked, answered = News(), News()
    fleet, runtime = ShortWay(app, fleet_answers()), ShortWay(app, runtime_answers())
    sites = Telling(Holding(fleet, _QUESTION, asked), _ANSWERED, answered.tell)
    coordinator = NewsDesk(Telling(runtime, _ASKED, asked.tell), answered)
    sessions = Sessions(sites, lease_s=LEASE_S, on_second=partial(_note_second, settings))

    local = uvicorn.Server(
        door_config(
            settings,
            Door(coordinator, LOCAL_PATHS, secret=secret),
            "127.0.0.1",
            settings.control_port,
            lifespan=True,
        )
    )
    public = uvicorn.Server(
        door_config(
            settings,
            Door(sessions, OPEN_PATHS),
            settings.listen_host,
            settings.listen_port,
            lifespan=False,
        )
    )

    async def one(own: uvicorn.Server, other: uvicorn.Server) -> None:
        await own.serve()
        # one door without the other is of no use: the parent starts both again
        other.should_exit = True

    async def let_go() -> None:
        # what waits would hold up the end
        while not (local.should_exit or public.should_exit):
            await asyncio.sleep(_LOOK_FOR_END_S)
        asked.close()
        answered.close()

    await asyncio.gather(one(local, public), one(public, local), let_go())


def _note_second(settings: SuperLinkSettings, key: str) -> None:
    with contextlib.suppress(OSError), Path(settings.second_sessions).open("a") as file:
        file.write(f"{key}\n")


def main() -> None:
    """Entry point of the child: settings as JSON in the first argument."""
    prepare_process()
    keep_files_private()
    end_with_parent()
    raise_descriptor_limit()
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(serve(SuperLinkSettings.from_command_line()))


if __name__ == "__main__":
    main()
