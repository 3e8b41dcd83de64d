"""Server and sites in one process: every message crosses Flower's real wire format."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from lift.protocol.flower.apps import make_client_app, make_server_app
from lift.protocol.transport import SiteHandler, Transport

_SERVER_NODE: Final = 1
_FIRST_SITE_NODE: Final = 1000


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
