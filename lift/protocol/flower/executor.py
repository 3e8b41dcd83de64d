"""The site's own process answers requests: torch, generator and cache are loaded once.

It asks its child for the next request over 127.0.0.1, works on it with the handler that is
installed here, and hands the answer back. A handler's exception leaves as a class of failure.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.interceptors.http.superexec_auth import SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime import run_clientapp
from flwr.supernode.runtime.run_clientapp import (
    pull_task_input,
    push_message,
    push_task_output,
)

from lift.protocol.flower.apps import make_client_app
from lift.protocol.flower.children import (
    STOP_S,
    end_child,
    start_child,
    write_local_certificate,
    write_secret,
)
from lift.protocol.flower.stub import is_stub
from lift.protocol.flower.supernode import SuperNodeSettings
from lift.protocol.flower.waiting import WAIT_HEADER
from lift.protocol.local_port import free_local_port
from lift.protocol.messages import FailureKind
from lift.protocol.transport import NotesRefusals, SiteHandler

logger = logging.getLogger(__name__)
_POLL_S: Final = 0.1
_PAUSE_S: Final = 0.01
"""Between two questions to the child, each of which stays open for a while."""
_LONGEST_PAUSE_S: Final = 30.0
_STABLE_S: Final = 60.0
_DYING_S: Final = 1.0


class SuperNode:
    """The child process: started, watched, started again with growing pauses.

    Args:
        settings: address and files. A new secret is written before each start.
        log: file that takes the child's own output.
    """

    def __init__(self, settings: SuperNodeSettings, log: Path) -> None:
        self._settings = settings
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._pause = 0.5
        self._next_start = 0.0
        self.starts = 0
        """How often it was started: each start has a secret and a certificate of its own."""

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
            self._back_off()
            self._close()
        if now < self._next_start:
            return False
        self._start()
        return True

    def stop(self, *, within_s: float = STOP_S) -> None:
        """End the child; it tells the server that it leaves."""
        if self._child is None:
            return
        end_child(self._child, within_s=within_s)
        self._child = None

    def restart(self) -> None:
        """End a child that is still there; the server sends its request to the new one again."""
        if self._child is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            # one that is just dying is left to the next look, which says why it ended
            self._child.wait(_DYING_S)
            return
        logger.warning("event=connection_given_up pid=%d", self._child.pid)
        self.stop()
        self._back_off()

    @property
    def settings(self) -> SuperNodeSettings:
        """With the port of the child that runs now."""
        return self._settings

    def _back_off(self) -> None:
        now = monotonic()
        if now - self._began > _STABLE_S:
            self._pause = 0.5
        self._next_start = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)

    def _start(self) -> None:
        wanted = self._settings.local_port
        port = free_local_port(wanted)
        if port != wanted:
            # also where another client of this machine has it
            logger.warning("event=local_port_taken port=%d taken_instead=%d", wanted, port)
            self._settings = replace(self._settings, local_port=port)
        Path(self._settings.connection_file).unlink(missing_ok=True)
        write_secret(Path(self._settings.secret))
        write_local_certificate(
            Path(self._settings.local_certificate), Path(self._settings.local_key)
        )
        settings = self._settings.to_json()
        self._child = start_child("lift.protocol.flower.supernode", settings, self._log)
        self._began = monotonic()
        self.starts += 1
        logger.info("event=connecting pid=%d", self._child.pid)

    def _close(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
        self._child = None


def answer_requests(supernode: SuperNode, handler: SiteHandler, stop: threading.Event) -> None:
    """Keep the child alive and answer its requests until `stop` is set."""
    _look_often()
    app = make_client_app(handler)
    child: _Child | None = None
    try:
        while not stop.is_set():
            if not supernode.look_after():
                stop.wait(_POLL_S)
                continue
            if child is None or child.start != supernode.starts:
                if child is not None:
                    child.close()
                child = _Child(supernode.settings, supernode.starts)
            token = child.acquire()
            if token is None:
                stop.wait(_PAUSE_S)
                continue
            try:
                _work(child, token, app, handler)
            except (httpx.HTTPError, ObjectPushError):
                # a child that is still there would never be asked again for what was lost
                supernode.restart()
    finally:
        if child is not None:
            child.close()
        supernode.stop()


def _look_often() -> None:
    """The child offers a request when all of it is there: nothing is worth a long wait."""
    run_clientapp.__dict__["pull_and_inflate_object_from_tree"] = partial(
        pull_and_inflate_object_from_tree,
        initial_backoff=_POLL_S / 2,
        backoff_cap=_POLL_S,
    )


class _Child:
    """The API of one start of the child: its certificate is the only one that is trusted.

    Args:
        settings: where its secret and its certificate lie.
        start: which start of the child it is.
    """

    def __init__(self, settings: SuperNodeSettings, start: int) -> None:
        self.start = start
        self._address = f"127.0.0.1:{settings.local_port}"
        self._certificate = Path(settings.local_certificate).read_bytes()
        proof = SuperExecAuthHttpInterceptor(
            master_secret=Path(settings.secret).read_bytes(),
            protected_methods=["/flwr.proto.Runtime/AcquireTask"],
        )
        # one connection for all polls: making one costs more than a poll
        self._open = contextlib.ExitStack()
        self._client = self._open.enter_context(self.client([proof]))
        # so long, and the caller learns that it should stop
        self._client._client.headers[WAIT_HEADER] = "1000"  # noqa: SLF001

    def acquire(self) -> str | None:
        """The token of the next request, or None."""
        try:
            request = AcquireTaskRequest(supported_task_types=["flwr-clientapp"])
            return str(self._client.AcquireTask(request).token) or None
        except httpx.HTTPError:
            # the child is starting, or has just died: the next look will say
            sleep(_POLL_S)
            return None

    @contextlib.contextmanager
    def client(self, interceptors: list[ProtobufClientInterceptor]) -> Iterator[RuntimeHttpClient]:
        """A client of the child's API inside the block."""
        client = RuntimeHttpClient.from_server_address(
            self._address,
            insecure=False,
            root_certificates=self._certificate,
            interceptors=[RuntimeVersionHttpInterceptor("flwr-clientapp"), *interceptors],
        )
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        """Close the connection."""
        self._open.close()


