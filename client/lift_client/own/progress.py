"""Progress of the own report: bars on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID


@contextmanager
def shown(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """What is being done, how much of it, of how much.

    Args:
        console: stderr: stdout is for the result.
    """
    if not console.is_terminal:

        def line(what: str, done: int, total: int) -> None:
            if done == total:
                console.print(f"{what}: {done} of {total}", markup=False, highlight=False)

        yield line
        return
    tasks: dict[str, TaskID] = {}
    with Progress(console=console) as progress:

        def step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield step
