"""The page over HTTP: only GET, five paths, no cookies, no requests to other hosts."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lift.config.server import ServerConfig
from lift.errors import ConfigError
from lift_server.watch.live.exposition import CONTENT_TYPE
from lift_server.watch.live.snapshot import Snapshots

_SECURITY: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_LOCAL_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")
# a browser asks again every three seconds: its connection should still be there
_KEEP_ALIVE_S: Final = 20
_MOST_CONNECTIONS: Final = 512
_STATIC: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
Handler = Callable[[Request], Awaitable[Response]]


def make_app(snapshots: Snapshots, host: str) -> Starlette:
    """The page's application.

    A request that names another host is refused: no web page of somebody else can read this one
    through a name that it controls (DNS rebinding).

    Args:
        snapshots: what is shown.
        host: the interface that is listened on; its name is accepted beside the local ones.
    """

    async def state(request: Request) -> Response:
        del request
        return _response(snapshots.latest().state, "application/json")

    async def rounds(request: Request) -> Response:
        text = request.query_params.get("after", "0")
        known = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        run = request.query_params.get("run", "")
        return _response(snapshots.rounds_after(known, run), "application/json")

    async def metrics(request: Request) -> Response:
        del request
        return _response(snapshots.latest().metrics, CONTENT_TYPE)

    routes = [
        Route("/state.json", state, methods=["GET"]),
        Route("/rounds.json", rounds, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        *(Route(path, _static(*named), methods=["GET"]) for path, named in _STATIC.items()),
    ]
    allowed = [*_LOCAL_NAMES, *([] if _is_any(host) else [host])]
    # listening on every interface means: any host name is accepted
    hosts = ["*"] if _is_any(host) else allowed
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
    )


def serve_page(config: ServerConfig) -> None:
    """Serve the page in this process until it receives a stop signal.

    Raises:
        ConfigError: the settings switch the page off, or the port is taken.
    """
    if config.page_port is None:
        raise ConfigError(
            "the live page is switched off",
            where="page_port",
            seen="null",
            remedy="Give page_port a free port in server.yaml.",
        )
    app = make_app(Snapshots(config), config.page_host)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.page_host,
            port=config.page_port,
            lifespan="off",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=2,
        )
    )
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    try:
        server.run()
    except SystemExit:
        # uvicorn's way to say that it could not listen
        raise ConfigError(
            "the live page's port is taken",
            where="page_host, page_port",
            seen=f"{config.page_host}:{config.page_port} cannot be listened on",
            remedy="Choose another page_port, or null for no page.",
        ) from None


def _static(name: str, kind: str) -> Handler:
    content = (files("lift_server.watch.live") / name).read_bytes()

    async def handler(request: Request) -> Response:
        del request
        return _response(content, kind)

    return handler


def _response(content: bytes, kind: str) -> Response:
    return Response(content, media_type=None, headers={**_SECURITY, "content-type": kind})


def _is_any(host: str) -> bool:
    """Whether a server on this host listens on every interface."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
