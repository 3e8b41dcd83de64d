"""A reader of TensorBoard's event files from their specification alone: framing, sums, messages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_POLYNOMIAL = 0x82F63B78


@dataclass
class Events:
    """What one folder's event files hold.

    Attributes:
        scalars: tag -> step -> value; a value told twice fails the reading.
        texts: tag -> text.
        files: how many files there are.
    """

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    files: int = 0


def read_events(folder: Path) -> Events:
    """Everything in the folder itself; sub-folders are other runs."""
    found = Events()
    for path in sorted(folder.glob("*tfevents*")):
        found.files += 1
        for number, record in enumerate(_records(path.read_bytes())):
            message = dict(_fields(record))
            assert 1 in message  # the wall time
            if number == 0:
                assert message[3] == b"brain.Event:2"
                continue
            step = message.get(2, 0)
            assert isinstance(step, int)
            summary = message[5]
            assert isinstance(summary, bytes)
            for _, value in _fields(summary):
                assert isinstance(value, bytes)
                _note(found, step, dict(_fields(value)))
    return found


def _note(found: Events, step: int, value: dict[int, int | bytes]) -> None:
    name = value[1]
    assert isinstance(name, bytes)
    tag = name.decode()
    if 2 in value:
        number = value[2]
        assert isinstance(number, bytes)
        steps = found.scalars.setdefault(tag, {})
        assert step not in steps, (tag, step)
        steps[step] = struct.unpack("<f", number)[0]
        return
    metadata, tensor = value[9], value[8]
    assert isinstance(metadata, bytes)
    assert isinstance(tensor, bytes)
    assert b"text" in metadata
    text = dict(_fields(tensor))[8]
    assert isinstance(text, bytes)
    found.texts[tag] = text.decode()


def _records(content: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(content):
        head = content[place : place + 8]
        (length,) = struct.unpack("<Q", head)
        (head_sum,) = struct.unpack("<I", content[place + 8 : place + 12])
        data = content[place + 12 : place + 12 + length]
        (data_sum,) = struct.unpack("<I", content[place + 12 + length : place + 16 + length])
        assert (head_sum, data_sum) == (_masked(head), _masked(data))
        yield data
        place += 16 + length


def _masked(data: bytes) -> int:
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = rest >> 1 ^ (_POLYNOMIAL if rest & 1 else 0)
    rest ^= 0xFFFFFFFF
    return ((rest >> 15 | rest << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer; fixed-size ones stay bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        key = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()
            case 1 | 2 | 5 as kind:
                length = varint() if kind == 2 else {1: 8, 5: 4}[kind]
                assert place + length <= len(message)
                yield key >> 3, message[place : place + length]
                place += length
            case kind:
                raise AssertionError(kind)
