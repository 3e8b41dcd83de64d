"""The site's child process: Flower's SuperNode, with our gate before it.

It holds the connection to the server and nothing else: requests wait in it until the site's
own process (`executor`) takes them over 127.0.0.1, which needs the secret. No app is ever
unpacked or loaded; a run whose app is not the stub is refused with Flower's code for it.

What differs from the stock program: a question for the next request that stays open until there is
one (`waiting`); messages whose parts travel with their names (`parts`); an answer that leaves when
it is there (`Handover`); a lease of 20 s instead of 60 s; and a start that first gives up the lease
of the process before it, so that a site that was killed is back at once instead of when its old
lease ends.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from lift.files import write_atomically
from lift.process import keep_files_private, prepare_process
from lift.protocol.flower.children import TLS_CIPHERS, end_with_parent, forbid_telemetry
from lift.protocol.flower.connection import (
    PREVIOUS_HEADER,
    SECOND_HEADER,
    SESSION_HEADER,
    ConnectionFile,
)
from lift.protocol.flower.parts import Parts, attach, attached, identities
from lift.protocol.flower.stub import is_stub
from lift.protocol.flower.superlink import ChildSettings, Door
from lift.protocol.flower.waiting import LONGEST_WAIT_S, WAIT_HEADER, Holding, News, Telling

CHILD_PATHS: Final = frozenset(
    {
        "/v1/runtime/acquire-task",
        "/v1/runtime/send-task-heartbeat",
        "/v1/runtime/pull-task-input",
        "/v1/runtime/push-task-output",
        "/v1/runtime/push-object",
        "/v1/runtime/pull-object",
        "/v1/runtime/confirm-message-received",
        "/v1/runtime/push-messages",
        "/v1/runtime/pull-messages",
    }
)
"""What the API on 127.0.0.1 answers: to the holder of the secret, or of a request's token."""
_PAUSE_S: Final = 0.02
"""Between two questions for a request, of which the first has waited at the server."""
_ASKED_BEFORE_S: Final = 3.0
_FIRST_LOOK_S: Final = 0.05
_LAST_LOOK_S: Final = 2.0
HEARTBEAT_S: Final = 10
"""Flower's shortest; a site counts as gone after two of them."""
CONNECT_ANEW: Final = 75
"""Exit status of the child when something was lost on the way: EX_TEMPFAIL of sysexits.h."""
_QUESTION: Final = "/v1/runtime/acquire-task"
_ANSWERED: Final = frozenset({"/v1/runtime/push-task-output"})
_ASKS_OF_A_RUN: Final = ("pull_object", "confirm_message_received")
_PARTS_WITHIN_S: Final = 30.0
"""How long the server may take between the name of a request and its parts."""
# any name: a run's app is compared with the stub, not with a signer
_TRUSTED: Final = {"stub": ""}


@dataclass(frozen=True)
class SuperNodeSettings(ChildSettings):
    """Address and files of the child."""

    address: str
    ca: str
    key: str
    local_port: int
    secret: str
    local_certificate: str
    """Certificate of the API on 127.0.0.1. New for each start, like its key and the secret."""
    local_key: str
    node_file: str
    """Keeps the numbers of the site's node and session between starts."""
    connection_file: str
    """What the child knows of its connection; see `connection`."""


