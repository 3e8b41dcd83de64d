"""Mutated messages: a protocol error or a whole message, within bounds of time and memory."""

from __future__ import annotations

import json
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from lift.errors import ProtocolError
from lift.protocol.codec import (
    LARGEST_TENSOR_BYTES,
    Encoded,
    decode_reply,
    decode_request,
    encode,
)
from lift.protocol.flower.records import pack, unpack
from lift.protocol.messages import (
    GuardRequest,
    Kind,
    Parcel,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
)
from tests.federation.parcels import F32, a_plan, honest_answer, statistics_of
from tests.scale import MUTATIONS, SHARDS

pytestmark = [
    pytest.mark.timeout(300),
    # Flower's way of building an app
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

MOST_MEMORY_MB = 200
READ: Mapping[bool, Callable[[Encoded], Parcel]] = {True: decode_request, False: decode_reply}
NUMBERS = ("1e400", "-1e400", "NaN", "Infinity", "9" * 30, "9" * 5000, "-1", "0.5", "1e-400")
WORDS = ('""', '"x"', "null", "true", "[]", "{}", '"\\ud800"', '"\\u0000"', "[[[[]]]]")
HEADERS: tuple[bytes, ...] = (
    b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
    b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"OBJECT","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"C64","shape":[],"data_offsets":[0,8]}}',
    b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[' + b"1," * 99 + b'1],"data_offsets":[0,4]}}',
    b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    b'{"__metadata__":{"a":1}}',
    b'{"__metadata__":{"format":"pt"}}',
    b"[" * 5000,
    b"{}",
    b"",
)


def examples() -> list[tuple[bool, Parcel]]:
    """One of each kind, with whether it is a request."""
    plan = a_plan()
    weight: Any = np.arange(6, dtype=F32).reshape(2, 3)
    mixer = {"a.weight": weight, "b": np.ones(1, np.float16)}
    train = TrainReply(plan_digest=plan.digest(), round=2, loss=0.5, validation_psnr_db=21.0)
    return [
        (True, Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))),
        (True, Parcel(Kind.TRAIN, TrainRequest(plan_digest=plan.digest(), round=1), mixer)),
        (True, Parcel(Kind.GUARD, GuardRequest(plan_digest=plan.digest()), mixer)),
        (False, statistics_of(plan, 4)),
        (False, Parcel(Kind.TRAIN, train, mixer)),
        (False, honest_answer("east", Parcel(Kind.GUARD, GuardRequest(plan_digest=plan.digest())))),
    ]


