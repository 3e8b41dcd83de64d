"""When a site asks the server for a message: at once when one may come, rarely when not."""

from __future__ import annotations

import itertools

import pytest

from lift.protocol.flower.supernode import LONGEST_POLL_S, POLL_S, Polls


class Clock:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def polls_until(polls: Polls, clock: Clock, seconds: float) -> list[float]:
    """Moments at which a loop that looks every `POLL_S` asks, and hears nothing."""
    began, asked = clock.now, []
    while clock.now < began + seconds:
        if polls.due():
            asked.append(clock.now - began)
            polls.done(heard=False)
        clock.now += POLL_S
    return asked


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_new_connection_asks_at_once(clock: Clock) -> None:
    assert Polls(clock).due()


def test_the_wait_stays_a_small_share_of_the_silence(clock: Clock) -> None:
    polls = Polls(clock)
    asked = polls_until(polls, clock, 600)
    for earlier, later in itertools.pairwise(asked):
        assert later - earlier <= max(0.05 * earlier, POLL_S) + POLL_S + 1e-6
        assert later - earlier <= LONGEST_POLL_S + POLL_S + 1e-6


def test_ten_minutes_of_silence_cost_few_requests(clock: Clock) -> None:
    assert len(polls_until(Polls(clock), clock, 600)) < 400


def test_whatever_was_heard_or_said_makes_it_quick_again(clock: Clock) -> None:
    polls = Polls(clock)
    polls_until(polls, clock, 600)
    polls.done(heard=True)
    asked = polls_until(polls, clock, 1)
    assert len(asked) >= 9
