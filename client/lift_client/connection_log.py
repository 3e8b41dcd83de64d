"""Lines in the site's log on its connection: what happened, why, and what to do about it.

The child process that holds the connection knows whether its last request was answered. The reason
why one was not is found as `lift-client check` finds it, and by the same code.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Final

from lift.protocol.flower.connection import KEY_IN_USE, Connection, State, read_connection
from lift_client.check.verdict import Verdict

logger = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 0.3
_AWAY_S: Final = 3.0
"""A server that is started again is back before; its absence is told, and not looked into."""
_AGAIN_S: Final = 600.0
_KEY_FIX: Final = (
    "Stop the other client that uses this site.key, or wait 20 s after a crash. If there is none "
    "that you know, the key was copied: inform the coordinator, and enrol with a new key."
)
_REFUSED_FIX: Final = (
    "Nothing to do now: this client connects anew, as after a server that was moved. If it comes "
    "again, ask the coordinator whether both sides run the same version."
)


class ConnectionLog:
    """Writes a line when the state changes.

    Args:
        path: the child's file of its state.
        explain: finds out what is wrong with the connection, as the preflight does.
        clock: seconds.
    """

    def __init__(
        self,
        path: Path,
        explain: Callable[[], Iterator[Verdict]],
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._path = path
        self._explain = explain
        self._clock = clock
        self._before: State = "connecting"
        self._since = clock()
        self._explained: tuple[State, int, float] | None = None
        self._was_connected = False
        self._second_sessions = 0

    def look(self) -> None:
        """Read the state, and write what is new."""
        now = read_connection(self._path)
        if now is None:
            return
        if now.state != self._before:
            self._before, self._since = now.state, self._clock()
            self._changed(now)
        if now.second_sessions != self._second_sessions:
            self._second_sessions = now.second_sessions
            if now.second_sessions:
                logger.error(
                    "event=key_used_twice seen=\"another client came with this site's key; the "
                    'server refused it" fix="%s"',
                    _KEY_FIX,
                )
        self._look_into(now)

    def _changed(self, now: Connection) -> None:
        if now.state == "connected":
            again = "connected_again" if self._was_connected else "connected"
            logger.info("event=%s", again)
            self._was_connected = True
            self._explained = None
        elif now.state == "away":
            logger.warning(
                'event=server_away seen="no answer" fix="Nothing to do now: this client tries '
                'again by itself, and goes on where it was."'
            )

    def _look_into(self, now: Connection) -> None:
        if now.state not in {"away", "refused"}:
            return
        at = self._clock()
        if now.state == "away" and at - self._since < _AWAY_S:
            return
        reason = now.state, now.status
        if self._explained is not None:
            *before, when = self._explained
            if tuple(before) == reason and at - when < _AGAIN_S:
                return
        self._explained = (*reason, at)
        if now.status == KEY_IN_USE:
            _say("key", "another client is connected with this site's key", _KEY_FIX)
            return
        found = [verdict for verdict in self._explain() if verdict.status == "problem"]
        for verdict in found[:1]:
            _say(verdict.check, verdict.detail, verdict.fix)
        if not found and now.state == "refused":
            seen = (
                f"the server refused a request with HTTP status {now.status}; checks find nothing"
            )
            _say("server", seen, _REFUSED_FIX)


def _say(cause: str, seen: str, fix: str) -> None:
    name = cause.replace(" ", "_")
    logger.error('event=not_connected cause=%s seen="%s" fix="%s"', name, seen, fix)


@contextmanager
def connection_logged(path: Path, explain: Callable[[], Iterator[Verdict]]) -> Iterator[None]:
    """Inside the block a thread writes the lines; training does not hold them up."""
    log = ConnectionLog(path, explain)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_LOOK_EVERY_S):
            try:
                log.look()
            except Exception:
                logger.exception("event=connection_log_failed")

    thread = threading.Thread(target=watch, name="connection-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)
