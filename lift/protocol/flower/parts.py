"""The parts of a message beside its name: in one request instead of one for each part.

Flower names a message in one request and sends each of its parts in another. Here whoever names it
adds the parts in a field that Flower does not know, and skips; a part that is not there is sent in
Flower's way. So large messages go on as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

_FIELD: Final = 19_500
"""A number that protobuf leaves to nobody's use but one's own, in none of Flower's messages."""
_BYTES: Final = 2
MOST_BYTES: Final = 16 << 20
"""Parts that are larger together travel in Flower's way."""


@dataclass
class Parts:
    """What travels beside the names of messages on a site's connection.

    Attributes:
        coming: of the request that was named last.
        leaving: of the answer that is named next.
        taken: which of those the server has taken.
    """

    coming: dict[str, bytes] = field(default_factory=dict)
    leaving: dict[str, bytes] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)


def attach(message: Message, parts: Mapping[str, bytes]) -> None:
    """Add parts, by their identity, unless they are too large together."""
    from flwr.proto.message_pb2 import PushObjectRequest

    if sum(map(len, parts.values())) > MOST_BYTES:
        return
    for identity, content in parts.items():
        part = PushObjectRequest(object_id=identity, object_content=content).SerializeToString()
        message.MergeFromString(_varint(_FIELD << 3 | _BYTES) + _varint(len(part)) + part)


def attached(message: Message) -> dict[str, bytes]:
    """The parts in a message, by their identity; none where they cannot be read."""
    from flwr.proto.message_pb2 import PushObjectRequest

    found = {}
    try:
        for item in UnknownFieldSet(message):
            if item.field_number == _FIELD and item.wire_type == _BYTES:
                part = PushObjectRequest.FromString(item.data)
                found[part.object_id] = part.object_content
    except DecodeError:
        return {}
    return found


def identities(trees: Iterable[Any]) -> list[str]:
    """The parts that belong to messages, by Flower's trees of them; each once."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    return list(dict.fromkeys(n.object_id for tree in trees for n in iterate_object_tree(tree)))


def _varint(number: int) -> bytes:
    """Protobuf's form of a number."""
    content = bytearray()
    while number > 0x7F:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    content.append(number)
    return bytes(content)
