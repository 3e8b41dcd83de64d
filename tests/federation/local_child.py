"""The API of a site's child on 127.0.0.1, in the right hands and in the wrong ones."""

from __future__ import annotations

import contextlib
import hashlib
import io
import ssl
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.constant import (
    TaskType,
)
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from lift.protocol.flower.children import write_local_certificate
from lift.protocol.flower.executor import SuperNode, answer_requests
from lift.protocol.flower.stub import STUB_PYPROJECT
from lift.protocol.flower.superlink import Door
from lift.protocol.flower.supernode import CHILD_PATHS, SuperNodeSettings
from lift.protocol.messages import Failure, FailureKind, Parcel
from tests.federation.world import until
from tests.ports import free_port

LOCAL_CERTIFICATE, LOCAL_KEY = "local.pem", "local.key"


def fab_of(files: Mapping[str, bytes]) -> bytes:
    """An app with these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def stub_fab() -> bytes:
    """The one app that sites work on."""
    return fab_of({"pyproject.toml": STUB_PYPROJECT, ".info/CONTENT": b""})


class StandIn(SuperNode):
    """In the place of the site's child, which somebody else runs."""

    def __init__(self, settings: SuperNodeSettings) -> None:
        self._settings = settings
        self.starts = 1

    def look_after(self) -> bool:
        """It is always there."""
        return True

    def stop(self, *, within_s: float = 0.0) -> None:
        """It is not ours to stop."""


class ChildApi:
    """The API of a site's child on 127.0.0.1, holding one request under an app of any kind.

    Args:
        fab: the app.
        content: the request.
        folder: gets its certificate; only the site's own work folder holds the true one.
        secret: what the API asks for; None: nothing, as an impostor's would.
    """

    def __init__(
        self, fab: bytes, content: RecordDict, folder: Path, *, secret: bytes | None
    ) -> None:
        self.port = free_port()
        self.certificate, self._key = folder / LOCAL_CERTIFICATE, folder / LOCAL_KEY
        write_local_certificate(self.certificate, self._key)
        stores = ObjectStoreFactory()
        factory = NodeStateFactory(objectstore_factory=stores)
        self.app = create_app(factory, secret)
        self._state, store = factory.state(), stores.store()
        run = Run.create_empty(7)
        run.fab_hash = hashlib.sha256(fab).hexdigest()
        context = Context(run_id=7, node_id=8, node_config={}, state=RecordDict(), run_config={})
        metadata = Metadata(
            run_id=7,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=8,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=60.0,
            message_type="train",
        )
        message = make_message(metadata=metadata, content=content)
        message.metadata.__dict__["_message_id"] = message.object_id
        self._state.set_node_id(8)
        self._state.set_run_series_context(run.series_id, context)
        self._state.store_run(run)
        self._state.store_fab(Fab(run.fab_hash, fab, {}))
        self._state.create_task(task_type=TaskType.CLIENT_APP, run_id=7, fab_hash=run.fab_hash)
        store.preregister(7, get_object_tree(message))
        for name, part in get_all_nested_objects(message).items():
            store.put(name, part.deflate())
        self._state.store_message(remove_content_from_message(message))

    def http(self) -> httpx.Client:
        """A client that trusts it."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}", verify=context, trust_env=False
        )

    def replies(self) -> list[Message]:
        """What the executor handed back."""
        return list(self._state.get_messages_legacy(is_reply=True))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """It answers inside the block."""
        config = uvicorn.Config(
            Door(self.app, CHILD_PATHS),
            host="127.0.0.1",
            port=self.port,
            log_level="error",
            ws="none",
            ssl_certfile=self.certificate,
            ssl_keyfile=self._key,
        )
        server = uvicorn.Server(config)
        with in_background(server.run):
            until(lambda: server.started, 10, "the API answers")
            yield
            server.should_exit = True


@contextlib.contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    """Some work beside the block, which must let it end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
        assert not thread.is_alive()


def first_reply(child: ChildApi, folder: Path, asked: list[Parcel]) -> Any:
    """What the real executor hands back to this API, or None; `asked` takes what it worked on."""

    def handle(request: Parcel) -> Parcel | Failure:
        asked.append(request)
        return Failure(FailureKind.DATA)

    stop = threading.Event()
    settings = site_settings(folder, f"localhost:{free_port()}", local_port=child.port)
    work = partial(answer_requests, StandIn(settings), handle, stop)
    with child.running(), in_background(work):
        found: list[Any] = []

        def look() -> bool:
            found.extend(child.replies())
            return bool(found)

        with contextlib.suppress(TimeoutError):
            until(look, 5, "a reply")
        stop.set()
    return found[0] if found else None


def site_settings(
    folder: Path, address: str, *, local_port: int | None = None
) -> SuperNodeSettings:
    """Of a site whose folder lies in its coordinator's."""
    return SuperNodeSettings(
        address=address,
        ca=str(folder / "certificates" / "ca.pem"),
        key=str(folder / "site" / "site.key"),
        local_port=free_port() if local_port is None else local_port,
        secret=str(folder / "executor.secret"),
        local_certificate=str(folder / LOCAL_CERTIFICATE),
        local_key=str(folder / LOCAL_KEY),
        node_file=str(folder / "node"),
        connection_file=str(folder / "connection.json"),
    )