def torn(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled or put in."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        where, length = rng.randrange(len(changed) + 1), rng.randint(1, 16)
        action = rng.randrange(5)
        if action == 0 and changed:
            changed[where % len(changed)] ^= 1 << rng.randrange(8)
        elif action == 1:
            del changed[where : where + length]
        elif action == 2:
            changed[where:where] = changed[where : where + length]
        elif action == 3:
            changed[where:where] = rng.randbytes(length)
        else:
            del changed[where:]
    return bytes(changed)


def rewritten(text: str, rng: random.Random) -> str:
    """JSON with a value replaced, a key renamed, doubled or gone: still JSON, most of the time."""
    values = list(re.finditer(r"(?<=:)(-?[\d.]+|\"[^\"]*\"|null|\[[^\[\]{}]*\])", text))
    keys = list(re.finditer(r"\"(\w+)\":", text))
    value, key = rng.choice(values), rng.choice(keys)
    action = rng.randrange(4)
    if action == 0:
        new = rng.choice((*NUMBERS, *WORDS))
        return text[: value.start()] + new + text[value.end() :]
    if action == 1:
        new = rng.choice(keys)[1] if rng.random() < 0.5 else "__class__"
        return text[: key.start()] + f'"{new}":' + text[key.end() :]
    if action == 2:
        other = rng.choice((*NUMBERS, *WORDS))
        return text[: key.start()] + f"{key[0]}{other}," + text[key.start() :]
    return (
        text[: value.start()] + text[rng.choice(values).start() : value.end()] + text[value.end() :]
    )


def with_header(block: bytes, rng: random.Random) -> bytes:
    """A safetensors block whose header or its length is a lie."""
    header = rng.choice(HEADERS)
    if rng.random() < 0.3:
        (length,) = struct.unpack("<Q", block[:8])
        header = torn(block[8 : 8 + length], rng)
    lies = (0, 1, len(header) - 1, len(header) + 1, 10**8, 2**63, 2**64 - 1)
    told = rng.choice(lies) if rng.random() < 0.3 else len(header)
    return struct.pack("<Q", max(told, 0)) + header + b"\0" * rng.choice((0, 3, 4, 8))


def mutated(encoded: Encoded, rng: random.Random) -> RecordDict:
    """What travels, after an attack on one of its layers."""
    text, block = encoded.text, encoded.block
    layer = rng.randrange(6)
    if layer == 0:
        text = torn(text.encode(), rng).decode("utf-8", "replace")
    elif layer in {1, 2}:
        text = rewritten(text, rng)
    elif layer == 3:
        block = torn(block, rng)
    elif layer == 4:
        block = with_header(block, rng)
    packed = framed(block)
    if layer == 5:
        packed = torn(packed, rng)
    return RecordDict({"lift.parcel": ConfigRecord({"json": text, "safetensors": packed})})


def framed(block: bytes) -> bytes:
    """As `pack` writes it: the length before it, zeros behind it."""
    return len(block).to_bytes(8, "little") + block + bytes(5)


def same(first: Parcel, second: Parcel) -> bool:
    return (first.kind, first.body, set(first.tensors)) == (
        second.kind,
        second.body,
        set(second.tensors),
    ) and all(
        first.tensors[name].dtype == second.tensors[name].dtype
        and first.tensors[name].shape == second.tensors[name].shape
        and first.tensors[name].tobytes() == second.tensors[name].tobytes()
        for name in first.tensors
    )


def test_a_tensor_without_axes_comes_back_as_it_was() -> None:
    parcel = examples()[4][1]
    parcel = Parcel(parcel.kind, parcel.body, {"scale": np.asarray(F32(2.0))})
    assert same(decode_reply(encode(parcel)), parcel)


def test_a_message_that_nobody_changed_comes_back_whole() -> None:
    for request, parcel in examples():
        assert same(READ[request](unpack(pack(encode(parcel)))), parcel)


@pytest.mark.fuzz
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_mutated_message_is_refused_or_is_a_whole_message(shard: int) -> None:
    rng = random.Random(11 + shard)
    mutations = max(1, MUTATIONS // SHARDS)
    known = [(READ[request], parcel, encode(parcel)) for request, parcel in examples()]
    refused, equal, other = 0, 0, 0
    for _ in range(mutations):
        read, sent, encoded = known[rng.randrange(len(known))]
        try:
            # nothing but these two: a VersionMismatchError is a ProtocolError as well
            found = read(unpack(mutated(encoded, rng)))
        except ProtocolError:
            refused += 1
            continue
        if same(found, sent):
            equal += 1
            continue
        other += 1
        # another number or name, then: it is what it says, down to the bytes that it would send
        whole = {name: np.atleast_1d(tensor) for name, tensor in found.tensors.items()}
        parcel = Parcel(found.kind, found.body, whole)
        assert same(read(encode(parcel)), parcel)
    assert refused > mutations / 2
    assert min(equal, other) > mutations / 1000


RECORDS: dict[str, RecordDict] = {
    "none": RecordDict(),
    "of another name": RecordDict({"other": ConfigRecord({"json": "{}", "safetensors": b""})}),
    "of another kind": RecordDict({"lift.parcel": MetricRecord({"json": 1})}),
    "without a part": RecordDict({"lift.parcel": ConfigRecord({"json": "{}"})}),
    "with one more part": RecordDict(
        {"lift.parcel": ConfigRecord({"json": "{}", "safetensors": b"", "more": 1})}
    ),
    "text for bytes": RecordDict({"lift.parcel": ConfigRecord({"json": "{}", "safetensors": ""})}),
    "bytes for text": RecordDict({"lift.parcel": ConfigRecord({"json": b"", "safetensors": b""})}),
    "no length": RecordDict({"lift.parcel": ConfigRecord({"json": "", "safetensors": b"x"})}),
    "a list for bytes": RecordDict({"lift.parcel": ConfigRecord({"json": "", "safetensors": [1]})}),
}


@pytest.mark.parametrize("record", list(RECORDS))
def test_a_record_of_another_form_is_refused(record: str) -> None:
    with pytest.raises(ProtocolError):
        unpack(RECORDS[record])


BOMBS: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: bytes(LARGEST_TENSOR_BYTES),
    "more than is read": lambda: bytes(2 * LARGEST_TENSOR_BYTES),
    "one large tensor": lambda: one_tensor(LARGEST_TENSOR_BYTES - 200),
    "most tensors": lambda: empty_tensors(4096),
    "too many tensors": lambda: empty_tensors(600_000),
    "most axes": lambda: axes(33_500_000),
}


def headed(header: bytes, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + content


def one_tensor(size: int) -> bytes:
    size -= size % 4
    header = f'{{"a":{{"dtype":"F32","shape":[{size // 4}],"data_offsets":[0,{size}]}}}}'
    return headed(header.encode(), bytes(size))


def empty_tensors(count: int) -> bytes:
    one = '"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return headed(("{" + ",".join(one % number for number in range(count)) + "}").encode())


def axes(count: int) -> bytes:
    shape = ("1," * count)[:-1]
    return headed(f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}'.encode())


DECODER = """
import resource, sys
from pathlib import Path
from flwr.app import ConfigRecord, RecordDict
from lift.errors import ProtocolError
from lift.protocol.codec import decode_reply
from lift.protocol.flower.records import unpack
text, packed = Path(sys.argv[1]).read_text(), Path(sys.argv[2]).read_bytes()
content = RecordDict({"lift.parcel": ConfigRecord({"json": text, "safetensors": packed})})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_reply(unpack(content))
except ProtocolError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", list(BOMBS))
def test_no_message_takes_more_memory_than_is_stated(tmp_path: Path, name: str) -> None:
    packed = framed(BOMBS[name]())
    (tmp_path / "text").write_text(encode(examples()[4][1]).text)
    (tmp_path / "packed").write_bytes(packed)
    done = subprocess.run(
        [sys.executable, "-c", DECODER, str(tmp_path / "text"), str(tmp_path / "packed")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) < MOST_MEMORY_MB


def test_of_thousands_of_unknown_keys_the_first_are_explained() -> None:
    encoded = encode(examples()[0][1])
    envelope = json.loads(encoded.text)
    envelope["body"] |= {f"key{number}": 0 for number in range(50_000)}
    with pytest.raises(ProtocolError, match="and 49980 more") as caught:
        decode_request(Encoded(json.dumps(envelope), encoded.block))
    assert len(caught.value.seen.splitlines()) == 21
