"""The site's ClientApp, the server's ServerApp, and exchanges over any Grid."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic, sleep
from typing import Final

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from lift.errors import ProtocolError, VersionMismatchError
from lift.protocol.codec import decode_reply, decode_request, encode
from lift.protocol.flower.records import pack, unpack
from lift.protocol.messages import Answer, Failure, FailureKind, Kind, Parcel
from lift.protocol.transport import Grace, NotesRefusals, SiteHandler, Transport

logger = logging.getLogger(__name__)
_FAILURE: Final = "lift.failure"
_MESSAGE_TYPE: Final = {Kind.STATISTICS: "query", Kind.TRAIN: "train", Kind.GUARD: "evaluate"}
# all classes have one size
_LONGEST_KIND: Final = max(len(kind.value) for kind in FailureKind)
_LOOK_EVERY_S: Final = 1.0
_SLOWEST_POLL_S: Final = 0.5
_ERRORS: Final = {
    ErrorCode.INVALID_FAB: FailureKind.POLICY,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: FailureKind.PROTOCOL,
}
# errors that Flower itself answers with for a site that is gone: the request was not worked on
_LOST: Final = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)


def make_client_app(handler: SiteHandler) -> ClientApp:
    """Flower's ClientApp around a site's handler; no exception text ever leaves it."""
    app = ClientApp()

    def unreadable(kind: FailureKind) -> Failure:
        if isinstance(handler, NotesRefusals):
            handler.unreadable(kind)
        return Failure(kind)

    def answer(message: Message, context: Context) -> Message:
        del context
        try:
            outcome = handler(decode_request(unpack(message.content)))
        except VersionMismatchError:
            outcome = unreadable(FailureKind.VERSION)
        except ProtocolError:
            outcome = unreadable(FailureKind.PROTOCOL)
        if isinstance(outcome, Failure):
            record = ConfigRecord({"kind": outcome.kind.value.ljust(_LONGEST_KIND)})
            return Message(RecordDict({_FAILURE: record}), reply_to=message)
        return Message(pack(encode(outcome)), reply_to=message)

    app.query()(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


def make_server_app(
    main: Callable[[Transport], None],
    *,
    poll_s: float = 0.1,
    on_sites: Callable[[Mapping[str, Connected]], None] | None = None,
    on_answer: Callable[[str], None] | None = None,
    wait: Callable[[float], None] = sleep,
) -> ServerApp:
    """Flower's ServerApp around LiFT's own round loop; the arguments are `GridTransport`'s."""
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        del context
        main(GridTransport(grid, poll_s=poll_s, on_sites=on_sites, on_answer=on_answer, wait=wait))

    return app


@dataclass(frozen=True)
class Connected:
    """A site that is connected now.

    Attributes:
        node: Flower's number of its node.
        since: when this connection began, as Flower writes it; another value is another
            connection, and what was sent to the one before is lost.
    """

    node: int
    since: str


@dataclass
class _Asked:
    """One exchange under way."""

    requests: Mapping[str, Parcel]
    end: float
    grace: Grace | None = None
    answers: dict[str, Answer] = field(default_factory=dict)
    # by the message's identity: the site, and the connection that it was sent to
    messages: dict[str, tuple[str, Connected]] = field(default_factory=dict)
    sent_to: dict[str, Connected] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    # encoded once by parcel, not by site: the same mixer goes to all of them
    packed: dict[int, RecordDict] = field(default_factory=dict)

    @property
    def open_sites(self) -> list[str]:
        return sorted(set(self.requests) - set(self.answers))

    @property
    def last(self) -> float:
        """When it is over whoever has not answered."""
        return self.end + (0.0 if self.grace is None else self.grace.seconds)

    @property
    def replied(self) -> list[str]:
        """Sites that answered, and not with a failure."""
        return [s for s, answer in self.answers.items() if isinstance(answer.content, Parcel)]


