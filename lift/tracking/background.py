"""A tracker that works in a thread of its own, so that no round waits for a slow service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from lift.tracking.base import Tracker


class Background:
    """Opens and feeds another tracker in a daemon thread.

    `log` only puts the figures into a queue. Whatever the other tracker raises ends the thread
    and is raised by the next call here, once.

    Args:
        opened: makes the tracker; called in the thread.
        name: for the thread.
        close_within_s: how long `close` waits for what is left.
    """

    def __init__(self, opened: Callable[[], Tracker], *, name: str, close_within_s: float) -> None:
        self._opened = opened
        self._close_within_s = close_within_s
        self._queue: SimpleQueue[tuple[int, dict[str, float]] | bool] = SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand the figures on; returns at once."""
        self._raise_failure()
        self._queue.put((step, dict(figures)))

    def close(self, *, complete: bool) -> None:
        """Wait for what is left, for a bounded time.

        Raises:
            TimeoutError: the service was too slow; what it has not got is lost to it.
        """
        self._raise_failure()
        self._queue.put(complete)
        self._thread.join(self._close_within_s)
        self._raise_failure()
        if self._thread.is_alive():
            raise TimeoutError(f"it did not take the figures within {self._close_within_s:g} s")

    def _raise_failure(self) -> None:
        if isinstance(self._failure, Exception):
            raise self._failure
        if self._failure is not None:
            # a foreign sys.exit must not end the run
            raise RuntimeError(f"the tracker ended with {type(self._failure).__name__}")

    def _work(self) -> None:
        try:
            tracker = self._opened()
            while True:
                item = self._queue.get()
                if isinstance(item, bool):
                    tracker.close(complete=item)
                    return
                tracker.log(*item)
        except BaseException as error:  # a foreign library may even call sys.exit
            self._failure = error
