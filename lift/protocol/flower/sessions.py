"""One key, one session: a copied key does not share the requests of the site that it belongs to.

Flower knows a site by its key alone: two processes with one key share its requests, and nobody is
told. Here each start of a site's child has a session of its own, a random number in a header. The
first one holds the key until it leaves or is silent for as long as its lease; a restarted child
proves with the number of the session before it that it may take over.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from lift.protocol.flower.connection import (
    ADMISSION_CHECK,
    KEY_IN_USE,
    PREVIOUS_HEADER,
    SECOND_HEADER,
    SESSION_HEADER,
)

_COME: Final = "/v1/fleet/activate-node"
_FLEET: Final = "/v1/fleet/"
_LEAVE: Final = "/v1/fleet/deactivate-node"
_OK: Final = 200
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass
class _Session:
    number: bytes
    heard: float
    open_requests: int = 0
    told: bool = True


class Sessions:
    """An ASGI app before Flower's: a key's requests come from one session.

    Whether the key is the sender's is Flower's to say: a session begins with a request that it
    took. A request without the header belongs to a session without a number.

    Args:
        app: the app behind it.
        lease_s: after so many seconds without a request a session has ended.
        on_second: called with the key (Flower's header) when a second session was refused.
        clock: seconds.
    """

    def __init__(
        self,
        app: App,
        *,
        lease_s: float,
        on_second: Callable[[str], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._app = app
        self._lease_s = lease_s
        self._on_second = on_second
        self._clock = clock
        self._sessions: dict[bytes, _Session] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event stream."""
        if scope["type"] != "http" or not scope.get("path", "").startswith(_FLEET):
            await self._app(scope, receive, send)
            return
        from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

        headers = dict(scope["headers"])
        key = headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), b"")
        number = headers.get(SESSION_HEADER.encode(), b"")
        if number == ADMISSION_CHECK.encode() and scope["path"] == _COME:
            await self._app(scope, receive, send)
            return
        held = self._held(key)
        previous = headers.get(PREVIOUS_HEADER.encode(), b"")
        if held is not None and held.number not in {number, previous or number}:
            if held.told and _is_signed(headers):
                held.told = False
                self._on_second(key.decode("ascii", "replace"))
            await _refuse(send)
            return

        async def answer(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start" and event["status"] == _OK:
                self._took(key, number)
                session = self._sessions[key]
                if not session.told and session.number == number:
                    session.told = True
                    event = {**event, "headers": [*event["headers"], _told()]}
                if scope["path"] == _LEAVE:
                    del self._sessions[key]
            await send(event)

        if held is not None:
            held.open_requests += 1
        try:
            await self._app(scope, receive, answer)
        finally:
            if held is not None:
                held.open_requests -= 1

    def _held(self, key: bytes) -> _Session | None:
        session = self._sessions.get(key)
        if session is None:
            return None
        silent = self._clock() - session.heard > self._lease_s
        return None if silent and not session.open_requests else session

    def _took(self, key: bytes, number: bytes) -> None:
        session = self._sessions.get(key)
        if session is None or session.number != number:
            told = True if session is None else session.told
            self._sessions[key] = _Session(number, self._clock(), told=told)
        else:
            session.heard = self._clock()


def _is_signed(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the sender holds the key: a stranger raises no alarm."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

    try:
        key, stamp, signature = (
            headers[name.lower().encode()]
            for name in (
                FLEET_HTTP_PUBLIC_KEY_HEADER,
                TIMESTAMP_HEADER,
                FLEET_HTTP_SIGNATURE_HEADER,
            )
        )
        public = bytes_to_public_key(b64decode(key, validate=True))
        known = isinstance(public, ec.EllipticCurvePublicKey)
        return known and verify_signature(public, stamp, b64decode(signature, validate=True))
    except (KeyError, ValueError, TypeError):
        return False


def _told() -> tuple[bytes, bytes]:
    return SECOND_HEADER.encode(), b"1"


async def _refuse(send: Send) -> None:
    await send({"type": "http.response.start", "status": KEY_IN_USE, "headers": []})
    await send({"type": "http.response.body", "body": b""})
