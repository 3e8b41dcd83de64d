"""Parcels as Flower records.

One record holds the whole parcel: Flower sends every part of a message in a request of its own.
"""

from __future__ import annotations

import zlib
from typing import Final

from flwr.app import ConfigRecord, RecordDict

from lift.errors import ProtocolError
from lift.protocol.codec import LARGEST_TENSOR_BYTES, Encoded

_PARCEL: Final = "lift.parcel"
_TEXT: Final = "json"
_BLOCK: Final = "safetensors"


def pack(encoded: Encoded) -> RecordDict:
    """The Flower form of an encoded parcel; the tensors are compressed (zlib)."""
    record = ConfigRecord({_TEXT: encoded.text, _BLOCK: zlib.compress(encoded.block)})
    return RecordDict({_PARCEL: record})


def unpack(content: RecordDict) -> Encoded:
    """The encoded parcel of a Flower content.

    Raises:
        ProtocolError: a record is missing, is extra or has another type.
    """
    try:
        if set(content) != {_PARCEL}:
            raise KeyError
        record = content.config_records[_PARCEL]
        if set(record) != {_TEXT, _BLOCK}:
            raise KeyError
        text, block = record[_TEXT], record[_BLOCK]
        if not isinstance(text, str) or not isinstance(block, bytes):
            raise TypeError
        tensors = _inflated(block)
    except (KeyError, TypeError, ValueError, zlib.error):
        raise ProtocolError(
            "cannot read a message",
            seen="its record is not one JSON text and one block of tensors",
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
