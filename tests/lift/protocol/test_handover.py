"""A site's answers leave when they are there, whichever request Flower's loop took last."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.nodestate import NodeStateFactory

from lift.protocol.flower.parts import Parts
from lift.protocol.flower.supernode import CONNECT_ANEW, Handover
from lift.protocol.flower.waiting import News

pytestmark = pytest.mark.timeout(60)
LOOP: Any = importlib.import_module("flwr.supernode.start_client_internal")
SERVER, SITE = 1, 8
ENDED_RUN, RUN = 6, 7


def a_request(run: int, group: str) -> Message:
    metadata = Metadata(
        run_id=run,
        message_id="",
        src_node_id=SERVER,
        dst_node_id=SITE,
        reply_to_message_id="",
        group_id=group,
        created_at=time.time(),
        ttl=60.0,
        message_type="train",
    )
    message = make_message(metadata=metadata, content=RecordDict())
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


@dataclass
class Node:
    """The state of a site's node, and the turns of Flower's loop over it."""

    pull: Callable[..., Any]
    push: Callable[..., Any]
    requests: list[Message] = field(default_factory=list)
    answers_at_once: bool = False
    sent: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        stores = ObjectStoreFactory()
        self.state = NodeStateFactory(objectstore_factory=stores).state()
        self.store = stores.store()
        self.state.set_node_id(SITE)

    def answer(self, request: Message) -> None:
        """What the site's own process does when it has worked on a request."""
        reply = Message(RecordDict(), reply_to=request)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.store.preregister(reply.metadata.run_id, get_object_tree(reply))
        for name, part in get_all_nested_objects(reply).items():
            self.store.put(name, part.deflate())
        self.state.store_message(reply)

    def turn(self) -> None:
        """One turn of the loop; the server's requests come one a turn."""
        taken = self.pull(state=self.state, object_store=self.store)
        if taken is not None:
            self.push(
                state=self.state,
                object_store=self.store,
                send=self._send,
                push_object=lambda *_: None,
            )

    def take(self, *, state: Any, object_store: Any) -> int | None:
        """In the place of what asks the server."""
        del state, object_store
        if not self.requests:
            return None
        request = self.requests.pop(0)
        if self.answers_at_once:
            self.answer(request)
        return request.metadata.run_id

    def _send(self, message: Message, tree: Any, seconds: float) -> tuple[set[str], str]:
        del tree, seconds
        self.sent.append((message.metadata.run_id, message.metadata.group_id))
        if message.metadata.run_id == ENDED_RUN:
            raise RunNotRunningException
        return {message.metadata.message_id}, "session"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node with Flower's own loop, whose requests come from a list."""
    node = Node(lambda **_: None, LOOP._push_messages)
    monkeypatch.setattr(LOOP, "_pull_and_store_message", node.take)
    node.pull = node.take
    return node


@pytest.fixture
def node(plain: Node) -> Node:
    """The same with ours."""
    handover = Handover(LOOP, News(), Parts())
    plain.pull, plain.push = handover.pull, handover.push
    return plain


def a_given_up_request_is_answered_before_the_next_one(node: Node) -> Message:
    # its run ended while it was confirmed: Flower forgot it, the site had begun
    node.answer(a_request(ENDED_RUN, "given-up"))
    request = a_request(RUN, "next")
    node.requests.append(request)
    node.turn()
    assert node.sent == [(ENDED_RUN, "given-up")]
    return request


def test_flowers_own_loop_keeps_the_answer_until_the_request_after_it(plain: Node) -> None:
    request = a_given_up_request_is_answered_before_the_next_one(plain)
    plain.answer(request)
    for _ in range(3):
        plain.turn()
    # the day this fails, `Handover` can go
    assert plain.sent == [(ENDED_RUN, "given-up")]


def test_an_answer_leaves_with_the_next_turn(node: Node) -> None:
    request = a_given_up_request_is_answered_before_the_next_one(node)
    node.answer(request)
    node.turn()
    assert node.sent == [(ENDED_RUN, "given-up"), (RUN, "next")]
    # and once
    node.turn()
    assert len(node.sent) == 2
    assert not node.state.get_messages_legacy(is_reply=True)


def test_an_answer_that_nobody_asked_for_any_more_takes_nobodys_place(node: Node) -> None:
    node.answers_at_once = True
    node.requests.append(a_request(RUN, "first"))
    node.turn()
    node.answer(a_request(ENDED_RUN, "given-up"))
    # nothing was asked in this turn
    node.turn()
    assert node.sent == [(RUN, "first"), (ENDED_RUN, "given-up")]
    node.requests.append(a_request(RUN, "second"))
    node.turn()
    assert node.sent[2:] == [(RUN, "second")]


