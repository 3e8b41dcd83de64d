"""The parts of a message beside its name."""

from __future__ import annotations

import pytest
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node
from hypothesis import given
from hypothesis import strategies as st

from lift.protocol.flower.parts import MOST_BYTES, attach, attached


def an_answer() -> PushMessagesRequest:
    message = ProtoMessage(metadata=Metadata(message_id="m", run_id=7))
    return PushMessagesRequest(node=Node(node_id=3), messages_list=[message])


@given(st.dictionaries(st.text(max_size=20), st.binary(max_size=300), max_size=5))
def test_parts_travel_and_flower_does_not_see_them(parts: dict[str, bytes]) -> None:
    plain, sent = an_answer(), an_answer()
    attach(sent, parts)
    received = PushMessagesRequest.FromString(sent.SerializeToString())
    assert attached(received) == parts
    received.DiscardUnknownFields()
    assert received == plain


def test_a_message_without_parts_has_none() -> None:
    assert attached(an_answer()) == {}
    assert attached(PullMessagesResponse()) == {}


def test_parts_that_are_too_large_together_are_left_to_flower() -> None:
    sent = an_answer()
    half = bytes(MOST_BYTES // 2 + 1)
    attach(sent, {"a": half, "b": half})
    assert sent == an_answer()
    assert attached(sent) == {}
    attach(sent, {"a": half})
    assert attached(sent) == {"a": half}


@pytest.mark.parametrize(
    "foreign",
    [
        b"\xe2\xc2\x09\x03\xff\xff\xff",  # our field, and no part in it
        b"\xe0\xc2\x09\x05",  # our number as a number
        b"\xe2\xc3\x09\x01\x00",  # another field
    ],
    ids=["no part", "a number", "another field"],
)
def test_foreign_bytes_are_no_parts(foreign: bytes) -> None:
    received = PushMessagesRequest.FromString(an_answer().SerializeToString() + foreign)
    assert attached(received) == {}


@given(st.binary(max_size=60))
def test_no_bytes_raise(content: bytes) -> None:
    sent = PullMessagesResponse()
    attach(sent, {"a": b"1"})
    mutated = sent.SerializeToString()[:-3] + content
    try:
        received = PullMessagesResponse.FromString(mutated)
    except Exception:  # Flower refuses these itself
        return
    attached(received)
