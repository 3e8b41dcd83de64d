"""Answers as Flower's objects, made by hand: each costs its own site alone."""

from __future__ import annotations

import io
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Metadata, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from lift.protocol.codec import (
    encode,
)
from lift.protocol.flower.records import pack
from lift.protocol.messages import (
    Failure,
    FailureKind,
    Kind,
    Parcel,
    StatisticsRequest,
)
from tests.federation.attackers import (
    Outlaw,
    Server,
    deflate,
    deflated_by_hand,
    flower_object,
    reply_metadata,
)
from tests.federation.parcels import make_plan, statistics_of

pytestmark = [
    pytest.mark.timeout(300),
    # Flower's way of building an app
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def sites(server: Server) -> dict[str, Outlaw]:
    """Two admitted sites, connected."""
    made = {name: server.outlaw(name) for name in ("east", "north")}
    for site in made.values():
        assert site.activate().is_success
    return made


def honest_content(patients: int = 3) -> RecordDict:
    return pack(encode(statistics_of(make_plan(), patients)))


def answer_honestly(site: Outlaw, request: Metadata, patients: int = 3) -> None:
    metadata = reply_metadata(request)
    site.push(metadata, deflate(metadata, honest_content(patients)))


def no_body(site: Outlaw, to: Metadata) -> None:
    site.push(reply_metadata(to), deflated_by_hand(flower_object("Message", b"\xff\xff\xff")))


def no_content(site: Outlaw, to: Metadata) -> None:
    site.push(reply_metadata(to), deflated_by_hand(flower_object("Message", b"")))


def no_such_kind(site: Outlaw, to: Metadata) -> None:
    site.push(reply_metadata(to), deflated_by_hand(flower_object("CustomDataClass", b"x")))


def no_message(site: Outlaw, to: Metadata) -> None:
    site.push(reply_metadata(to), deflated_by_hand(flower_object("ConfigRecord", b"")))


def no_child(site: Outlaw, to: Metadata) -> None:
    metadata = reply_metadata(to)
    head, contents, _ = deflate(metadata, honest_content(11))
    site.push(metadata, (head, contents, ObjectTree(object_id=head)))


def no_array(site: Outlaw, to: Metadata) -> None:
    """A well-formed message whose array is none: numpy raises what nobody expects."""
    content = honest_content(12)
    empty = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=b"")
    del content["lift.parcel"]
    content.array_records["lift.parcel"] = ArrayRecord({"safetensors": empty})
    metadata = reply_metadata(to)
    site.push(metadata, deflate(metadata, content))


def vast_array(site: Outlaw, to: Metadata) -> None:
    """Its header asks for 9 TiB."""
    content = honest_content(13)
    packed = io.BytesIO()
    np.save(packed, np.zeros(1, np.uint8))
    data = packed.getvalue().replace(b"(1,), }            ", b"(9999999999999,), }")
    assert data != packed.getvalue()
    vast = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=data)
    del content["lift.parcel"]
    content.array_records["lift.parcel"] = ArrayRecord({"safetensors": vast})
    metadata = reply_metadata(to)
    site.push(metadata, deflate(metadata, content))


def another_record(site: Outlaw, to: Metadata) -> None:
    metadata = reply_metadata(to)
    site.push(
        metadata, deflate(metadata, RecordDict({"lift.parcel": ConfigRecord({"json": "{}"})}))
    )


def another_request(site: Outlaw, to: Metadata) -> None:
    """Outside it answers the request, inside it names one that nobody sent."""
    inner = reply_metadata(to, reply_to_message_id="f" * 64)
    site.push(reply_metadata(to), deflate(inner, honest_content(14)))


CRASHES = (no_body, no_content, no_such_kind, no_message, no_child, no_array, vast_array)


@pytest.mark.parametrize(
    "trick",
    [
        another_record,
        another_request,
        *CRASHES,
    ],
)
def test_an_answer_that_cannot_be_read_costs_its_own_site_alone(
    server: Server, sites: dict[str, Outlaw], trick: Callable[[Outlaw, Metadata], None]
) -> None:
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=make_plan()))
    with server.exchange({"east": request, "north": request}, 3.0) as answers:
        answer_honestly(sites["east"], sites["east"].pull())
        trick(sites["north"], sites["north"].pull())
        found = answers.result(60)
    assert isinstance(found["east"].content, Parcel)
    assert isinstance(found["north"].content, Failure)


def test_a_site_that_dies_while_it_sends_does_not_hold_the_round_open(
    server: Server, sites: dict[str, Outlaw]
) -> None:
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=make_plan()))
    with server.exchange({"east": request, "north": request}, 2.0) as answers:
        answer_honestly(sites["east"], sites["east"].pull(), 21)
        asked = sites["north"].pull()
        metadata = reply_metadata(asked, ttl=1.0)
        deflated = deflate(metadata, honest_content(22))
        pushed = sites["north"].announce(metadata, deflated)
        try:
            found = answers.result(12)
        except TimeoutError:
            found = None
            # what was withheld comes after all, so that the next test need not wait
            sites["north"].deliver(metadata.run_id, pushed, deflated)
    assert found is not None
    assert isinstance(found["east"].content, Parcel)
    assert found["north"].content == Failure(FailureKind.NO_ANSWER)


@pytest.mark.parametrize("inside", [False, True])
def test_a_site_cannot_answer_for_another_even_if_it_knows_its_numbers(
    server: Server, sites: dict[str, Outlaw], inside: bool
) -> None:
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=make_plan()))
    with server.exchange({"east": request, "north": request}, 3.0) as answers:
        own, foreign = sites["east"].pull(), sites["north"].pull()
        forged = reply_metadata(foreign)
        # from outside: a reply in the other's name; inside: an own one that names the other's
        outer = reply_metadata(own) if inside else forged
        deflated = deflate(forged, honest_content(777 + inside))
        if inside:
            sites["east"].push(outer, deflated)
        else:
            with pytest.raises(httpx.HTTPStatusError, match="403"):
                sites["east"].push(outer, deflated)
        found = answers.result(60)
    assert isinstance(found["north"].content, Failure)
