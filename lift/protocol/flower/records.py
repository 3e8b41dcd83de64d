"""Parcels as Flower records."""

from __future__ import annotations

import io
import zlib
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from lift.errors import ProtocolError
from lift.protocol.codec import LARGEST_TENSOR_BYTES, Encoded

_TEXT: Final = "lift.body"
_BLOCK: Final = "lift.tensors"


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
        block = _read_array(content.array_records[_BLOCK]["safetensors"].data)
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


def _read_array(data: bytes) -> np.ndarray:
    """The bytes of a one-dimensional array in numpy's format, and of no other.

    Raises:
        ValueError: the data is anything else.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy's reader of headers raises whatever Python's parser does
        raise ValueError("not an array") from error
    content = data[stream.tell() :]
    if version != (1, 0) or dtype != np.uint8 or shape != (len(content),):
        raise ValueError("not one row of bytes")
    return np.frombuffer(content, dtype=np.uint8)


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
