"""Flower's Grid over HTTP, in which the reply of one site does not affect the others.

The stock Grid waits minutes for the parts of a reply that a dying site announced, and lets an
unreadable reply end the run for everybody. This one looks, takes what is whole, and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

from lift.protocol.flower.parts import attached, identities

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Announced:
    """A reply that Flower has named; it does so only once."""

    identity: str
    parts: list[str]
    here: dict[str, bytes]
    """Parts that came with the name."""


class CollectingGrid(HttpGrid):
    """See the module."""

    def __init__(self, address: str, ca: bytes, token: str) -> None:
        super().__init__(address, insecure=False, root_certificates=ca, token=token)
        self._announced: dict[str, _Announced] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the complete replies to these messages. An unreadable one is an error."""
        wanted = list(message_ids)
        # Flower names a reply once: asked again, it says that there is none
        fresh = [identity for identity in wanted if identity not in self._announced]
        if fresh:
            self._note(fresh)
        replies = []
        for asked, reply in list(self._announced.items()):
            if asked not in wanted:
                # its exchange is over
                del self._announced[asked]
                continue
            try:
                replies.append(self._take(asked, reply))
            except ObjectPullError:
                # not all of it is there: the next look, until the deadline
                continue
            del self._announced[asked]
        return replies

    def _note(self, asked: list[str]) -> None:
        """Which replies to these messages Flower names now."""
        response = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        here = attached(response)
        for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            parts = identities([tree])
            own = {part: here[part] for part in parts if part in here}
            announced = _Announced(proto.metadata.message_id, parts, own)
            self._announced[proto.metadata.reply_to_message_id] = announced

    def _take(self, asked: str, reply: _Announced) -> Message:
        run_id = self.run.run_id
        pull = make_pull_object_fn_protobuf(
            pull_object_protobuf=self._runtime_client.PullObject, node=self.node, run_id=run_id
        )
        missing = [part for part in reply.parts if part not in reply.here]
        contents = reply.here | pull_objects(missing, pull, max_tries_per_object=1)
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self.node, run_id=run_id, message_object_id=reply.identity
            )
        )
        try:
            message = inflate_object_from_contents(reply.identity, contents)
        except Exception as error:  # whatever Flower's reader raises at a stranger's bytes
            logger.warning("event=reply_unreadable reason=%s", type(error).__name__)
            return self._unreadable(asked, run_id)
        if not isinstance(message, Message) or message.metadata.reply_to_message_id != asked:
            logger.warning("event=reply_unreadable reason=it_answers_something_else")
            return self._unreadable(asked, run_id)
        message.metadata.__dict__["_message_id"] = reply.identity
        return message

    def _unreadable(self, asked: str, run_id: int) -> Message:
        metadata = Metadata(
            run_id=run_id,
            message_id="",
            src_node_id=self.node.node_id,
            dst_node_id=self.node.node_id,
            message_type=SYSTEM_MESSAGE_TYPE,
            group_id="",
            ttl=0,
            reply_to_message_id=asked,
            created_at=now().timestamp(),
        )
        error = Error(code=ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason="unreadable")
        return make_message(metadata=metadata, error=error)
