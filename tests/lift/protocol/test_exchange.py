"""Exchanges over a Grid that loses, repeats, delays and reconnects as it likes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from lift.protocol.codec import encode
from lift.protocol.flower.apps import GridTransport
from lift.protocol.flower.records import pack
from lift.protocol.messages import Failure, FailureKind, Kind, Parcel, TrainReply, TrainRequest
from lift.protocol.transport import Grace

DIGEST = "a" * 64
SITES = ("east", "north", "west")
DEADLINE_S = 50.0
Deed = Literal["answer", "answer_twice", "lose", "come_back", "go", "say_lost", "raise"]
Event = tuple[Deed, str]
events = st.lists(
    st.tuples(
        st.sampled_from(["answer", "answer_twice", "lose", "come_back", "go", "say_lost", "raise"]),
        st.sampled_from(SITES),
    ),
    max_size=25,
)


@dataclass
class ScriptedGrid:
    """Sites that do one deed of a script each time that the server looks for answers."""

    script: list[Event]
    seconds: float = 0.0
    connected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SITES, 0))
    here: set[str] = field(default_factory=lambda: set(SITES))
    pushed: list[tuple[str, str, int]] = field(default_factory=list)
    open: dict[str, list[Message]] = field(default_factory=lambda: {s: [] for s in SITES})
    inbox: list[Message] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def get_nodes(self) -> list[NodeInfo]:
        return [
            NodeInfo(node_id=10 + SITES.index(s), name=s, last_activated_at=str(self.connected[s]))
            for s in SITES
            if s in self.here
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        made = []
        for message in messages:
            identity = f"message-{next(self.numbers)}"
            message.metadata.__dict__["_message_id"] = identity
            site = SITES[message.metadata.dst_node_id - 10]
            self.pushed.append((site, identity, self.connected[site]))
            self.open[site].append(message)
            made.append(identity)
        return made

    def pull_messages(self, message_ids: Sequence[str]) -> list[Message]:
        if self.script:
            self._do(*self.script.pop(0))
        wanted = set(message_ids)
        found = [m for m in self.inbox if m.metadata.reply_to_message_id in wanted]
        self.inbox = [m for m in self.inbox if m not in found]
        return found

    def wait(self, seconds: float) -> None:
        self.seconds += max(seconds, 0.3)

    def _do(self, deed: Deed, site: str) -> None:
        if deed == "go":
            self.here.discard(site)
        elif deed == "come_back":
            # whatever was in flight to the old connection is lost
            self.open[site].clear()
            self.here.add(site)
            self.connected[site] += 1
        elif deed == "lose" and self.open[site]:
            self.open[site].pop(0)
        elif self.open[site]:
            self._reply(deed, site)

    def _reply(self, deed: Deed, site: str) -> None:
        message = self.open[site].pop(0)
        if deed in {"say_lost", "raise"}:
            code = ErrorCode.NODE_UNAVAILABLE if deed == "say_lost" else 2
            self.inbox.append(Message(Error(code, "-"), reply_to=message))
            if deed == "raise":
                self.first.setdefault(site, "raise")
            return
        body = TrainReply(
            plan_digest=DIGEST, round=1, loss=float(SITES.index(site)), validation_psnr_db=None
        )
        for _ in range(2 if deed == "answer_twice" else 1):
            self.inbox.append(Message(pack(encode(Parcel(Kind.TRAIN, body))), reply_to=message))
        self.first.setdefault(site, "answer")


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@given(script=events)
def test_each_site_gets_its_first_answer_or_none(script: list[Event]) -> None:
    grid = ScriptedGrid(list(script))
    transport = GridTransport(
        cast("Grid", grid), poll_s=0.1, clock=lambda: grid.seconds, wait=grid.wait
    )
    request = Parcel(Kind.TRAIN, TrainRequest(plan_digest=DIGEST, round=1))

    answers = transport.exchange(dict.fromkeys(SITES, request), deadline_s=DEADLINE_S)

    assert sorted(answers) == sorted(SITES)
    for site, answer in answers.items():
        if grid.first.get(site) == "answer":
            assert isinstance(answer.content, Parcel)
            assert isinstance(answer.content.body, TrainReply)
            assert answer.content.body.loss == SITES.index(site)
        elif grid.first.get(site) == "raise":
            assert answer.content == Failure(FailureKind.INTERNAL)
        else:
            assert answer.content == Failure(FailureKind.NO_ANSWER)
    # it ends with the last answer, or with the deadline: never later than one look after it
    assert grid.seconds <= DEADLINE_S + 1
    if set(grid.first) != set(SITES):
        assert grid.seconds >= DEADLINE_S


@given(script=events)
def test_a_request_goes_out_once_by_connection_unless_it_was_lost(script: list[Event]) -> None:
    grid = ScriptedGrid(list(script))
    transport = GridTransport(
        cast("Grid", grid), poll_s=0.1, clock=lambda: grid.seconds, wait=grid.wait
    )
    request = Parcel(Kind.TRAIN, TrainRequest(plan_digest=DIGEST, round=1))

    transport.exchange(dict.fromkeys(SITES, request), deadline_s=DEADLINE_S)

    for site in SITES:
        connections = [since for name, _, since in grid.pushed if name == site]
        said_lost = sum(event == ("say_lost", site) for event in script)
        assert len(connections) <= len(set(connections)) + said_lost
        assert connections == sorted(connections)


def test_a_site_that_comes_back_is_asked_again() -> None:
    grid = ScriptedGrid([("go", "east"), ("come_back", "east")])
    transport = GridTransport(
        cast("Grid", grid), poll_s=0.1, clock=lambda: grid.seconds, wait=grid.wait
    )
    request = Parcel(Kind.TRAIN, TrainRequest(plan_digest=DIGEST, round=1))

    transport.exchange({"east": request}, deadline_s=DEADLINE_S)

    assert [(site, since) for site, _, since in grid.pushed] == [("east", 0), ("east", 1)]


GRACE_S = 5.0


def exchanged(
    script: list[Event], *, enough: int, grid: ScriptedGrid | None = None
) -> tuple[dict[str, object], float]:
    """What each site said, and how long it took, where `enough` answers are enough."""
    grid = grid or ScriptedGrid(script)
    transport = GridTransport(
        cast("Grid", grid), poll_s=0.1, clock=lambda: grid.seconds, wait=grid.wait
    )
    body = TrainRequest(plan_digest=DIGEST, round=1)
    answers = transport.exchange(
        dict.fromkeys(SITES, Parcel(Kind.TRAIN, body)),
        deadline_s=DEADLINE_S,
        grace=Grace(GRACE_S, lambda present: len(present) >= enough),
    )
    return {site: answer.content for site, answer in answers.items()}, grid.seconds


TWO_ANSWER: list[Event] = [("go", "west"), ("answer", "east"), ("answer", "north")]


def test_an_absent_site_costs_the_grace_and_not_the_deadline() -> None:
    said, seconds = exchanged(list(TWO_ANSWER), enough=2)
    assert said["west"] == Failure(FailureKind.NO_ANSWER)
    assert GRACE_S <= seconds < 2 * GRACE_S


def test_a_site_that_was_away_before_costs_nothing() -> None:
    grid = ScriptedGrid(list(TWO_ANSWER))
    transport = GridTransport(
        cast("Grid", grid), poll_s=0.1, clock=lambda: grid.seconds, wait=grid.wait
    )
    request = Parcel(Kind.TRAIN, TrainRequest(plan_digest=DIGEST, round=1))
    grace = Grace(GRACE_S, lambda present: len(present) >= 2)
    for _ in range(2):
        began = grid.seconds
        grid.script = list(TWO_ANSWER)
        transport.exchange(dict.fromkeys(SITES, request), deadline_s=DEADLINE_S, grace=grace)
    assert grid.seconds - began < GRACE_S / 2


def test_it_is_waited_for_where_the_others_are_not_enough() -> None:
    _, seconds = exchanged(list(TWO_ANSWER), enough=3)
    assert seconds >= DEADLINE_S


def test_a_site_that_is_there_and_works_is_waited_for() -> None:
    _, seconds = exchanged(TWO_ANSWER[1:], enough=2)
    assert seconds >= DEADLINE_S


def test_a_site_that_comes_back_within_the_grace_is_waited_for() -> None:
    script: list[Event] = [*TWO_ANSWER, ("come_back", "west")]
    _, seconds = exchanged(script, enough=2)
    assert seconds >= DEADLINE_S


def test_a_refusal_is_not_enough() -> None:
    script: list[Event] = [("go", "west"), ("answer", "east"), ("raise", "north")]
    _, seconds = exchanged(script, enough=2)
    assert seconds >= DEADLINE_S


class Late(ScriptedGrid):
    """`west` answers some seconds after the deadline."""

    after_s = 0.0

    def pull_messages(self, message_ids: Sequence[str]) -> list[Message]:
        if self.seconds >= DEADLINE_S + self.after_s and self.open["west"]:
            self._reply("answer", "west")
        return super().pull_messages(message_ids)


@pytest.mark.parametrize(("after_s", "counts"), [(GRACE_S - 2, True), (GRACE_S + 2, False)])
def test_an_answer_some_seconds_after_the_deadline_counts(*, after_s: float, counts: bool) -> None:
    grid = Late(TWO_ANSWER[1:])
    grid.after_s = after_s
    said, seconds = exchanged([], enough=2, grid=grid)
    assert isinstance(said["west"], Parcel) is counts
    assert seconds <= DEADLINE_S + GRACE_S + 1
