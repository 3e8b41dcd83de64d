"""The parts of a message beside its name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import (
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node
from flwr.supercore import heartbeat
from hypothesis import given
from hypothesis import strategies as st

from lift.protocol.flower import supernode
from lift.protocol.flower.connection import ConnectionFile
from lift.protocol.flower.parts import MOST_BYTES, Parts, attach, attached


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


def test_an_answer_that_is_sent_again_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it is replaced in a site's process, and not in this one
    name = "HEARTBEAT_DEFAULT_INTERVAL"
    monkeypatch.setattr(heartbeat, name, getattr(heartbeat, name))
    sent = []

    class Fleet:
        """Stands for Flower's client, whose server is away twice."""

        def __init__(self) -> None:
            self._client = SimpleNamespace(headers={}, event_hooks={})

        def PushMessages(self, request: Any) -> Any:  # noqa: N802
            sent.append(request.SerializeToString())
            if len(sent) < 3:
                raise ConnectionError
            return PushMessagesResponse()

    connection = SimpleNamespace(FleetHttpClient=Fleet, fab_from_proto=None)
    parts = Parts()
    known = ConnectionFile(tmp_path / "connection.json")
    supernode._replace_connection(connection, tmp_path / "node", known, parts)
    client, request = connection.FleetHttpClient(), an_answer()
    parts.leaving = {"a": b"12", "b": b"3"}
    for _ in range(2):
        with pytest.raises(ConnectionError):
            client.PushMessages(request)
    client.PushMessages(request)
    assert len(set(sent)) == 1
    assert attached(PushMessagesRequest.FromString(sent[0])) == {"a": b"12", "b": b"3"}