def test_what_was_sent_is_forgotten(node: Node) -> None:
    request = a_given_up_request_is_answered_before_the_next_one(node)
    node.answer(request)
    node.turn()
    assert not node.state.msg_store  # type: ignore[attr-defined]  # Flower's state in memory


class GoneError(Exception):
    """Whatever Flower raises when something does not arrive."""


class Way:
    """The way to a server that names one request; its parts come, or do not.

    Args:
        node: the state of the site's node.
        fault: what is raised where a part is asked for.
    """

    def __init__(self, node: Node, fault: BaseException | None = None) -> None:
        self.node = node
        self.fault = fault
        self.request = a_request(RUN, "named")
        self.claimed_meanwhile: list[str | None] = []
        run = LOOP.Run.create_empty(run_id=RUN)
        node.state.store_run(run)

    def callables(self) -> dict[str, Callable[..., Any]]:
        named = [(self.request, get_object_tree(self.request))]
        return {
            "receive": lambda: named.pop() if named else None,
            "get_run": lambda run: None,
            "get_fab": lambda fab, run: None,
            "pull_object": self._pull_object,
            "confirm_message_received": lambda run, message: None,
        }

    def _pull_object(self, run: int, identity: str) -> bytes:
        del run
        self.claimed_meanwhile.append(self.claim())
        if self.fault is not None:
            raise self.fault
        return get_all_nested_objects(self.request)[identity].deflate()

    def claim(self) -> str | None:
        """What the site's own process gets when it asks for a request at this moment."""
        tasks = self.node.state.get_tasks(statuses=["pending"])
        return self.node.state.claim_task(tasks[0].task_id) if tasks else None

    def pull(self, pull: Callable[..., Any]) -> Any:
        node = self.node
        return pull(
            state=node.state,
            object_store=node.store,
            node_config={},
            trusted_entities=None,
            **self.callables(),
        )


@pytest.fixture
def whole() -> Node:
    """A node whose requests come by Flower's own code, with ours around it."""
    handover = Handover(LOOP, News(), Parts())
    return Node(handover.pull, handover.push)


def test_flower_offers_a_request_before_its_parts_are_there(whole: Node) -> None:
    way = Way(whole)
    way.pull(LOOP._pull_and_store_message)
    # the day this fails, the request need not be held back
    assert any(token is not None for token in way.claimed_meanwhile)


def test_a_request_can_be_taken_when_all_of_it_is_there(whole: Node) -> None:
    way = Way(whole)
    assert way.pull(whole.pull) == RUN
    assert way.claimed_meanwhile
    assert way.claimed_meanwhile == [None] * len(way.claimed_meanwhile)
    assert way.claim() is not None


def test_a_request_whose_run_has_ended_is_dropped(whole: Node) -> None:
    way = Way(whole, RunNotRunningException())
    assert way.pull(whole.pull) is None
    assert way.claim() is None
    assert not whole.state.get_messages_legacy(is_reply=False)


def test_a_request_whose_parts_do_not_come_makes_the_site_connect_anew(whole: Node) -> None:
    way = Way(whole, GoneError())
    with pytest.raises(SystemExit) as end:
        way.pull(whole.pull)
    assert end.value.code == CONNECT_ANEW
    assert way.claim() is None


def lost_answer(node: Node, send: Callable[..., Any], push_object: Callable[..., None]) -> None:
    node.answer(a_request(RUN, "asked"))
    node.push(state=node.state, object_store=node.store, send=send, push_object=push_object)


def refuse(*_: Any) -> None:
    raise GoneError


def test_an_answer_whose_parts_nobody_takes_makes_the_site_connect_anew(whole: Node) -> None:
    with pytest.raises(SystemExit) as end:
        lost_answer(whole, lambda message, *_: ({message.metadata.message_id}, "session"), refuse)
    assert end.value.code == CONNECT_ANEW


def test_an_answer_that_the_server_only_knows_by_name_makes_the_site_connect_anew(
    whole: Node,
) -> None:
    # it was killed when it had noted the name: asked again it wants no parts, and has none
    with pytest.raises(SystemExit) as end:
        lost_answer(whole, lambda *_: (set(), "session"), lambda *_: None)
    assert end.value.code == CONNECT_ANEW


def test_an_answer_to_an_ended_run_is_no_reason_to_connect_anew(whole: Node) -> None:
    def send(*_: Any) -> Any:
        raise RunNotRunningException

    lost_answer(whole, send, lambda *_: None)
