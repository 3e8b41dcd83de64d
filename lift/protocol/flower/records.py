"""Parcels as Flower records.

One record holds the whole parcel: Flower sends every part of a message in a request of its own.

Nothing is compressed, and both parts are filled up to the room that the parcel says: the size of
compressed tensors is a function of what they hold, such as zeros where no patient was drawn.
"""

from __future__ import annotations

from typing import Final

from flwr.app import ConfigRecord, RecordDict

from lift.errors import ProtocolError
from lift.protocol.codec import LARGEST_TENSOR_BYTES, Encoded

_PARCEL: Final = "lift.parcel"
_TEXT: Final = "json"
_BLOCK: Final = "safetensors"
_LENGTH_BYTES: Final = 8


def pack(encoded: Encoded) -> RecordDict:
    """The Flower form of an encoded parcel.

    The text ends in spaces. The block has its length before it and zeros behind it.
    """
    text, block = encoded.text, encoded.block
    used = len(text.encode())
    spaces = -used % encoded.text_room
    framed = len(block).to_bytes(_LENGTH_BYTES, "little") + block
    zeros = max(encoded.block_room - len(block), 0)
    record = ConfigRecord({_TEXT: text + " " * spaces, _BLOCK: framed + bytes(zeros)})
    return RecordDict({_PARCEL: record})


def unpack(content: RecordDict) -> Encoded:
    """The encoded parcel of a Flower content.

    Raises:
        ProtocolError: a record is missing, is extra or has another type, or the block is not whole.
    """
    try:
        if set(content) != {_PARCEL}:
            raise KeyError
        record = content.config_records[_PARCEL]
        if set(record) != {_TEXT, _BLOCK}:
            raise KeyError
        text, framed = record[_TEXT], record[_BLOCK]
        if not isinstance(text, str) or not isinstance(framed, bytes):
            raise TypeError
        block = _unframed(framed)
    except (KeyError, TypeError, ValueError):
        raise ProtocolError(
            "cannot read a message",
            seen="its record is not one JSON text and one block of tensors",
            remedy="Nothing of it was used. Check that both sides run the same version.",
        ) from None
    return Encoded(text.rstrip(" "), block)


def _unframed(framed: bytes) -> bytes:
    """The block in its frame.

    Raises:
        ValueError: it ends early, is larger than the codec reads, or something else than zeros
            follows it.
    """
    size = int.from_bytes(framed[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + size
    if size > LARGEST_TENSOR_BYTES or len(framed) < end:
        raise ValueError("not one whole block within the limit")
    if framed.count(0, end) != len(framed) - end:
        raise ValueError("the block is followed by something")
    return framed[_LENGTH_BYTES:end]
