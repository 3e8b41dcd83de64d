from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift.errors import ProtocolError, VersionMismatchError
from lift.protocol.codec import LARGEST_TENSOR_BYTES, Encoded, decode_reply, decode_request, encode
from lift.protocol.flower.records import pack, unpack
from lift.protocol.messages import PROTOCOL_VERSION, Kind, Parcel, TrainReply, TrainRequest

DIGEST = "c" * 64
VERSION = f'"version":{PROTOCOL_VERSION}'
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def example() -> Parcel:
    body = TrainReply(plan_digest=DIGEST, round=2, loss=0.5, validation_psnr_db=21.0)
    tensors: dict[str, np.ndarray] = {
        "taps.weight": np.arange(6, dtype=np.float32),
        "o": np.zeros((2, 3), np.float16),
    }
    return Parcel(Kind.TRAIN, body, tensors)


def same(first: Parcel, second: Parcel) -> bool:
    return (
        first.kind is second.kind
        and first.body == second.body
        and set(first.tensors) == set(second.tensors)
        and all(
            first.tensors[n].dtype == second.tensors[n].dtype
            and first.tensors[n].tobytes() == second.tensors[n].tobytes()
            for n in first.tensors
        )
    )


@given(
    loss=finite,
    psnr=st.none() | finite,
    values=st.lists(finite, max_size=12),
    names=st.lists(st.text(min_size=1, max_size=20), max_size=3, unique=True),
)
def test_decode_of_encode_is_the_parcel(
    loss: float, psnr: float | None, values: list[float], names: list[str]
) -> None:
    body = TrainReply(plan_digest=DIGEST, round=1, loss=loss, validation_psnr_db=psnr)
    parcel = Parcel(Kind.TRAIN, body, dict.fromkeys(names, np.array(values, np.float32)))
    assert same(decode_reply(unpack(pack(encode(parcel)))), parcel)


def test_equal_parcels_give_equal_bytes() -> None:
    parcel = example()
    reordered = Parcel(parcel.kind, parcel.body, dict(reversed(list(parcel.tensors.items()))))
    assert encode(parcel) == encode(reordered)


def test_a_reply_is_no_request() -> None:
    with pytest.raises(ProtocolError):
        decode_request(encode(example()))


def test_another_protocol_version_is_refused_as_such() -> None:
    encoded = encode(example())
    newer = Encoded(encoded.text.replace(VERSION, '"version":9'), encoded.block)
    with pytest.raises(VersionMismatchError):
        decode_reply(newer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"version":2,"kind":"train"}',
        '{"version":2,"kind":"shell","body":{}}',
        '{"version":2,"kind":"train","body":{"round":1}}',
        '{"version":2,"kind":["train"],"body":{}}',
        "[" * 100_000,
    ],
)
def test_a_body_that_does_not_fit_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(Encoded(text, encode(example()).block))


def test_an_unknown_key_and_a_nan_are_refused() -> None:
    encoded = encode(example())
    for old, new in (('"loss":0.5', '"loss":NaN'), ('"loss"', '"extra":1,"loss"')):
        with pytest.raises(ProtocolError):
            decode_reply(Encoded(encoded.text.replace(old, new), encoded.block))


def test_mutated_messages_give_a_protocol_error_or_a_parcel_and_nothing_else() -> None:
    encoded = encode(example())
    rng = random.Random(20)
    refused = 0
    for _ in range(4000):
        text, block = bytearray(encoded.text.encode()), bytearray(encoded.block)
        part = text if rng.random() < 0.5 else block
        for _ in range(rng.randint(1, 4)):
            where = rng.randrange(len(part))
            action = rng.random()
            if action < 0.6:
                part[where] = rng.randrange(256)
            elif action < 0.8:
                del part[where : where + rng.randint(1, 8)]
            else:
                part[where:where] = rng.randbytes(rng.randint(1, 8))
            if not part:
                break
        try:
            decode_reply(Encoded(text.decode("utf-8", "replace"), bytes(block)))
        except ProtocolError:
            refused += 1
    # most mutations of a name or a value still make a well-formed message
    assert 1000 < refused < 4000


def test_requests_carry_the_mixer() -> None:
    body = TrainRequest(plan_digest=DIGEST, round=1)
    parcel = Parcel(Kind.TRAIN, body, {"w": np.ones(3, np.float32)})
    assert same(decode_request(encode(parcel)), parcel)


def test_a_block_that_ends_early_or_grows_without_end_is_refused() -> None:
    record = pack(encode(example()))
    packed = record.config_records["lift.parcel"]["safetensors"]
    assert isinstance(packed, bytes)
    size = LARGEST_TENSOR_BYTES + 1
    large = size.to_bytes(8, "little") + bytes(size)
    for hostile in (packed[:-3], packed + b"x", b"", large, b"\xff" + packed[1:], b"\xff" * 8):
        record.config_records["lift.parcel"]["safetensors"] = hostile
        with pytest.raises(ProtocolError):
            unpack(record)
