"""A federation without a network: the edges below the real exchange and round loop, scripted.

A `ScriptedGrid` takes the place of Flower's Grid. It has a clock of its own, plays a script of
events step by step, and remembers what truly happened: which request reached whom, and which
answer came first. Tests compare what the server recorded with that memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo

from lift.protocol.codec import decode_request
from lift.protocol.flower.records import unpack
from lift.protocol.messages import Answer, Kind, Parcel
from lift.protocol.transport import Grace, Transport
from tests.server.scripted_sites import SITES, VALID, reply_contents

_FIRST_NODE: Final = 10
_LOST: Final = "lost"


class Died(BaseException):
    """The server's process ends here, as by `kill -9`: nothing after it runs."""


@dataclass
class Exchange:
    """What truly happened in one exchange.

    Attributes:
        round: the round that it belongs to.
        roster: the admitted sites as the server last read them.
        requests: what the server asks whom.
        deadline_s: as it was asked for.
        began: simulated seconds.
        fresh_roster: the roster had been read since the round before.
        pushed: request's identity -> the site and the connection that the server knew.
        lost: requests that Flower reported as lost.
        first: site -> what it did in the first answer that reached the server.
        answers: what the transport gave to the round loop.
        longest_look_s: simulated seconds of the slowest look at the Grid.
        push_failed: Flower did not take a request.
        grace: for sites without an answer.
        away: site -> simulated seconds since the server saw it connected, at the end.
        was_enough: whether the replies of the end were enough, as the server counts.
        ended: simulated seconds; None if the process died before.
    """

    round: int
    roster: list[str]
    requests: Mapping[str, Parcel]
    deadline_s: float
    began: float
    fresh_roster: bool
    pushed: dict[str, tuple[str, str]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    longest_look_s: float = 0.0
    push_failed: bool = False
    grace: Grace | None = None
    away: dict[str, float] = field(default_factory=dict)
    was_enough: bool = False
    ended: float | None = None

    @property
    def kind(self) -> Kind | None:
        """None when nobody was asked."""
        return next((parcel.kind for parcel in self.requests.values()), None)

    @property
    def valid(self) -> list[str]:
        """Sites whose first answer has to count."""
        return sorted(site for site, deed in self.first.items() if deed in VALID)


@dataclass
class _Open:
    identity: str
    message: Message
    parcel: Parcel
    since: float


@dataclass
class Hospital:
    """One site: its connection, what it does with its next requests, and how long that takes."""

    node: int
    here: bool = True
    connection: int = 0
    connected_at: float = 0.0
    delay_s: float = 0.0
    deeds: dict[Kind, list[str]] = field(default_factory=lambda: {kind: [] for kind in Kind})
    open: list[_Open] = field(default_factory=list)


@dataclass
class _Reply:
    site: str
    identity: str
    message: Message
    deed: str


class ScriptedGrid:
    """Flower's Grid as `GridTransport` uses it.

    Args:
        dtype: number format of updates.
        strays: hand out replies that nobody asked for as well.
    """

    def __init__(self, dtype: str, *, strays: bool) -> None:
        self.seconds = 0.0
        self.script: list[tuple[int, Callable[[], None]]] = []
        self.sites = {site: Hospital(_FIRST_NODE + i) for i, site in enumerate(SITES)}
        self.exchange: Exchange | None = None
        self.failing_pushes = 0
        self._dtype = dtype
        self._strays = strays
        self._inbox: list[_Reply] = []
        self._sent: list[_Reply] = []
        self._told: dict[str, str] = {}
        self._told_at: dict[str, float] = {}
        self._slow_s = 0.0
        self._look_s = 0.0
        self._numbers = itertools.count()

    def get_nodes(self) -> list[NodeInfo]:
        """The sites that are connected now."""
        self._step()
        self._told = {s: str(h.connection) for s, h in self.sites.items() if h.here}
        self._told_at |= dict.fromkeys(self._told, self.seconds)
        return [
            NodeInfo(node_id=self.sites[site].node, name=site, last_activated_at=since)
            for site, since in self._told.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Put each message at its site; "" for one that Flower did not take."""
        self._step()
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Sequence[str]) -> list[Message]:
        """The replies that have come, in the order in which the sites sent them."""
        self._step()
        for site in SITES:
            self._react(site)
        wanted = set(message_ids)
        found = [r for r in self._inbox if self._strays or r.identity in wanted]
        self._inbox = [reply for reply in self._inbox if reply not in found]
        for reply in found:
            self._note(reply)
        return [reply.message for reply in found]

    def wait(self, seconds: float) -> None:
        """Time passes; another look begins."""
        self._close_look()
        self.seconds += seconds
        self._step()

    def clock(self) -> float:
        """Simulated seconds."""
        return self.seconds

    def begin(self, exchange: Exchange) -> None:
        """From now on, what happens belongs to this exchange."""
        self.exchange = exchange
        self._look_s = 0.0

    def end(self) -> None:
        """The exchange is over."""
        assert self.exchange is not None
        self._close_look()
        self.exchange.ended = self.seconds
        self.exchange.away = {
            site: self.seconds - self._told_at.get(site, 0.0)
            for site in SITES
            if site not in self._told
        }
        self.exchange = None

    def be_slow(self, seconds: float) -> None:
        """The next call to the Grid takes that long."""
        self._slow_s += seconds

    def connect(self, site: str, *, lost: bool) -> None:
        """A new connection; what was in flight to the old one may be lost."""
        hospital = self.sites[site]
        if lost:
            hospital.open.clear()
        hospital.here = True
        hospital.connection += 1
        hospital.connected_at = self.seconds

    def say_lost(self, site: str, code: int) -> None:
        """Flower gives up the oldest request to a site."""
        if self.sites[site].open:
            given_up = self.sites[site].open.pop(0)
            message = Message(Error(code, "-"), reply_to=given_up.message)
            self._inbox.append(_Reply(site, given_up.identity, message, _LOST))

    def repeat(self, site: str) -> None:
        """A site's first and last replies come once more, whatever they answered."""
        mine = [reply for reply in self._sent if reply.site == site]
        self._inbox += mine[:1] + mine[1:][-1:]

    def heal(self) -> None:
        """Everybody is here, answers well and at once; the script is over."""
        self.script.clear()
        self.failing_pushes = 0
        self._slow_s = 0.0
        for site, hospital in self.sites.items():
            hospital.deeds = {kind: [] for kind in Kind}
            hospital.delay_s = 0.0
            self.connect(site, lost=True)

    def _step(self) -> None:
        self.seconds += self._slow_s
        self._look_s += self._slow_s
        self._slow_s = 0.0
        while self.script:
            steps, event = self.script[0]
            if steps > 0:
                self.script[0] = (steps - 1, event)
                return
            self.script.pop(0)
            event()

    def _close_look(self) -> None:
        if self.exchange is not None:
            self.exchange.longest_look_s = max(self.exchange.longest_look_s, self._look_s)
        self._look_s = 0.0

    def _push(self, message: Message) -> str:
        assert self.exchange is not None
        if self.failing_pushes:
            self.failing_pushes -= 1
            self.exchange.push_failed = True
            return ""
        identity = f"message-{next(self._numbers)}"
        # Flower's setter exists on its link state only
        message.metadata.__dict__["_message_id"] = identity
        site = SITES[message.metadata.dst_node_id - _FIRST_NODE]
        parcel = decode_request(unpack(message.content))
        self.sites[site].open.append(_Open(identity, message, parcel, self.seconds))
        self.exchange.pushed[identity] = (site, self._told[site])
        return identity

    def _react(self, site: str) -> None:
        hospital = self.sites[site]
        if not hospital.here:
            return
        due = [o for o in hospital.open if self.seconds - o.since >= hospital.delay_s]
        hospital.open = [o for o in hospital.open if o not in due]
        for request in due:
            deeds = hospital.deeds[request.parcel.kind]
            deed = deeds.pop(0) if deeds else VALID[0]
            contents = reply_contents(site, request.parcel, deed, self._dtype)
            replies = [
                _Reply(site, request.identity, Message(c, reply_to=request.message), deed)
                for c in contents
            ]
            self._inbox += replies
            self._sent += replies

    def _note(self, reply: _Reply) -> None:
        """What a reply means to an exchange: the first to a request that is still open."""
        exchange = self.exchange
        assert exchange is not None
        if reply.identity not in exchange.pushed or reply.identity in exchange.lost:
            return
        site, _ = exchange.pushed[reply.identity]
        if site in exchange.first:
            return
        if reply.deed == _LOST:
            exchange.lost.append(reply.identity)
        else:
            exchange.first[site] = reply.deed


class Witness:
    """A transport that passes everything on and writes down what truly happened.

    Args:
        inner: the real transport.
        grid: the Grid below it.
        before: called with each exchange before it begins.
    """

    def __init__(
        self, inner: Transport, grid: ScriptedGrid, before: Callable[[Exchange], None]
    ) -> None:
        self.exchanges: list[Exchange] = []
        self.connected: list[str] = []
        self._inner = inner
        self._grid = grid
        self._before = before
        self._roster: list[str] = []
        self._fresh = False
        self._round = 0

    def read_roster(self, roster: Iterable[str]) -> list[str]:
        """The roster as the round loop gets it."""
        self._roster, self._fresh = sorted(roster), True
        return list(self._roster)

    def round_done(self) -> None:
        """The next round needs a new look at the roster."""
        self._fresh = False

    def asking(self, round_index: int, kind: Kind, asked: Sequence[str], deadline_s: float) -> None:
        """The round loop is about to ask."""
        del kind, asked, deadline_s
        self._round = round_index

    def sites(self) -> list[str]:
        """The sites that are connected now."""
        self.connected = self._inner.sites()
        return self.connected

    def exchange(
        self, requests: Mapping[str, Parcel], *, deadline_s: float, grace: Grace | None = None
    ) -> dict[str, Answer]:
        """The exchange below, written down."""
        seen = Exchange(
            self._round,
            self._roster,
            requests,
            deadline_s,
            self._grid.seconds,
            self._fresh,
            grace=grace,
        )
        self.exchanges.append(seen)
        self._before(seen)
        self._grid.begin(seen)
        seen.answers = self._inner.exchange(requests, deadline_s=deadline_s, grace=grace)
        self._grid.end()
        replied = [s for s, one in seen.answers.items() if isinstance(one.content, Parcel)]
        # by what the server knew at that moment: a later exchange may know more
        seen.was_enough = grace is not None and grace.enough(replied)
        return seen.answers