def run(settings: SuperNodeSettings) -> None:
    """Connect and stay connected; Flower ends the process when it cannot go on."""
    import flwr.supernode.fleet_http_connection as connection
    import flwr.supernode.start_client_internal as loop
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.supercore.auth import load_superexec_auth_secret
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.nodestate import NodeStateFactory

    # the package's attribute of this name is the function, not the module
    command = importlib.import_module("flwr.supernode.cli.flower_supernode")

    forbid_telemetry()
    key = load_ssh_private_key(Path(settings.key).read_bytes(), None)
    known = ConnectionFile(Path(settings.connection_file))
    parts = Parts()
    _replace_connection(connection, Path(settings.node_file), known, parts)
    requests, answers = News(), News()
    _replace_loop(loop, Handover(loop, requests, parts), answers)
    stores = ObjectStoreFactory()
    states = NodeStateFactory(objectstore_factory=stores)
    secret = load_superexec_auth_secret(secret_file=settings.secret)
    common: dict[str, Any] = {
        "server_address": settings.address,
        "root_certificates": Path(settings.ca).read_bytes(),
        "insecure": False,
        "authentication_keys": (key, key.public_key()),
        "max_retries": None,
        "max_wait_time": None,
        "node_config": {},
        "isolation": "process",
        "runtime_certificates": None,
        "runtime_root_certificates_path": None,
        "health_server_address": None,
        "trusted_entities": _TRUSTED,
        "superexec_auth_secret": secret,
        "runtime_dependency_install": False,
    }
    config = command.SuperNodeLifespanConfig(
        **common,
        host="127.0.0.1",
        port=settings.local_port,
        runtime_ssl_certfile=settings.local_certificate,
        runtime_ssl_keyfile=settings.local_key,
    )
    close_local_paths(requests, answers)
    take_sound_ciphers_alone(command)
    api, _ = command._start_supernode_http_api(config, states)  # noqa: SLF001
    try:
        loop.start_client_internal(
            state_factory=states, runtime_api_address=f"127.0.0.1:{settings.local_port}", **common
        )
    finally:
        # its thread would keep this process
        api.should_exit = True


def close_local_paths(requests: News, answers: News) -> None:
    """Put a door before Flower's API on 127.0.0.1: open is what the executor needs.

    Args:
        requests: that there is one; the executor's question for it stays open until then.
        answers: is told of each.
    """
    import flwr.supernode.main as module

    plain: Callable[..., Any] = module.create_app

    def create_app(*args: Any, **kwargs: Any) -> Door:
        app = Holding(plain(*args, **kwargs), _QUESTION, requests)
        return Door(Telling(app, _ANSWERED, answers.tell), CHILD_PATHS)

    module.__dict__["create_app"] = create_app


def take_sound_ciphers_alone(command: Any) -> None:
    """Let the API on 127.0.0.1 offer the suites of `TLS_CIPHERS` alone.

    Args:
        command: Flower's module that starts it.
    """
    import uvicorn

    config = partial(uvicorn.Config, ssl_ciphers=TLS_CIPHERS)
    command.uvicorn = SimpleNamespace(Config=config, Server=uvicorn.Server)


class Handover:
    """Takes whole requests from the server, and hands each answer on as soon as it is there.

    Four things differ from Flower's loop, which

    - offers a request to the site's own process while its parts are on their way. Where they
      never come, because the server was killed or its run has ended, that process waits for a
      quarter of an hour;
    - goes on when a request's parts or an answer were lost. The server believes that they arrived
      and sends nothing again to this connection;
    - takes "nothing to send" for an answer that is there. It is what a server says that was killed
      between the name of an answer and its parts;
    - looks for answers only after it has taken a request, and takes whatever answer is there for
      that request's. An answer to a request that was given up is then sent in the place of the
      next one, and from there on each answer waits for one request more.

    Args:
        loop: Flower's module of the loop.
        requests: is told of each that can be claimed.
        parts: what travels beside the names of messages.
    """

    def __init__(self, loop: Any, requests: News, parts: Parts) -> None:
        self._requests = requests
        self._parts = parts
        self._pull: Callable[..., int | None] = loop._pull_and_store_message  # noqa: SLF001
        self._push: Callable[..., None] = loop._push_messages  # noqa: SLF001
        self._way: dict[str, Any] | None = None

    def push(self, **way: Any) -> None:
        """In the place of Flower's `_push_messages`; keeps the way to the server.

        Raises:
            SystemExit: an answer was lost; see `pull`.
        """
        self._way = way
        self._deliver(way)

    def pull(self, *, state: Any, object_store: Any, **way: Any) -> int | None:
        """In the place of Flower's `_pull_and_store_message`: what waits is sent before.

        Raises:
            SystemExit: a request or an answer was lost, with `CONNECT_ANEW`. The site's own process
                connects anew, and the server sends its request again.
        """
        if self._way is not None and (waiting := state.get_messages_legacy(is_reply=True)):
            self._deliver(self._way | {"state": _Taken(state, waiting)})
        incoming = _Incoming(state)
        watched = {
            name: incoming.watched(call) if name in _ASKS_OF_A_RUN else call
            for name, call in way.items()
        }
        run = self._pull(state=incoming, object_store=object_store, **watched)
        incoming.release()
        if run is None and incoming.task is not None:
            state.delete_messages(message_ids=incoming.messages)
            for message in incoming.messages:
                object_store.delete(message)
            state.finish_task(incoming.task, sub_status="failed", details="incomplete")
            if not incoming.run_ended:
                raise SystemExit(CONNECT_ANEW)
        elif run is not None:
            self._requests.tell()
        return run

    def _deliver(self, way: dict[str, Any]) -> None:
        outgoing = _Outgoing(way["send"], way["push_object"], way["object_store"], self._parts)
        self._push(**way | {"send": outgoing.send, "push_object": outgoing.push_object})
        if outgoing.lost:
            raise SystemExit(CONNECT_ANEW)


