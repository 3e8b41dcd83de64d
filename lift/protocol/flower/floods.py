"""What keeps a flood of silent connections from shutting a site out.

A connection costs a file descriptor from its first packet on. So there are as many descriptors as
the system allows, a connection that does not ask for anything in time is closed, and one address
holds a share of them at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections import Counter
from typing import Any, Final

import uvloop

HANDSHAKE_S: Final = 10.0
"""Within these seconds TLS has to be agreed on."""
REQUEST_S: Final = 10.0
"""Within these seconds after that the head of a request has to be there."""
MOST_OF_ONE_ADDRESS: Final = 256
"""Connections of one address. Behind a reverse proxy all sites have one address."""
_WANTED_DESCRIPTORS: Final = 65_536


class Loop(uvloop.Loop):
    """An event loop whose servers end a handshake that takes too long."""

    async def create_server(  # type: ignore[override]  # all of it is handed on
        self, *args: Any, **kwargs: Any
    ) -> asyncio.AbstractServer:
        """As asyncio's."""
        if kwargs.get("ssl") is not None:
            kwargs.setdefault("ssl_handshake_timeout", HANDSHAKE_S)
        return await super().create_server(*args, **kwargs)


def raise_descriptor_limit() -> None:
    """Take as many file descriptors as the system allows, up to what a large federation needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    if soft < min(wanted, _WANTED_DESCRIPTORS):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, _WANTED_DESCRIPTORS), hard))


def guarded_protocol() -> type[asyncio.Protocol]:
    """Uvicorn's protocol of one connection, with a time limit and a limit by address."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    held: Counter[str] = Counter()

    class Guarded(AutoHTTPProtocol):  # type: ignore[misc,valid-type]  # chosen when uvicorn is imported
        _address = ""
        _quiet: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            peer = transport.get_extra_info("peername")
            self._address = str(peer[0]) if peer else ""
            held[self._address] += 1
            if held[self._address] > MOST_OF_ONE_ADDRESS:
                transport.abort()
                return
            self._quiet = self.loop.call_later(REQUEST_S, self._end_if_quiet)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._quiet is not None:
                self._quiet.cancel()
            held[self._address] -= 1
            if held[self._address] <= 0:
                del held[self._address]
            super().connection_lost(exc)

        def _end_if_quiet(self) -> None:
            # there is a cycle from the end of the first request's head on
            if self.cycle is None:
                self.transport.abort()

    guarded: type[asyncio.Protocol] = Guarded
    return guarded
