"""Requests that wait for something to happen, in the place of many that ask whether it has.

A question with `WAIT_HEADER` to which there is no answer yet stays open until there may be one, or
the seconds that it names are over. It is then answered with what it found when it came, and whoever
asked asks again: nothing is ever handed to a connection that may have been dead for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from lift.protocol.flower.sessions import App, Receive, Scope, Send

WAIT_HEADER: Final = "x-lift-wait"
"""In a request: for how many milliseconds it may stay open."""
LONGEST_WAIT_S: Final = 8.0
"""No request stays open for longer: proxies close what is silent for half a minute."""
NEWS_PATH: Final = "/lift/news"
"""On 127.0.0.1: answers, as text, how much has happened; see `NewsDesk`."""
SEEN_HEADER: Final = "x-lift-seen"
"""In a request for `NEWS_PATH`: the number that was answered before."""
GATHERING_S: Final = 0.02
"""What happens within so many seconds is told once."""
_OK: Final = 200
_MOST_DIGITS: Final = 6


class News:
    """Something happened: for whoever waits in an event loop or in a thread."""

    def __init__(self) -> None:
        self.count = 0
        """How often something has happened."""
        self._lock = threading.Lock()
        self._happened = threading.Event()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._closed = False

    def tell(self) -> None:
        """It happened just now. Any thread may say so."""
        with self._lock:
            self.count += 1
            self._happened.set()
            for event, loop in self._waiting.items():
                # a loop that has just ended has nobody who waits
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """From now on nobody waits."""
        self._closed = True
        self.tell()

    def wait(self, seconds: float) -> None:
        """Wait in a thread, of which there is one at most, until it happens or the time is over."""
        self._happened.wait(seconds)
        self._happened.clear()

    @contextlib.contextmanager
    def watched(self) -> Iterator[asyncio.Event]:
        """An event of this thread's loop that is set when it happens after the block began."""
        event = asyncio.Event()
        with self._lock:
            self._waiting[event] = asyncio.get_running_loop()
            if self._closed:
                event.set()
        try:
            yield event
        finally:
            with self._lock:
                del self._waiting[event]


class Telling:
    """An ASGI app that tells when another has done what one of these paths asked for.

    Args:
        app: the app behind it.
        paths: whose requests are news when they were answered with 200.
        tell: is called, `GATHERING_S` later and once for all of that time.
    """

    def __init__(self, app: App, paths: frozenset[str], tell: Callable[[], None]) -> None:
        self._app = app
        self._paths = paths
        self._tell = tell
        self._told_soon = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event stream."""
        if scope["type"] != "http" or scope.get("path") not in self._paths:
            await self._app(scope, receive, send)
            return

        async def watch(event: Any) -> None:
            await send(event)
            if event["type"] == "http.response.start" and event["status"] == _OK:
                self._soon()

        await self._app(scope, receive, watch)

    def _soon(self) -> None:
        if not self._told_soon:
            self._told_soon = True
            asyncio.get_running_loop().call_later(GATHERING_S, self._now)

    def _now(self) -> None:
        self._told_soon = False
        self._tell()


class Holding:
    """An ASGI app that keeps the questions for one path open while another has no answer to them.

    Args:
        app: the app behind it; an empty body with 200 is its "nothing".
        path: of the questions.
        news: when there may be an answer.
    """

    def __init__(self, app: App, path: str, news: News) -> None:
        self._app = app
        self._path = path
        self._news = news

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event stream."""
        if scope["type"] != "http" or scope.get("path") != self._path:
            await self._app(scope, receive, send)
            return
        seconds = _seconds(dict(scope["headers"]))
        if seconds == 0:
            await self._app(scope, receive, send)
            return
        found: list[Any] = []

        async def keep(event: Any) -> None:
            found.append(event)

        with self._news.watched() as happened:
            await self._app(scope, receive, keep)
            nothing = found[0].get("status") == _OK and not any(e.get("body") for e in found)
            if nothing:
                await _first(happened.wait(), _gone(receive), seconds)
        for event in found:
            await send(event)


class NewsDesk:
    """An ASGI app that answers `NEWS_PATH`: at once when there is news, else when there is.

    Args:
        app: the app behind it, for every other path.
        news: what is told.
    """

    def __init__(self, app: App, news: News) -> None:
        self._app = app
        self._news = news

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event stream."""
        if scope["type"] != "http" or scope.get("path") != NEWS_PATH:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        seen = headers.get(SEEN_HEADER.encode(), b"")
        with self._news.watched() as happened:
            if seen == str(self._news.count).encode():
                await _first(happened.wait(), _gone(receive), _seconds(headers))
        await send({"type": "http.response.start", "status": _OK, "headers": []})
        await send({"type": "http.response.body", "body": str(self._news.count).encode()})


def _seconds(headers: Mapping[bytes, bytes]) -> float:
    """For how long a request may stay open; 0 where it names no such number."""
    given = headers.get(WAIT_HEADER.encode(), b"")
    if not given.isdigit() or len(given) > _MOST_DIGITS:
        return 0.0
    return min(int(given) / 1000, LONGEST_WAIT_S)


async def _gone(receive: Receive) -> None:
    """Wait until whoever asked has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(one: Any, other: Any, seconds: float) -> None:
    """Wait for the first of two, for so many seconds at most."""
    tasks = [asyncio.ensure_future(each) for each in (one, other)]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
