"""Counts the Python steps of a call: a measure of work that no busy machine changes.

A step is a line that runs, a function that starts, ends or raises, or a further turn of a loop, in
our code and in every Python package beneath it. What one call into C does is one step, however
long it takes: a test that bounds steps bounds memory or the size of the input as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import repeat
from operator import length_hint
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class TooManySteps(BaseException):
    """Above `except Exception`: code under test must not take it for bad input."""


def counted(run: Callable[[], T], *, most: int) -> tuple[T | Exception, int]:
    """What `run` returns or raises, and its steps.

    Args:
        run: the work.
        most: it is stopped here, so that endless work ends as well.

    Raises:
        AssertionError: `run` takes more than `most` steps.
    """
    # an iterator that is used up makes no objects: a test that counts memory must not see them
    ticks = repeat(True, most)

    def step(frame: FrameType, event: str, arg: Any) -> Any:
        del frame, event, arg
        if not next(ticks, False):
            raise TooManySteps
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        outcome: T | Exception = run()
    except Exception as error:
        outcome = error
    except TooManySteps as error:
        raise AssertionError(f"more than {most} steps") from error
    finally:
        sys.settrace(before)
    return outcome, most - length_hint(ticks)