class _Incoming:
    """Flower's state of a node while a request is on its way: nobody can claim it yet."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._claim = state.claim_task
        self.task: int | None = None
        self.messages: list[str] = []
        self.run_ended = False

    def release(self) -> None:
        """From now on the request can be claimed."""
        self._state.claim_task = self._claim

    def create_task(self, **kwargs: Any) -> int | None:
        self._state.claim_task = lambda task_id: None
        self.task = self._state.create_task(**kwargs)
        return self.task

    def store_message(self, message: Any) -> Any:
        self.messages.append(message.metadata.message_id)
        return self._state.store_message(message)

    def watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call; it is noted when the run has ended."""
        from flwr.supercore.run import RunNotRunningException

        def watch(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except RunNotRunningException:
                self.run_ended = True
                raise

        return watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


class _Outgoing:
    """Flower's way to send an answer and its parts; it is noted when they were lost."""

    def __init__(
        self,
        send: Callable[..., Any],
        push_object: Callable[..., None],
        store: Any,
        parts: Parts,
    ) -> None:
        self._send = send
        self._push_object = push_object
        self._store = store
        self._parts = parts
        self.lost = False

    def send(self, message: Any, tree: Any, seconds: float) -> Any:
        found = {identity: self._store.get(identity) for identity in identities([tree])}
        self._parts.leaving = {identity: part for identity, part in found.items() if part}
        self._parts.taken = set()
        with self._watched():
            wanted, session = self._send(message, tree, seconds)
        # an answer's own part is always new to the server that takes it
        self.lost |= not wanted and not self._parts.taken
        return wanted, session

    def push_object(self, *args: Any) -> None:
        with self._watched():
            self._push_object(*args)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        from flwr.supercore.run import RunNotRunningException

        try:
            yield
        except RunNotRunningException:
            # nobody waits for it any more
            raise
        except Exception:
            self.lost = True
            raise


class _Taken:
    """Flower's state of a node whose answers were taken from it just now."""

    def __init__(self, state: Any, answers: Sequence[Any]) -> None:
        self._state = state
        self._answers = answers

    def get_messages_legacy(self, *, is_reply: bool) -> Sequence[Any]:
        """Those answers."""
        del is_reply
        return self._answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def _replace_loop(loop: Any, handover: Handover, answers: News) -> None:
    """Short waits, for parts too, no answer left behind, the stub for signatures."""
    loop._pull_and_store_message = handover.pull  # noqa: SLF001
    loop._push_messages = handover.push  # noqa: SLF001
    loop.pull_objects = partial(
        loop.pull_objects,
        initial_backoff=_FIRST_LOOK_S,
        backoff_cap=_LAST_LOOK_S,
        max_time=_PARTS_WITHIN_S,
    )
    loop.time = SimpleNamespace(
        # its longest pause comes after a question that was open for a while already
        sleep=lambda seconds: answers.wait(seconds if seconds < _ASKED_BEFORE_S else _PAUSE_S)
    )
    loop._verify_fab = lambda fab, trusted: is_stub(fab.content)  # noqa: SLF001


def _replace_connection(
    connection: Any, node_file: Path, known: ConnectionFile, parts: Parts
) -> None:
    """Quick retries, a short lease, and the old lease given up before a new one is taken."""
    from flwr.proto.message_pb2 import PullObjectResponse

    connection.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT_S
    # what is announced, and how often it is done, are two names in Flower
    importlib.import_module("flwr.supercore.heartbeat").__dict__["HEARTBEAT_DEFAULT_INTERVAL"] = (
        HEARTBEAT_S
    )
    connection.make_simple_http_retry_invoker = partial(_retries, known)
    session = secrets.token_hex(16)
    plain_client: Any = connection.FleetHttpClient
    plain_fab: Callable[[Any], Any] = connection.fab_from_proto

    def checked_fab(proto: Any) -> Any:
        fab = plain_fab(proto)
        # without this mark Flower would not ask for the verdict at all
        fab.verifications["valid_license"] = "1"
        return fab

    class Client(plain_client):  # type: ignore[misc]  # Flower's, replaced at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # the kit's address is the only one that this site dials, whatever an answer says
            self._client.follow_redirects = False
            self._client.headers[SESSION_HEADER] = session
            # the question for the next request stays open
            self._client.headers[WAIT_HEADER] = str(round(1000 * LONGEST_WAIT_S))
            self._client.event_hooks["response"] = [self._look]

        def _look(self, response: Any) -> None:
            if SECOND_HEADER in response.headers:
                known.note_second_session()

        def PullMessages(self, request: Any) -> Any:  # noqa: N802
            response = super().PullMessages(request)
            parts.coming = attached(response)
            return response

        def PullObject(self, request: Any) -> Any:  # noqa: N802
            content = parts.coming.pop(request.object_id, None)
            if content is None:
                return super().PullObject(request)
            return PullObjectResponse(
                object_found=True, object_available=True, object_content=content
            )

        def PushMessages(self, request: Any) -> Any:  # noqa: N802
            # once: the same request is sent again while the server is away
            attach(request, parts.leaving)
            parts.leaving = {}
            response = super().PushMessages(request)
            parts.taken = set(attached(response))
            return response

        def ActivateNode(self, request: Any) -> Any:  # noqa: N802
            old = _read_node(node_file)
            if old is not None:
                node, self._client.headers[PREVIOUS_HEADER] = old
                with contextlib.suppress(Exception):
                    self.DeactivateNode(connection.DeactivateNodeRequest(node_id=node))
            response = super().ActivateNode(request)
            write_atomically(node_file, f"{response.node_id} {session}".encode())
            self._client.headers.pop(PREVIOUS_HEADER, None)
            return response

    connection.FleetHttpClient = Client
    connection.fab_from_proto = checked_fab


def _read_node(path: Path) -> tuple[int, str] | None:
    """Node and session of the start before this one."""
    try:
        node, session = path.read_text(encoding="ascii").split()
        return int(node), session
    except (OSError, ValueError):
        return None


def _retries(known: ConnectionFile) -> Any:
    """For ever, with pauses that grow to 5 s; an answer that is a refusal is not retried."""
    import httpx
    from flwr.supercore.retry import RetryInvoker
    from flwr.supercore.run import RunNotRunningException

    def pauses() -> Iterator[float]:
        pause = 0.2
        while True:
            yield pause
            pause = min(1.5 * pause, 5.0)

    def refused(error: Exception) -> bool:
        if not isinstance(error, httpx.HTTPStatusError):
            return False
        if error.response.status_code == httpx.codes.FORBIDDEN:
            raise RunNotRunningException
        return error.response.status_code not in {429, 502, 503, 504}

    def gave_up(state: Any) -> None:
        if isinstance(state.exception, httpx.HTTPStatusError):
            known.note("refused", state.exception.response.status_code)

    return RetryInvoker(
        pauses,  # type: ignore[arg-type]  # an iterator is all it uses
        (httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=None,
        should_giveup=refused,
        on_success=lambda _: known.note("connected"),
        on_backoff=lambda _: known.note("away"),
        on_giveup=gave_up,
    )


def main() -> None:
    """Entry point of the child: settings as JSON in the first argument."""
    prepare_process()
    keep_files_private()
    end_with_parent()
    logging.getLogger("flwr").setLevel(logging.INFO)
    run(SuperNodeSettings.from_command_line())


if __name__ == "__main__":
    main()
