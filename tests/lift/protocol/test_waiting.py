"""Questions that stay open until something happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from lift.protocol.flower.waiting import (
    LONGEST_WAIT_S,
    NEWS_PATH,
    SEEN_HEADER,
    WAIT_HEADER,
    Holding,
    News,
    NewsDesk,
    Telling,
)

pytestmark = pytest.mark.timeout(60)
QUESTION: Final = "/v1/fleet/pull-messages"
FOR_EVER: Final = str(round(1000 * LONGEST_WAIT_S))


class Flower:
    """Stands for Flower's app: answers with what it is told to, and counts the questions."""

    def __init__(self, *, status: int = 200, body: bytes = b"") -> None:
        self.status, self.body = status, body
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        del scope, receive
        self.asked += 1
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.body})


class Question:
    """One request, and what was answered to it."""

    def __init__(self, path: str = QUESTION, **headers: str) -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        }
        self.events: list[Any] = []
        self.answered = asyncio.Event()
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: Any) -> None:
        self.events.append(event)
        if event["type"] == "http.response.body":
            self.answered.set()

    def put(self, app: Any) -> asyncio.Task[None]:
        return asyncio.ensure_future(app(self.scope, self.receive, self.send))

    @property
    def body(self) -> bytes:
        return b"".join(event.get("body", b"") for event in self.events)


def waiting(**more: str) -> Question:
    return Question(**{WAIT_HEADER: FOR_EVER}, **more)


def in_a_loop(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_question_without_an_answer_stays_open_until_there_is_news() -> None:
    async def test() -> None:
        news, flower = News(), Flower()
        question = waiting()
        task = question.put(Holding(flower, QUESTION, news))
        await settle()
        assert flower.asked == 1
        assert not question.answered.is_set()
        news.tell()
        await task
        # answered with what was found when it came: whoever asked asks again
        assert flower.asked == 1
        assert question.events[0]["status"] == 200
        assert question.body == b""

    in_a_loop(test)


@pytest.mark.parametrize(
    ("flower", "headers"),
    [
        (Flower(body=b"a message"), {WAIT_HEADER: FOR_EVER}),
        (Flower(status=401), {WAIT_HEADER: FOR_EVER}),
        (Flower(status=403, body=b"{}"), {WAIT_HEADER: FOR_EVER}),
        (Flower(), {}),
        (Flower(), {WAIT_HEADER: "0"}),
        (Flower(), {WAIT_HEADER: "-1"}),
        (Flower(), {WAIT_HEADER: "soon"}),
        (Flower(), {WAIT_HEADER: "9" * 400}),
    ],
    ids=["a message", "refused", "forbidden", "plain", "zero", "negative", "a word", "huge"],
)
def test_whatever_has_an_answer_or_does_not_wait_is_answered_at_once(
    flower: Flower, headers: dict[str, str]
) -> None:
    async def test() -> None:
        question = Question(**headers)
        task = question.put(Holding(flower, QUESTION, News()))
        await settle()
        assert task.done()
        assert (question.events[0]["status"], question.body) == (flower.status, flower.body)

    in_a_loop(test)


def test_another_path_never_waits() -> None:
    async def test() -> None:
        question = Question("/v1/fleet/push-messages", **{WAIT_HEADER: FOR_EVER})
        task = question.put(Holding(Flower(), QUESTION, News()))
        await settle()
        assert task.done()

    in_a_loop(test)


def test_news_between_the_look_and_the_wait_is_not_missed() -> None:
    async def test() -> None:
        news = News()

        async def flower(scope: Any, receive: Any, send: Any) -> None:
            await Flower()(scope, receive, send)
            news.tell()

        task = waiting().put(Holding(flower, QUESTION, news))
        await settle()
        assert task.done()

    in_a_loop(test)


def test_a_site_that_has_left_is_not_waited_for() -> None:
    async def test() -> None:
        question = waiting()
        task = question.put(Holding(Flower(), QUESTION, News()))
        await settle()
        question.left.set()
        await settle()
        assert task.done()

    in_a_loop(test)


def test_a_server_that_ends_lets_everybody_go_and_keeps_nobody() -> None:
    async def test() -> None:
        news = News()
        app = Holding(Flower(), QUESTION, news)
        before = waiting().put(app)
        await settle()
        news.close()
        await settle()
        after = waiting().put(app)
        await settle()
        assert before.done()
        assert after.done()

    in_a_loop(test)


def test_the_time_that_a_question_names_ends_it() -> None:
    async def test() -> None:
        question = Question(**{WAIT_HEADER: "1"})
        await question.put(Holding(Flower(), QUESTION, News()))
        assert question.events[0]["status"] == 200

    in_a_loop(test)


def test_what_another_thread_tells_arrives() -> None:
    async def test() -> None:
        news = News()
        task = waiting().put(Holding(Flower(), QUESTION, news))
        await settle()
        thread = threading.Thread(target=news.tell)
        thread.start()
        await task
        thread.join()

    in_a_loop(test)


def test_a_thread_waits_for_news_and_for_each_once() -> None:
    news = News()
    news.tell()
    # at once, whatever the time
    news.wait(3600)
    waited = threading.Event()

    def wait() -> None:
        news.wait(3600)
        waited.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not waited.is_set()
    news.tell()
    thread.join(30)
    assert waited.is_set()


def test_only_what_was_done_is_told_and_several_at_a_time_once() -> None:
    async def test() -> None:
        told: list[int] = []
        paths = frozenset({QUESTION})

        def tell() -> None:
            told.append(1)

        refusing = Telling(Flower(status=403), paths, tell)
        await Question().put(refusing)
        taking = Telling(Flower(), paths, tell)
        await Question("/other").put(taking)
        for _ in range(5):
            await Question().put(taking)
        assert told == []
        while not told:
            await asyncio.sleep(0.001)
        assert told == [1]
        await Question().put(taking)
        while len(told) < 2:
            await asyncio.sleep(0.001)

    in_a_loop(test)


def test_the_desk_answers_at_once_what_was_not_told_yet_and_else_waits() -> None:
    async def test() -> None:
        news = News()
        desk = NewsDesk(Flower(body=b"flower"), news)
        other = Question("/v1/runtime/get-nodes")
        await other.put(desk)
        assert other.body == b"flower"
        first = Question(NEWS_PATH, **{WAIT_HEADER: FOR_EVER, SEEN_HEADER: ""})
        await first.put(desk)
        assert first.body == b"0"
        second = Question(NEWS_PATH, **{WAIT_HEADER: FOR_EVER, SEEN_HEADER: "0"})
        task = second.put(desk)
        await settle()
        assert not task.done()
        news.tell()
        await task
        assert second.body == b"1"
        # what happened since then is not missed
        third = Question(NEWS_PATH, **{WAIT_HEADER: FOR_EVER, SEEN_HEADER: "0"})
        await third.put(desk)
        assert third.body == b"1"

    in_a_loop(test)
