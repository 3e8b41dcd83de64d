"""The site's own process answers requests: torch, generator and cache are loaded once.

It asks its child for the next request over 127.0.0.1, works on it with the handler that is
installed here, and hands the answer back. A handler's exception leaves as a class of failure.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Final

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.interceptors.http.superexec_auth import SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import (
    pull_task_input,
    push_message,
    push_task_output,
)

from lift.protocol.flower.apps import make_client_app
from lift.protocol.flower.children import end_child, start_child, write_secret
from lift.protocol.flower.stub import is_stub
from lift.protocol.flower.supernode import SuperNodeSettings
from lift.protocol.transport import SiteHandler

logger = logging.getLogger(__name__)
_POLL_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
_STABLE_S: Final = 60.0


class SuperNode:
    """The child process: started, watched, started again with growing pauses.

    Args:
        settings: whom it talks to. A new secret is written before each start.
        log: file that takes the child's own output.
    """

    def __init__(self, settings: SuperNodeSettings, log: Path) -> None:
        self._settings = settings
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._pause = 0.5
        self._next_start = 0.0

    @property
    def pid(self) -> int:
        """The child's process id."""
        return 0 if self._child is None else self._child.pid

    def look_after(self) -> bool:
        """Start the child when it is not there and its pause is over; whether it is there."""
        if self._child is not None and self._child.poll() is None:
            return True
        now = monotonic()
        if self._child is not None:
            logger.warning("event=connection_ended code=%s", self._child.returncode)
            if now - self._began > _STABLE_S:
                self._pause = 0.5
            self._next_start = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
            self._close()
        if now < self._next_start:
            return False
        self._start()
        return True

    def stop(self) -> None:
        """End the child; it tells the server that it leaves."""
        if self._child is None:
            return
        end_child(self._child)
        self._child = None

    def _start(self) -> None:
        write_secret(Path(self._settings.secret))
        settings = self._settings.to_json()
        self._child = start_child("lift.protocol.flower.supernode", settings, self._log)
        self._began = monotonic()
        logger.info("event=connecting pid=%d", self._child.pid)

    def _close(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
        self._child = None


def answer_requests(
    supernode: SuperNode, settings: SuperNodeSettings, handler: SiteHandler, stop: threading.Event
) -> None:
    """Keep the child alive and answer its requests until `stop` is set."""
    app = make_client_app(handler)
    address = f"127.0.0.1:{settings.local_port}"
    try:
        while not stop.is_set():
            if not supernode.look_after():
                stop.wait(_POLL_S)
                continue
            token = _acquire(address, Path(settings.secret))
            if token is None:
                stop.wait(_POLL_S)
                continue
            with (
                contextlib.suppress(httpx.HTTPError),
                _client(address, [RuntimeTokenHttpInterceptor(token)]) as client,
            ):
                _work(client, app)
    finally:
        supernode.stop()


def _acquire(address: str, secret: Path) -> str | None:
    """The token of the next request, or None."""
    proof = SuperExecAuthHttpInterceptor(
        master_secret=secret.read_bytes(), protected_methods=["/flwr.proto.Runtime/AcquireTask"]
    )
    try:
        with _client(address, [proof]) as client:
            request = AcquireTaskRequest(supported_task_types=["flwr-clientapp"])
            return str(client.AcquireTask(request).token) or None
    except httpx.HTTPError:
        # the child is starting, or has just died: the next look will say
        return None


def _work(client: RuntimeHttpClient, app: object) -> None:
    heartbeats = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeats.start()
    context: Context | None = None
    status, details = "failed", "the request could not be read"
    try:
        message, context, _, fab = pull_task_input(client)
        if is_stub(fab.content):
            reply = app(message=message, context=context)  # type: ignore[operator]  # a ClientApp
            status, details = "completed", ""
        else:
            logger.error("event=app_refused reason=it_is_not_the_stub")
            reply = Message(Error(ErrorCode.INVALID_FAB, "refused"), reply_to=message)
            details = "refused"
        push_message(client, reply, context)
    except httpx.HTTPError:
        logger.warning("event=answer_not_delivered reason=connection_ended")
        raise
    finally:
        with contextlib.suppress(httpx.HTTPError):
            push_task_output(client=client, context=context, sub_status=status, details=details)
        heartbeats.stop()


@contextlib.contextmanager
def _client(
    address: str, interceptors: list[ProtobufClientInterceptor]
) -> Iterator[RuntimeHttpClient]:
    client = RuntimeHttpClient.from_server_address(
        address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor("flwr-clientapp"), *interceptors],
    )
    try:
        yield client
    finally:
        client.close()
