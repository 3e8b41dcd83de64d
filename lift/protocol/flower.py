"""Flower 1.41: the only module that imports it.

A parcel becomes a Flower `Message` with one `ConfigRecord` (the JSON text) and one
`ArrayRecord` (the safetensors block, compressed). `InProcessGrid` runs ServerApp and
ClientApps in one process and lets every message cross Flower's real wire format.

Private symbols in use (Flower moves its modules at every release; a test names them):
`flwr.supercore.task_identity.TaskIdentity`, `flwr.supercore.run.Run`,
`flwr.supercore.inflatable.*`, `flwr.proto.node_pb2.NodeInfo`.
"""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from time import monotonic, sleep
from typing import Final

# before the first import: no telemetry, no look-up of newer versions, no installing
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from lift.errors import ProtocolError
from lift.protocol.codec import (
    LARGEST_TENSOR_BYTES,
    Encoded,
    decode_reply,
    decode_request,
    encode,
)
from lift.protocol.messages import Answer, Failure, FailureKind, Kind, Parcel
from lift.protocol.transport import SiteHandler, Transport

_TEXT: Final = "lift.body"
_BLOCK: Final = "lift.tensors"
_FAILURE: Final = "lift.failure"
_MESSAGE_TYPE: Final = {Kind.STATISTICS: "query", Kind.TRAIN: "train", Kind.GUARD: "evaluate"}
_SERVER_NODE: Final = 1
_FIRST_SITE_NODE: Final = 1000


def pack(encoded: Encoded) -> RecordDict:
    """The Flower form of an encoded parcel; the tensors are compressed (zlib)."""
    block = np.frombuffer(zlib.compress(encoded.block), dtype=np.uint8)
    return RecordDict(
        {
            _TEXT: ConfigRecord({"json": encoded.text}),
            _BLOCK: ArrayRecord({"safetensors": Array(block)}),
        }
    )


def unpack(content: RecordDict) -> Encoded:
    """The encoded parcel of a Flower content.

    Raises:
        ProtocolError: a record is missing, is extra or has another type.
    """
    try:
        if set(content) != {_TEXT, _BLOCK}:
            raise KeyError
        text = content.config_records[_TEXT]["json"]
        block = content.array_records[_BLOCK]["safetensors"].numpy()
        if not isinstance(text, str) or block.dtype != np.uint8 or block.ndim != 1:
            raise TypeError
        tensors = _inflated(block.tobytes())
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error):
        raise ProtocolError(
            "cannot read a message",
            seen="its records are not one JSON text and one block of tensors",
            remedy="Nothing of it was used. Check that both sides run the same version.",
        ) from None
    return Encoded(text, tensors)


def _inflated(packed: bytes) -> bytes:
    """The bytes behind a zlib block, never more than the codec reads.

    Raises:
        ValueError: the block ends early, or holds more.
    """
    stream = zlib.decompressobj()
    content = stream.decompress(packed, LARGEST_TENSOR_BYTES)
    if not stream.eof or stream.unused_data:
        raise ValueError("not one whole zlib block within the limit")
    return content


def make_client_app(handler: SiteHandler) -> ClientApp:
    """Flower's ClientApp around a site's handler; no exception text ever leaves it."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        del context
        try:
            outcome = handler(decode_request(unpack(message.content)))
        except ProtocolError:
            outcome = Failure(FailureKind.PROTOCOL)
        if isinstance(outcome, Failure):
            record = ConfigRecord({"kind": outcome.kind.value})
            return Message(RecordDict({_FAILURE: record}), reply_to=message)
        return Message(pack(encode(outcome)), reply_to=message)

    app.query()(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


def make_server_app(main: Callable[[Transport], None], *, poll_s: float = 0.05) -> ServerApp:
    """Flower's ServerApp around LiFT's own round loop."""
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        del context
        main(GridTransport(grid, poll_s=poll_s))

    return app


class GridTransport:
    """Exchanges over a Flower Grid with a deadline of LiFT's own.

    Sites are known by the name that their node was registered under.
    """

    def __init__(self, grid: Grid, *, poll_s: float) -> None:
        self._grid = grid
        self._poll_s = poll_s

    def sites(self) -> list[str]:
        """Names of the nodes that are connected now, sorted."""
        return sorted(self._nodes())

    def exchange(self, requests: Mapping[str, Parcel], *, deadline_s: float) -> dict[str, Answer]:
        """One answer by site; late answers are dropped with their message's identity."""
        end = monotonic() + deadline_s
        nodes = self._nodes()
        answers = {
            site: Answer(Failure(FailureKind.NO_ANSWER), 0)
            for site in requests
            if site not in nodes
        }
        # encoding once by parcel, not by site: the same mixer goes to all of them
        packed: dict[int, RecordDict] = {}
        waiting: dict[str, str] = {}
        for site in sorted(set(requests) - set(answers)):
            parcel = requests[site]
            content = packed.setdefault(id(parcel), pack(encode(parcel)))
            message = Message(
                content, nodes[site], _MESSAGE_TYPE[parcel.kind], ttl=max(deadline_s, 1.0)
            )
            for identity in self._grid.push_messages([message]):
                waiting[identity] = site
        while waiting:
            for reply in self._grid.pull_messages(list(waiting)):
                site = waiting.pop(reply.metadata.reply_to_message_id)
                answers[site] = _read_answer(reply, requests[site].kind)
            if not waiting or monotonic() >= end:
                break
            sleep(min(self._poll_s, max(end - monotonic(), 0.0)))
        for site in waiting.values():
            answers[site] = Answer(Failure(FailureKind.NO_ANSWER), 0)
        return {site: answers[site] for site in sorted(answers)}

    def _nodes(self) -> dict[str, int]:
        return {node.name: node.node_id for node in self._grid.get_nodes()}


