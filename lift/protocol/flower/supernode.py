"""The site's child process: Flower's SuperNode, with our gate before it.

It holds the connection to the server and nothing else: requests wait in it until the site's
own process (`executor`) takes them over 127.0.0.1, which needs the secret. No app is ever
unpacked or loaded; a run whose app is not the stub is refused with Flower's code for it.

What differs from the stock program: polls of a tenth of a second while there is something to
expect, and rarer ones later; an answer that leaves when it is there (`Handover`); a lease of 20 s
instead of 60 s; and a start that first gives up the lease of the process before it, so that a
site that was killed is back at once instead of when its old lease ends.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from lift.files import write_atomically
from lift.process import keep_files_private, prepare_process
from lift.protocol.flower.children import TLS_CIPHERS, end_with_parent, forbid_telemetry
from lift.protocol.flower.stub import is_stub
from lift.protocol.flower.superlink import ChildSettings, Door

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
POLL_S: Final = 0.1
LONGEST_POLL_S: Final = 2.0
_POLL_SHARE: Final = 0.05
"""Of the time since the server was last heard: how long the next poll may wait."""
HEARTBEAT_S: Final = 10
"""Flower's shortest; a site counts as gone after two of them."""
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
    """Keeps the number of the site's node between starts."""


class Polls:
    """When to ask the server for a message: often while one may come soon, rarely after that.

    A poll costs the server several milliseconds, and a site waits for minutes while it trains
    or while others do. The wait grows with the time since the server was last heard, so what
    it adds stays a small share of that time.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard = self._next = clock()

    def due(self) -> bool:
        """Return whether to ask now."""
        return self._clock() >= self._next

    def done(self, *, heard: bool) -> None:
        """Record a contact with the server, and whether it brought something new."""
        now = self._clock()
        if heard:
            self._heard = now
        self._next = now + min(_POLL_SHARE * (now - self._heard), LONGEST_POLL_S)


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
    _replace_connection(connection, Path(settings.node_file))
    _replace_loop(loop)
    key = load_ssh_private_key(Path(settings.key).read_bytes(), None)
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
    close_local_paths()
    take_sound_ciphers_alone(command)
    command._start_supernode_http_api(config, states)  # noqa: SLF001
    loop.start_client_internal(
        state_factory=states, runtime_api_address=f"127.0.0.1:{settings.local_port}", **common
    )


def close_local_paths() -> None:
    """Put a door before Flower's API on 127.0.0.1: open is what the executor needs."""
    import flwr.supernode.main as module

    plain: Callable[..., Any] = module.create_app

    def create_app(*args: Any, **kwargs: Any) -> Door:
        return Door(plain(*args, **kwargs), CHILD_PATHS)

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
    """Hands each answer on as soon as it is there, whichever request it belongs to.

    Flower's loop looks for answers only after it has taken a request, and takes whatever answer
    is there for that request's. An answer to a request that was given up (its run ended while
    its parts were on their way, or its lease was lost and found again) is then sent in the place
    of the next one, and from there on each answer waits for one request more.

    Args:
        loop: Flower's module of the loop.
    """

    def __init__(self, loop: Any) -> None:
        self._pull: Callable[..., int | None] = loop._pull_and_store_message  # noqa: SLF001
        self._push: Callable[..., None] = loop._push_messages  # noqa: SLF001
        self._way: dict[str, Any] | None = None

    def push(self, **way: Any) -> None:
        """In the place of Flower's `_push_messages`; keeps the way to the server."""
        self._way = way
        self._push(**way)

    def pull(self, *, state: Any, **way: Any) -> int | None:
        """In the place of Flower's `_pull_and_store_message`: what waits is sent before."""
        if self._way is not None and (waiting := state.get_messages_legacy(is_reply=True)):
            self._push(**self._way | {"state": _Taken(state, waiting)})
        return self._pull(state=state, **way)


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


def _replace_loop(loop: Any) -> None:
    """Short polls, short waits for parts, no answer left behind, the stub for signatures."""
    handover = Handover(loop)
    loop._pull_and_store_message = handover.pull  # noqa: SLF001
    loop._push_messages = handover.push  # noqa: SLF001
    loop.pull_objects = partial(
        loop.pull_objects, initial_backoff=POLL_S / 2, backoff_cap=LONGEST_POLL_S
    )
    loop.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, POLL_S)))
    loop._verify_fab = lambda fab, trusted: is_stub(fab.content)  # noqa: SLF001


def _replace_connection(connection: Any, node_file: Path) -> None:
    """Quick retries, a short lease, and the old lease given up before a new one is taken."""
    from flwr.proto.fleet_pb2 import PullMessagesResponse

    connection.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT_S
    # what is announced, and how often it is done, are two names in Flower
    importlib.import_module("flwr.supercore.heartbeat").__dict__["HEARTBEAT_DEFAULT_INTERVAL"] = (
        HEARTBEAT_S
    )
    connection.make_simple_http_retry_invoker = _retries
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
            self._polls = Polls(time.monotonic)

        def PullMessages(self, request: Any) -> Any:  # noqa: N802
            if not self._polls.due():
                return PullMessagesResponse()
            response = super().PullMessages(request)
            self._polls.done(heard=bool(response.messages_list))
            return response

        def PushMessages(self, request: Any) -> Any:  # noqa: N802
            response = super().PushMessages(request)
            # the next request comes when the slowest site has answered
            self._polls.done(heard=True)
            return response

        def ActivateNode(self, request: Any) -> Any:  # noqa: N802
            old = _read_node(node_file)
            if old is not None:
                with contextlib.suppress(Exception):
                    self.DeactivateNode(connection.DeactivateNodeRequest(node_id=old))
            response = super().ActivateNode(request)
            write_atomically(node_file, str(response.node_id).encode())
            return response

    connection.FleetHttpClient = Client
    connection.fab_from_proto = checked_fab


def _read_node(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _retries() -> Any:
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

    return RetryInvoker(
        pauses,  # type: ignore[arg-type]  # an iterator is all it uses
        (httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=None,
        should_giveup=refused,
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
