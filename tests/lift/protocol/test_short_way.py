"""The short way to Flower's handlers: the same checks, and every refusal by Flower itself."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from lift.protocol.flower.short_way import ShortWay, fleet_answers, runtime_answers
from lift.protocol.flower.superlink import LOCAL_PATHS, OPEN_PATHS

pytestmark = pytest.mark.timeout(60)
PATH: Final = "/v1/fleet/pull-messages"
REQUEST: Final = PullMessagesRequest(node=Node(node_id=5)).SerializeToString()


class Flower:
    """Stands for Flower's app: keeps the body that came to it."""

    def __init__(self) -> None:
        self.body: bytes | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        del scope
        self.body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def ask(
    answer: Any,
    body: bytes = REQUEST,
    *,
    path: str = PATH,
    media_type: str = PROTOBUF_MEDIA_TYPE,
    method: str = "POST",
) -> tuple[int, bytes, Flower]:
    """Status and body of an answer, and Flower's app behind the short way."""
    flower = Flower()
    events: list[Any] = []
    halves = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": halves.pop(0), "more_body": bool(halves)}

    async def send(event: Any) -> None:
        events.append(event)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(b"content-type", media_type.encode())],
        "query_string": b"",
    }
    asyncio.run(ShortWay(flower, {PATH: answer})(scope, receive, send))
    return events[0]["status"], events[1]["body"], flower


def test_what_goes_through_is_answered_without_the_app() -> None:
    seen = []

    def answer(request: Any) -> bytes:
        seen.append(request.state.protobuf_request)
        return b"done"

    status, body, flower = ask(answer)
    assert (status, body, flower.body) == (200, b"done", None)
    assert seen == [PullMessagesRequest(node=Node(node_id=5))]


@pytest.mark.parametrize(
    "error",
    [
        FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, "ended"),
        PermissionError("signature"),
        KeyError("x"),
    ],
)
def test_what_is_refused_comes_to_the_app_whole(error: Exception) -> None:
    def answer(request: Any) -> bytes:
        del request
        raise error

    status, _, flower = ask(answer)
    assert (status, flower.body) == (418, REQUEST)


def never(request: Any) -> bytes:
    raise AssertionError(request)


def test_bytes_that_are_no_request_come_to_the_app() -> None:
    assert ask(never, b"\xff\xff\xff")[2].body == b"\xff\xff\xff"


def test_another_media_type_comes_to_the_app() -> None:
    assert ask(never, media_type="application/json")[2].body == REQUEST


def test_another_method_or_path_is_not_even_read() -> None:
    # the app gets the events as they come: the first half
    assert ask(never, method="PUT")[2].body == REQUEST[: len(REQUEST) // 2]
    assert ask(never, path="/v1/fleet/get-run")[2].body == REQUEST[: len(REQUEST) // 2]


def test_an_unsigned_request_is_never_answered_by_the_short_way() -> None:
    answers = fleet_answers()
    status, _, flower = ask(answers[PATH])
    assert (status, flower.body) == (418, REQUEST)


def test_the_short_way_leads_nowhere_else() -> None:
    assert set(fleet_answers()) <= OPEN_PATHS
    assert set(runtime_answers()) <= LOCAL_PATHS
    # whoever admits a site, starts a run or takes a task does not come this way
    for path in (*fleet_answers(), *runtime_answers()):
        assert not any(word in path for word in ("register", "activate", "start", "task", "fab"))


def test_nothing_is_empty_bytes() -> None:
    # what `Holding` takes for "no message"
    assert PullMessagesResponse().SerializeToString() == b""
