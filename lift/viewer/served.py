"""`lift view`: a read-only server on 127.0.0.1, behind a secret path."""

from __future__ import annotations

import gzip
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from lift.viewer.embedded import niivue
from lift.viewer.page import served_page, styles
from lift.viewer.volumes import ViewerVolume

_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self' data:; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_HTML: Final = "text/html; charset=utf-8"
_SCRIPT: Final = "text/javascript; charset=utf-8"


def make_app(volumes: Sequence[ViewerVolume], label: str, token: str) -> Starlette:
    """The viewer's application: six files, GET alone, under the token's path alone.

    Args:
        volumes: what is shown, held in memory.
        label: the page's heading.
        token: first part of every path. Requests without it get nothing.

    Raises:
        ConfigError: NiiVue is not there.
    """
    listed = {
        "labels": [volume.label for volume in volumes],
        "hounsfield": all(volume.hounsfield for volume in volumes),
    }
    routes = [
        _route("/", served_page(label), _HTML),
        _route("/page.css", styles().encode(), "text/css; charset=utf-8"),
        _route("/served.js", _file("served.js"), _SCRIPT),
        _route("/viewer.js", _file("viewer.js"), _SCRIPT),
        _route("/niivue.js", gzip.compress(niivue(), 6, mtime=0), _SCRIPT, encoding="gzip"),
        _route("/volumes.json", json.dumps(listed).encode(), "application/json"),
        *(
            _route(f"/volume/{place}", volume.nifti, "application/octet-stream")
            for place, volume in enumerate(volumes)
        ),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


def serve(
    volumes: Sequence[ViewerVolume], label: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C.

    Args:
        volumes: what is shown.
        label: the page's heading.
        port: of 127.0.0.1; 0 takes a free one.
        ready: called with the page's address once it is listened on.

    Raises:
        OSError: the port is taken.
        ConfigError: NiiVue is not there.
    """
    token = secrets.token_urlsafe(16)
    app = make_app(volumes, label, token)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        ready(f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/")
        settings = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(settings).run(sockets=[listener])


def _route(path: str, content: bytes, kind: str, *, encoding: str | None = None) -> Route:
    headers = {**_HEADERS, "content-type": kind}
    if encoding is not None:
        headers["content-encoding"] = encoding

    async def handler(request: Request) -> Response:
        del request
        return Response(content, headers=headers)

    named: Callable[[Request], Awaitable[Response]] = handler
    return Route(path, named, methods=["GET"])


def _file(name: str) -> bytes:
    return (files("lift.viewer") / name).read_bytes()
