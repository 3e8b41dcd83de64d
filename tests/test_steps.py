"""Slow code of every kind takes many steps, and work that never ends is stopped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.steps import counted

ITEMS = list(range(400))


def _claimed_count() -> None:
    for _ in range(10**7):
        pass


def _one_line() -> int:
    return len([0 for _ in range(10**7)])


def _in_a_generator() -> int:
    return sum(1 for _ in range(10**7))


def _called_from_c() -> int:
    def same(item: int) -> int:
        return item

    return sum(map(same, range(10**7)))


def _quadratic() -> int:
    return sum(1 for one in ITEMS for other in ITEMS if one == other)


def _endless() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    "slow", [_claimed_count, _one_line, _in_a_generator, _called_from_c, _quadratic, _endless]
)
def test_slow_code_takes_too_many_steps(slow: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match="more than 100000 steps"):
        counted(slow, most=100_000)


def test_code_that_takes_every_exception_for_bad_input_is_stopped() -> None:
    def reader() -> None:
        for _ in range(10**7):
            try:
                int("1")
            except Exception:  # noqa: S112  # as a careless reader does
                continue

    with pytest.raises(AssertionError, match="more than 1000 steps"):
        counted(reader, most=1000)


def test_the_same_work_takes_the_same_steps() -> None:
    (one, first), (other, second) = (counted(_quadratic, most=10**8) for _ in range(2))
    assert one == other == len(ITEMS)
    # a few steps are the garbage collector's
    assert abs(second - first) < 50 < len(ITEMS) ** 2 < first


def test_what_the_work_raises_is_its_outcome() -> None:
    outcome, steps = counted(lambda: int("x"), most=100)
    assert isinstance(outcome, ValueError)
    assert 0 < steps < 10
