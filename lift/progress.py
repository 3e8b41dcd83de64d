"""Progress of a command that takes long: bars on a terminal, lines now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import Progress, TaskID

from lift.logs import TELL_EVERY_S


@contextmanager
def shown(
    console: Console, *, clock: Callable[[], float] = monotonic
) -> Iterator[Callable[[str, int, int], None]]:
    """What is being done, how much of it, of how much.

    Args:
        console: stderr: stdout is for the result.
        clock: seconds; away from a terminal there is a line at a stage's end, and one every
            `TELL_EVERY_S` before.
    """
    if not console.is_terminal:
        told = clock()

        def line(what: str, done: int, total: int) -> None:
            nonlocal told
            if done == total or clock() - told >= TELL_EVERY_S:
                told = clock()
                text = f"{what}: {done} of {total}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield line
        return
    tasks: dict[str, TaskID] = {}
    with Progress(console=console) as progress:

        def step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield step