def _work(child: _Child, token: str, app: object, handler: SiteHandler) -> None:
    proof = RuntimeTokenHttpInterceptor(token)
    with child.client([proof]) as client:
        _answer(client, partial(child.client, [proof]), app, handler)


def _answer(
    client: RuntimeHttpClient,
    connect: Callable[[], AbstractContextManager[RuntimeHttpClient]],
    app: object,
    handler: SiteHandler,
) -> None:
    heartbeats = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeats.start()
    context: Context | None = None
    status, details = "failed", "the request could not be read"
    try:
        try:
            message, context, _, fab = pull_task_input(client)
        except (ObjectPullError, RuntimeError) as error:
            # its parts never came: the round closes without this answer, the site stays up
            logger.warning("event=request_incomplete reason=%s", type(error).__name__)
            return
        if is_stub(fab.content):
            reply = app(message=message, context=context)  # type: ignore[operator]  # a ClientApp
            status, details = "completed", ""
        else:
            logger.error("event=app_refused reason=it_is_not_the_stub")
            if isinstance(handler, NotesRefusals):
                handler.unreadable(FailureKind.POLICY)
            reply = Message(Error(ErrorCode.INVALID_FAB, "refused"), reply_to=message)
            details = "refused"
        # training was long: the child may be closing the old connection at this moment
        with connect() as fresh:
            push_message(fresh, reply, context)
    except (httpx.HTTPError, ObjectPushError):
        # the child takes no part of an answer whose run has ended meanwhile
        logger.warning("event=answer_not_delivered reason=connection_ended")
        raise
    finally:
        with contextlib.suppress(httpx.HTTPError), connect() as fresh:
            push_task_output(client=fresh, context=context, sub_status=status, details=details)
        heartbeats.stop()
