"""Parcels to text and bytes, and back within limits.

The body is JSON that must fit its schema; the tensors are one safetensors block. Decoding
hostile input gives a :class:`ProtocolError` or an equal parcel, never another exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import numpy as np
import safetensors
import safetensors.numpy

from lift.config.base import Settings
from lift.errors import ConfigError, ProtocolError, VersionMismatchError
from lift.protocol.messages import PROTOCOL_VERSION, REPLIES, REQUESTS, Body, Kind, Parcel
from lift.strict_json import is_version, parse_json

LARGEST_BODY_BYTES: Final = 1 << 20
LARGEST_TENSOR_BYTES: Final = 64 << 20
MOST_TENSORS: Final = 4096
MOST_AXES: Final = 8
LARGEST_HEADER_BYTES: Final = 1 << 20
_LENGTH_BYTES: Final = 8
_DTYPES: Final = frozenset({"float16", "float32", "float64", "int64"})
TEXT_ROOM: Final[Mapping[Kind, int]] = {
    Kind.STATISTICS: 1 << 16,
    Kind.TRAIN: 1 << 10,
    Kind.GUARD: 1 << 10,
}
"""Bytes that a body is filled up to, or to a multiple: a number's digits, or a card, change no
size. What a site answers in a round has 600 at most."""


@dataclass(frozen=True)
class Encoded:
    """A parcel as it travels: JSON text and a block of bytes.

    Attributes:
        text: the body in its envelope.
        block: the tensors.
        text_room: bytes of which the text takes a multiple on the wire.
        block_room: bytes that the block takes on the wire, where it is not larger.
    """

    text: str
    block: bytes
    text_room: int = field(default=1, compare=False)
    block_room: int = field(default=0, compare=False)


def encode(parcel: Parcel) -> Encoded:
    """The travelling form of a parcel; equal parcels give equal bytes."""
    text = json.dumps(
        {
            "version": PROTOCOL_VERSION,
            "kind": parcel.kind.value,
            "body": parcel.body.model_dump(mode="json"),
        },
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    tensors = {name: np.asarray(parcel.tensors[name], order="C") for name in sorted(parcel.tensors)}
    block = safetensors.numpy.save(tensors)
    return Encoded(text, block, TEXT_ROOM[parcel.kind], parcel.room_bytes)


def decode_request(encoded: Encoded) -> Parcel:
    """A request of the server, as a site receives it."""
    return _decode(encoded, REQUESTS)


def decode_reply(encoded: Encoded) -> Parcel:
    """A reply of a site, as the server receives it."""
    return _decode(encoded, REPLIES)


def _decode(encoded: Encoded, schemas: Mapping[Kind, type[Settings]]) -> Parcel:
    if len(encoded.text) > LARGEST_BODY_BYTES or len(encoded.block) > LARGEST_TENSOR_BYTES:
        raise _refusal(
            f"{len(encoded.text)} characters and {len(encoded.block)} bytes; at most "
            f"{LARGEST_BODY_BYTES} and {LARGEST_TENSOR_BYTES} are read"
        )
    try:
        envelope = parse_json(encoded.text)
    except ValueError as error:
        raise _refusal(f"the body is not JSON as this side reads it: {error}") from None
    if not isinstance(envelope, dict) or set(envelope) != {"version", "kind", "body"}:
        raise _refusal("the envelope does not hold exactly version, kind and body")
    if not is_version(envelope["version"], PROTOCOL_VERSION):
        raise VersionMismatchError(
            "cannot read a message",
            seen=f"it follows another protocol version; this side speaks {PROTOCOL_VERSION}",
            remedy="Install the same version of this software on both sides.",
        )
    try:
        kind = Kind(envelope["kind"])
    except ValueError:
        raise _refusal("the kind of message is unknown") from None
    try:
        body = schemas[kind].from_data(envelope["body"], "message")
    except (ConfigError, ValueError) as error:
        detail = error.seen if isinstance(error, ConfigError) else "it is not plain data"
        raise _refusal(f"the body does not fit its schema: {detail}") from None
    return Parcel(kind, cast("Body", body), _decode_tensors(encoded.block))


def _decode_tensors(block: bytes) -> dict[str, np.ndarray]:
    _check_header(block)
    try:
        tensors = safetensors.numpy.load(block)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError):
        raise _refusal("the tensors are not a safetensors block") from None
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _DTYPES:
            raise _refusal(
                f"a tensor of type {tensor.dtype.name} (its name has {len(name)} letters)"
            )
    return dict(tensors)


def _check_header(block: bytes) -> None:
    """Refuse a block whose header is large, before anything is made of it."""
    size = int.from_bytes(block[:_LENGTH_BYTES], "little")
    if len(block) < _LENGTH_BYTES or size > min(LARGEST_HEADER_BYTES, len(block) - _LENGTH_BYTES):
        raise _refusal(f"the tensors' header is not within {LARGEST_HEADER_BYTES} bytes")
    try:
        header = parse_json(block[_LENGTH_BYTES : _LENGTH_BYTES + size])
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        axes = max((len(shape) for shape in shapes), default=0)
    except (ValueError, AttributeError, KeyError, TypeError):
        raise _refusal("the tensors are not a safetensors block") from None
    if len(shapes) > MOST_TENSORS or axes > MOST_AXES:
        raise _refusal(
            f"{len(shapes)} tensors of up to {axes} axes; at most {MOST_TENSORS} of "
            f"{MOST_AXES} are read"
        )


def _refusal(seen: str) -> ProtocolError:
    return ProtocolError(
        "cannot read a message",
        seen=seen,
        remedy="Nothing of it was used. Check that both sides run the same version.",
    )