class GridTransport:
    """Exchanges over a Flower Grid with a deadline of LiFT's own.

    Sites are known by the name that their node was registered under. A request is sent when its
    site is connected, and again when the site has come back over a new connection: what was in
    flight to the old one is lost. The first answer counts, any other is dropped; an answer that
    comes after its exchange is never looked at.

    Args:
        grid: Flower's Grid.
        poll_s: shortest wait between two looks for answers.
        on_sites: called with the connected sites about twice a second while waiting.
        on_answer: called with a site's name when its answer has come.
        clock: seconds, for measuring a wait.
        wait: waits that many seconds, or until there may be an answer.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        poll_s: float,
        on_sites: Callable[[Mapping[str, Connected]], None] | None = None,
        on_answer: Callable[[str], None] | None = None,
        clock: Callable[[], float] = monotonic,
        wait: Callable[[float], None] = sleep,
    ) -> None:
        self._grid = grid
        self._poll_s = poll_s
        self._on_sites = on_sites
        self._on_answer = on_answer
        self._clock = clock
        self._wait = wait
        # by the looks at who is connected: who was, and when each site was last
        self._here: set[str] = set()
        self._last_seen: dict[str, float] = {}
        self._began = clock()

    def sites(self) -> list[str]:
        """Names of the sites that are connected now, sorted."""
        return sorted(self.connected())

    def connected(self) -> dict[str, Connected]:
        """The sites that are connected now."""
        found = {
            node.name: Connected(node.node_id, node.last_activated_at)
            for node in self._grid.get_nodes()
        }
        self._here = set(found)
        self._last_seen |= dict.fromkeys(found, self._clock())
        if self._on_sites is not None:
            self._on_sites(found)
        return found

    def exchange(
        self, requests: Mapping[str, Parcel], *, deadline_s: float, grace: Grace | None = None
    ) -> dict[str, Answer]:
        """One answer by site; late answers are dropped with their message's identity."""
        began = self._clock()
        asked = _Asked(requests, began + deadline_s, grace)
        self._send(asked)
        looked = began
        while True:
            self._collect(asked)
            if self._is_over(asked):
                break
            # long work does not need a look every few milliseconds
            pause = min(max(self._poll_s, (self._clock() - began) / 100), _SLOWEST_POLL_S)
            now = self._clock()
            left = (asked.end if now < asked.end else asked.last) - now
            self._wait(min(pause, max(left, 0.0)))
            if self._clock() - looked >= _LOOK_EVERY_S:
                looked = self._clock()
                self._send(asked)
        for site in asked.open_sites:
            asked.answers[site] = Answer(Failure(FailureKind.NO_ANSWER), 0)
        return {
            site: replace(asked.answers[site], sent=asked.sent[site])
            for site in sorted(asked.answers)
        }

    def _is_over(self, asked: _Asked) -> bool:
        """Whether nobody is waited for any more."""
        missing, now, grace = asked.open_sites, self._clock(), asked.grace
        if not missing or now >= asked.last:
            return True
        if grace is None or self._here.intersection(missing):
            return False
        # whoever was away before this exchange began has been away for longer than it
        since = max(self._last_seen.get(site, self._began) for site in missing)
        away = now - since >= grace.seconds and grace.enough(asked.replied)
        return now >= asked.end or away

    def _send(self, asked: _Asked) -> None:
        """Send to every site without an answer that is connected anew since it was sent to."""
        connected = self.connected()
        messages: dict[str, Message] = {}
        for site in asked.open_sites:
            here = connected.get(site)
            if here is None or asked.sent_to.get(site) == here:
                continue
            parcel = asked.requests[site]
            if id(parcel) not in asked.packed:
                asked.packed[id(parcel)] = pack(encode(parcel))
            messages[site] = Message(
                asked.packed[id(parcel)],
                here.node,
                _MESSAGE_TYPE[parcel.kind],
                ttl=max(asked.last - self._clock(), 1.0),
            )
        if not messages:
            return
        # all in one request; what the Grid could not send has no identity, or is left out
        identities = self._grid.push_messages(list(messages.values()))
        for site, identity in zip(messages, identities, strict=False):
            if not identity:
                continue
            asked.sent[site] += 1
            if asked.sent[site] > 1:
                kind = asked.requests[site].kind.value
                logger.info("event=sent_again site=%s kind=%s", site, kind)
            asked.messages[identity] = site, connected[site]
            asked.sent_to[site] = connected[site]

    def _collect(self, asked: _Asked) -> None:
        if not asked.messages:
            return
        for reply in self._grid.pull_messages(list(asked.messages)):
            site, sent_to = asked.messages.pop(reply.metadata.reply_to_message_id, ("", None))
            if not site or site in asked.answers:
                # a second reply to one message, or to a message that was sent twice
                continue
            if reply.has_error() and reply.error.code in _LOST:
                logger.warning("event=request_lost site=%s", site)
                if asked.sent_to.get(site) == sent_to:
                    del asked.sent_to[site]
                continue
            asked.answers[site] = _read_answer(reply, asked.requests[site].kind)
            if self._on_answer is not None:
                self._on_answer(site)


def _read_answer(reply: Message, kind: Kind) -> Answer:
    if reply.has_error():
        return Answer(Failure(_ERRORS.get(reply.error.code, FailureKind.INTERNAL)), 0)
    size = sum(len(part.deflate()) for part in get_all_nested_objects(reply).values())
    content = reply.content
    if set(content) == {_FAILURE}:
        try:
            name = str(content.config_records[_FAILURE]["kind"]).rstrip(" ")
            return Answer(Failure(FailureKind(name)), size)
        except (KeyError, ValueError):
            return Answer(Failure(FailureKind.PROTOCOL), size)
    try:
        parcel = decode_reply(unpack(content))
    except VersionMismatchError:
        return Answer(Failure(FailureKind.VERSION), size)
    except ProtocolError:
        return Answer(Failure(FailureKind.PROTOCOL), size)
    if parcel.kind is not kind:
        return Answer(Failure(FailureKind.PROTOCOL), size)
    return Answer(parcel, size)
