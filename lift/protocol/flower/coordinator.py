"""The coordinator's side of Flower: the child process, admitted sites, one run and its Grid."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import context_from_proto, context_to_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.interceptors.http.superexec_auth import SuperExecAuthHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import (
    ProtobufCall,
    ProtobufClientInterceptor,
    ProtobufRequestContext,
)
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from lift.errors import ProtocolError
from lift.protocol.flower.apps import Connected, make_server_app
from lift.protocol.flower.children import end_child, start_child, write_secret
from lift.protocol.flower.collecting import CollectingGrid
from lift.protocol.flower.forgetting import forget_answers
from lift.protocol.flower.stub import STUB_PYPROJECT
from lift.protocol.flower.superlink import SECRET_HEADER, SuperLinkSettings
from lift.protocol.flower.waiting import NEWS_PATH, SEEN_HEADER, WAIT_HEADER
from lift.protocol.transport import Transport

logger = logging.getLogger(__name__)
_START_S: Final = 60.0
_RESTARTED_WITHIN_S: Final = 120.0
_KEY_IN_USE: Final = 23
_GONE: Final = ("unregistered",)
_FINISHED: Final = "finished"


def make_secret(path: Path) -> None:
    """A new secret in a file of mode 0600; one that is there is kept."""
    if path.exists():
        return
    write_secret(path)


class SuperLink:
    """The child process: started, watched, started again when it dies, stopped at the end.

    Args:
        settings: where it listens and what it reads.
        log: file that takes the child's own output.
    """

    def __init__(self, settings: SuperLinkSettings, log: Path) -> None:
        self._settings = settings
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self.address = f"127.0.0.1:{settings.control_port}"

    @property
    def pid(self) -> int:
        """The child's process id."""
        return 0 if self._child is None else self._child.pid

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the child inside the block. Afterwards it is stopped and its database is emptied.

        What an earlier process left there, which was killed, is forgotten first.

        Raises:
            ProtocolError: it did not answer in time.
        """
        database = Path(self._settings.database)
        forget_answers(database)
        self._start()
        watcher = threading.Thread(target=self._watch, name="superlink-watch", daemon=True)
        try:
            self._wait()
            watcher.start()
            yield
        finally:
            self._stopping.set()
            self._stop()
            if watcher.is_alive():
                watcher.join()
                # it may have been starting the child again just then
                self._stop()
            forget_answers(database)

    def _start(self) -> None:
        settings = self._settings.to_json()
        self._child = start_child("lift.protocol.flower.superlink", settings, self._log)

    def _wait(self) -> None:
        context = ssl.create_default_context(cafile=self._settings.ca)
        end = monotonic() + _START_S
        with httpx.Client(verify=context, trust_env=False, timeout=2.0) as client:
            while monotonic() < end:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"https://{self.address}/health").status_code == 200:
                        return
                if self._child is not None and self._child.poll() is not None:
                    break
                sleep(0.05)
        raise ProtocolError(
            "the server's own network process did not start",
            where=f"port {self._settings.listen_port}, port {self._settings.control_port}",
            seen="it ended or did not answer; its own words are in the log "
            f"'{self._log.name}' of the state folder",
            remedy="Check that both ports are free (`lift-server check`), then start again: "
            "nothing was lost.",
        )

    def _watch(self) -> None:
        pause = 0.2
        while not self._stopping.is_set():
            child = self._child
            if child is not None and child.poll() is not None:
                logger.warning("event=superlink_ended code=%s", child.returncode)
                if self._stopping.wait(pause):
                    return
                pause = min(2 * pause, 10.0)
                self._start()
                with contextlib.suppress(ProtocolError):
                    self._wait()
                    pause = 0.2
                    logger.info("event=superlink_restarted pid=%d", self.pid)
            self._stopping.wait(0.2)

    def _stop(self) -> None:
        if self._child is not None:
            end_child(self._child)


class Coordinator:
    """Admits sites and runs one ServerApp through the child's local door."""

    def __init__(self, superlink: SuperLink, settings: SuperLinkSettings) -> None:
        self._address = superlink.address
        self._ca = Path(settings.ca).read_bytes()
        self._secret = Path(settings.secret).read_bytes()
        self._second_sessions = Path(settings.second_sessions)
        self._seconds_read = 0
        self._names: dict[str, str] = {}
        self._control = ControlHttpClient.from_server_address(
            self._address,
            insecure=False,
            root_certificates=self._ca,
            interceptors=[_Secret(self._secret), RuntimeVersionHttpInterceptor("flwr CLI")],
            retry_invoker=_retries(),
        )

    def admit(self, roster: Mapping[str, str]) -> None:
        """Make the registered sites exactly those of the roster: name -> OpenSSH public key."""
        wanted = {
            name: public_key_to_bytes(load_ssh_public_key(key.encode()))  # type: ignore[arg-type]  # the roster holds elliptic-curve keys only
            for name, key in roster.items()
        }
        self._names = {b64encode(key).decode(): name for name, key in wanted.items()}
        registered = {
            node.name: node
            for node in self._control.ListNodes(ListNodesRequest()).nodes_info
            if node.status not in _GONE
        }
        for name, node in registered.items():
            if wanted.get(name) != node.public_key:
                self._control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
                logger.info("event=site_removed site=%s", name)
        for name in sorted(wanted):
            if name in registered and registered[name].public_key == wanted[name]:
                continue
            try:
                self._control.RegisterNode(RegisterNodeRequest(public_key=wanted[name], name=name))
            except httpx.HTTPStatusError as error:
                if f'"code":{_KEY_IN_USE}' not in error.response.text.replace(" ", ""):
                    raise
                # Flower keeps a removed key for ever; one site's key must not stop the others
                logger.warning(
                    "event=site_not_admitted site=%s reason=its_key_was_removed_before "
                    "remedy=enrol_with_a_new_key",
                    name,
                )
                continue
            logger.info("event=site_admitted site=%s", name)

    def second_sessions(self) -> list[str]:
        """Sites whose key was used for a second connection, since this was asked last."""
        try:
            lines = self._second_sessions.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        new, self._seconds_read = lines[self._seconds_read :], len(lines)
        return sorted({self._names[key] for key in new if key in self._names})

    def connected(self) -> dict[str, Connected]:
        """The sites that are connected now."""
        return {
            node.name: Connected(node.node_id, node.last_activated_at)
            for node in self._control.ListNodes(ListNodesRequest()).nodes_info
            if node.status == "online"
        }

    def run(
        self,
        main: Callable[[Transport], None],
        *,
        on_sites: Callable[[Mapping[str, Connected]], None] | None = None,
        on_answer: Callable[[str], None] | None = None,
    ) -> None:
        """Open a run, execute `main` in this process over its Grid, and close the run.

        Runs that an earlier process left open are stopped first: what their sites still send
        is refused.
        """
        for run_id, run in self._control.ListRuns(ListRunsRequest()).run_dict.items():
            if run.status.status != _FINISHED:
                self._control.StopRun(StopRunRequest(run_id=run_id))
        content, _ = build_fab_from_files({"pyproject.toml": STUB_PYPROJECT})
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        self._control.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
        token = self._acquire()
        grid = CollectingGrid(self._address, self._ca, token)
        # the Grid's own client would not carry the secret, and would retry without an end
        client = self._runtime([RuntimeTokenHttpInterceptor(token)])
        grid._client = client  # noqa: SLF001
        heartbeats = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeats.start()
        status, details = "failed", "ended early"
        task = client.PullTaskInput(PullTaskInputRequest())
        context = context_from_proto(task.context)
        try:
            TaskIdentity.task_id = task.task_id
            TaskIdentity.run_id = task.run.run_id
            TaskIdentity.node_id = context.node_id
            grid.set_run(run_from_proto(task.run))
            with self._waiting() as wait:
                make_server_app(main, on_sites=on_sites, on_answer=on_answer, wait=wait)(
                    grid, context
                )
            status, details = "completed", ""
        finally:
            with contextlib.suppress(httpx.HTTPError):
                client.PushTaskOutput(
                    PushTaskOutputRequest(
                        context=context_to_proto(context), sub_status=status, details=details
                    )
                )
            heartbeats.stop()
            client.close()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[Callable[[float], None]]:
        """Inside the block: a way to wait for some seconds, or until a site has sent something."""
        seen = [""]
        context = ssl.create_default_context(cadata=self._ca.decode("ascii"))
        headers = {SECRET_HEADER: self._secret.decode("ascii")}
        with httpx.Client(verify=context, trust_env=False, headers=headers) as client:

            def wait(seconds: float) -> None:
                asks = {SEEN_HEADER: seen[0], WAIT_HEADER: str(round(1000 * seconds))}
                try:
                    answer = client.get(f"https://{self._address}{NEWS_PATH}", headers=asks)
                    seen[0] = answer.raise_for_status().text
                except httpx.HTTPError:
                    # the child is started again just now
                    sleep(seconds)

            yield wait

    def close(self) -> None:
        """Close the connection to the child."""
        self._control.close()

    def _acquire(self) -> str:
        client = self._runtime(
            [
                SuperExecAuthHttpInterceptor(
                    master_secret=self._secret,
                    protected_methods=["/flwr.proto.Runtime/AcquireTask"],
                )
            ]
        )
        end = monotonic() + _START_S
        try:
            while monotonic() < end:
                request = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
                token = str(client.AcquireTask(request).token)
                if token:
                    return token
                sleep(0.05)
        finally:
            client.close()
        raise ProtocolError(
            "the run did not open",
            seen=f"no task within {_START_S:.0f} s",
            remedy="Run the same command again: it resumes.",
        )

    def _runtime(self, interceptors: list[ProtobufClientInterceptor]) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            self._address,
            insecure=False,
            root_certificates=self._ca,
            interceptors=[
                _Secret(self._secret),
                RuntimeVersionHttpInterceptor("flwr-serverapp"),
                *interceptors,
            ],
            retry_invoker=_retries(),
        )


class _Secret:
    """Adds the secret of the local door to each request."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret.decode("ascii")

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[SECRET_HEADER] = self._secret
        return call_next(context)


def _retries() -> RetryInvoker:
    """Patience for as long as a restart of the child may take; then the error."""

    def pauses() -> Iterator[float]:
        while True:
            yield 0.3

    return RetryInvoker(
        pauses,  # type: ignore[arg-type]  # an iterator is all it uses
        httpx.TransportError,
        max_tries=None,
        max_time=_RESTARTED_WITHIN_S,
        jitter=None,
    )
