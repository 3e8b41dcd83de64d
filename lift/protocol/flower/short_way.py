"""Flower's own checks and handlers for the requests of every round, without its web framework.

A request of a round takes Flower's handler a millisecond and the layers around it ten: nine of
Starlette's middleware, FastAPI's dependencies, six changes of thread. Here the same check of the
sender and the same handler run in one thread. Whatever does not go through at once is left to
Flower's app: bytes that are no request, a sender that is refused, a run that has ended. So every
refusal is Flower's, and a path that is not listed never comes here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from lift.protocol.flower.parts import attach, attached, identities
from lift.protocol.flower.sessions import App, Receive, Scope, Send

_FLEET: Final = {
    f"/v1/fleet/{name.replace('_', '-')}": f"fleet_{name}"
    for name in (
        "send_node_heartbeat",
        "pull_messages",
        "push_messages",
        "push_object",
        "pull_object",
        "confirm_message_received",
    )
}
_RUNTIME: Final = {
    f"/v1/runtime/{name.replace('_', '-')}": name
    for name in (
        "pull_messages",
        "push_messages",
        "push_object",
        "pull_object",
        "confirm_message_received",
        "get_nodes",
    )
}


class ShortWay:
    """An ASGI app before Flower's, for some of its paths.

    Args:
        app: Flower's.
        answers: path -> what checks a request's sender and answers it, in a thread.
    """

    def __init__(self, app: App, answers: Mapping[str, Callable[[Any], Any]]) -> None:
        from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
        from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

        self._media_type = PROTOBUF_MEDIA_TYPE
        self._app = app
        self._answers = answers
        self._types = {path: PROTOBUF_REQUEST_TYPES["POST", path] for path in answers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event stream."""
        answer = self._answers.get(scope.get("path", ""))
        if scope["type"] != "http" or scope["method"] != "POST" or answer is None:
            await self._app(scope, receive, send)
            return
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import Request

        body = await _body(receive)
        request = Request({**scope, "app": self._app, "state": {}})
        try:
            if request.headers.get("content-type") != self._media_type:
                raise ValueError
            request.state.protobuf_request = self._types[scope["path"]].FromString(body)
            content = await run_in_threadpool(answer, request)
        except Exception:  # whatever it is, the app says it in its own way
            await self._app(scope, _again(body, receive), send)
            return
        kind = b"content-type", self._media_type.encode()
        size = b"content-length", str(len(content)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [kind, size]})
        await send({"type": "http.response.body", "body": content})


def fleet_answers() -> dict[str, Callable[[Any], bytes]]:
    """For the sites' door: the signature is checked as Flower checks it."""
    from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
    from flwr.superlink.dependencies.linkstate import get_linkstate
    from flwr.superlink.routers.fleet.node_auth import authenticate_node

    def answer(handler: Callable[..., Any], request: Any) -> bytes:
        authenticate_node(request)
        message, state = request.state.protobuf_request, get_linkstate(request)
        response = handler(request=message, state=state)
        if isinstance(message, PullMessagesRequest):
            _add_parts(response, message.node, state)
        if isinstance(message, PushMessagesRequest):
            _take_parts(response, message, state)
        return _bytes(response)

    return _bound(answer, "flwr.superlink.routers.fleet.router", _FLEET)


def _add_parts(response: Any, node: Any, state: Any) -> None:
    """Add its parts to a request that a site is told of."""
    from flwr.proto.message_pb2 import PullObjectRequest
    from flwr.supercore.error import FlowerError
    from flwr.superlink.servicer.fleet.fleet_handlers import pull_object

    found = {}
    for message, tree in zip(response.messages_list, response.message_object_trees, strict=True):
        run = message.metadata.run_id
        for identity in identities([tree]):
            ask = PullObjectRequest(node=node, run_id=run, object_id=identity)
            try:
                part = pull_object(ask, state)
            except FlowerError:
                # the site asks for it, and is told why not
                continue
            if part.object_available:
                found[identity] = part.object_content
    attach(response, found)


def _take_parts(response: Any, request: Any, state: Any) -> None:
    """Keep the parts that came with an answer; the site is asked for those that are missing."""
    from flwr.proto.message_pb2 import PushObjectRequest
    from flwr.supercore.error import FlowerError
    from flwr.superlink.servicer.fleet.fleet_handlers import push_object

    parts, taken = attached(request), set()
    for identity in response.objects_to_push:
        if identity not in parts:
            continue
        part = PushObjectRequest(
            node=request.node,
            run_id=request.messages_list[0].metadata.run_id,
            session_id=response.session_id,
            object_id=identity,
            object_content=parts[identity],
        )
        try:
            stored = push_object(part, state).stored
        except FlowerError:
            continue
        if stored:
            taken.add(identity)
    missing = [each for each in response.objects_to_push if each not in taken]
    del response.objects_to_push[:]
    response.objects_to_push.extend(missing)
    attach(response, dict.fromkeys(taken, b""))


def runtime_answers() -> dict[str, Callable[[Any], bytes]]:
    """For the coordinator's door: the token of its task is checked as Flower checks it."""
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest
    from flwr.supercore.constant import TASK_TOKEN_HEADER
    from flwr.supercore.dependencies.runtime import get_runtime_handlers, get_runtime_state
    from flwr.supercore.dependencies.task import authenticate_task

    def answer(handler: Callable[..., Any], request: Any) -> bytes:
        state = get_runtime_state(request)
        task = authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), state)
        message, handlers = request.state.protobuf_request, get_runtime_handlers(request)
        response = handler(request=message, state=state, handlers=handlers, task=task)
        if isinstance(message, PullAppMessagesRequest):
            found = {
                identity: state.get_object(task.run_id, identity)
                for identity in identities(response.message_object_trees)
            }
            attach(response, {identity: part for identity, part in found.items() if part})
        return _bytes(response)

    return _bound(answer, "flwr.supercore.routers.runtime.router", _RUNTIME)


def _bound(
    answer: Callable[[Callable[..., Any], Any], bytes], module: str, names: Mapping[str, str]
) -> dict[str, Callable[[Any], bytes]]:
    # a package has an attribute of this module's name that is not the module
    handlers = importlib.import_module(module)
    return {path: partial(answer, getattr(handlers, name)) for path, name in names.items()}


def _bytes(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content


async def _body(receive: Receive) -> bytes:
    """The whole body of a request; the door has limited its size."""
    parts = []
    while (event := await receive())["type"] == "http.request":
        parts.append(event.get("body", b""))
        if not event.get("more_body", False):
            break
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The events of a request whose body was read."""
    told = False

    async def events() -> Any:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return events