def _read_answer(reply: Message, kind: Kind) -> Answer:
    if reply.has_error():
        return Answer(Failure(FailureKind.INTERNAL), 0)
    size = sum(len(part.deflate()) for part in get_all_nested_objects(reply).values())
    content = reply.content
    if set(content) == {_FAILURE}:
        try:
            name = str(content.config_records[_FAILURE]["kind"])
            return Answer(Failure(FailureKind(name)), size)
        except (KeyError, ValueError):
            return Answer(Failure(FailureKind.PROTOCOL), size)
    try:
        parcel = decode_reply(unpack(content))
    except ProtocolError:
        return Answer(Failure(FailureKind.PROTOCOL), size)
    if parcel.kind is not kind:
        return Answer(Failure(FailureKind.PROTOCOL), size)
    return Answer(parcel, size)


class InProcessGrid(Grid):
    """A Grid that calls ClientApps directly, through Flower's own serialisation.

    Args:
        apps: site name -> ClientApp.
    """

    def __init__(self, apps: Mapping[str, ClientApp]) -> None:
        names = sorted(apps)
        self._names = {_FIRST_SITE_NODE + i: name for i, name in enumerate(names)}
        self._apps = {node: apps[name] for node, name in self._names.items()}
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in self._names
        }
        self._inbox: dict[str, Message] = {}
        self._run = Run.create_empty(1)
        # Message's constructor reads this process-wide identity
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, _SERVER_NODE, 1

    def set_run(self, run: Run) -> None:
        """Keep the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Node ids of all sites."""
        return list(self._names)

    def get_nodes(self) -> list[NodeInfo]:
        """Node ids with site names."""
        return [NodeInfo(node_id=node, name=name) for node, name in self._names.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run each message at its site now; the reply waits for :meth:`pull_messages`."""
        identities = []
        for message in messages:
            identity = uuid.uuid4().hex
            _set_identity(message, identity)
            identities.append(identity)
            node = message.metadata.dst_node_id
            TaskIdentity.node_id = node
            try:
                reply = self._apps[node](_over_the_wire(message), self._contexts[node])
                self._inbox[identity] = _over_the_wire(reply)
            except Exception as error:  # whatever a site's app raises is its failure
                # the class alone: the text may hold paths or patients
                reason = Error(code=2, reason=type(error).__name__)
                self._inbox[identity] = Message(reason, reply_to=message)
            finally:
                TaskIdentity.node_id = _SERVER_NODE
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have come, each once."""
        return [self._inbox.pop(i) for i in list(message_ids) if i in self._inbox]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push, then pull: nothing is ever in flight here."""
        del timeout
        return self.pull_messages(self.push_messages(messages))


def run_in_process(main: Callable[[Transport], None], handlers: Mapping[str, SiteHandler]) -> None:
    """Run the server's `main` against sites in this process, to its end."""
    grid = InProcessGrid({site: make_client_app(handler) for site, handler in handlers.items()})
    context = Context(
        run_id=1, node_id=_SERVER_NODE, node_config={}, state=RecordDict(), run_config={}
    )
    make_server_app(main, poll_s=0.0)(grid, context)


def _over_the_wire(message: Message) -> Message:
    """The message as its receiver would rebuild it from bytes."""
    contents = {k: part.deflate() for k, part in get_all_nested_objects(message).items()}
    rebuilt = inflate_object_from_contents(message.object_id, contents)
    if not isinstance(rebuilt, Message):  # pragma: no cover  # Flower's own invariant
        raise TypeError(type(rebuilt).__name__)
    _set_identity(rebuilt, message.metadata.message_id)
    return rebuilt


def _set_identity(message: Message, identity: str) -> None:
    # Flower's setter exists on its link state only; the in-process grid is the link state here
    message.metadata.__dict__["_message_id"] = identity
