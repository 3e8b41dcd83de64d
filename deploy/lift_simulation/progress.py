"""Progress of a long run: a live display on a terminal, plain lines when piped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Reporter:
    """Says what is being done; keeps the seconds of each stage.

    Args:
        console: where to write (stderr: stdout is for the result).
        budget_s: seconds that each stage may take, shown beside what it took.
        quiet: keep the seconds, say nothing.
    """

    def __init__(
        self, console: Console, budget_s: Mapping[str, float], *, quiet: bool = False
    ) -> None:
        self.console = console
        self._quiet = quiet
        self._budget_s = budget_s
        self._progress: Progress | None = None
        self._tasks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; its line appears when it ends, with its budget where it has one."""
        began = monotonic()
        live = self.console.is_terminal and not self._quiet
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=self.console, transient=True) if live else None
        self._tasks = {}
        try:
            if self._progress is not None:
                self._progress.start()
            yield
        finally:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None
            self.seconds[name] = self.seconds.get(name, 0.0) + monotonic() - began
        budget = self._budget_s.get(name)
        limit = f" (budget {budget:.0f} s)" if budget is not None else ""
        self.line(f"{name}: {self.seconds[name]:.1f} s{limit}")

    def step(self, what: str, done: int, total: int) -> None:
        """One step of something long: moves its bar on a terminal, silent when piped."""
        if self._progress is None:
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        task = self._tasks[what]
        self._progress.update(task, completed=done, total=total, visible=done < total)  # type: ignore[arg-type]  # rich's NewType over int

    def round_done(self, record: Mapping[str, object]) -> None:
        """One line by round: who counted, mean loss, validation PSNR, bytes, seconds."""
        counted, bytes_by_site = record["counted"], record["bytes"]
        loss, psnr = record.get("loss"), record.get("validation_psnr_db")
        if not isinstance(counted, dict) or not isinstance(bytes_by_site, dict):
            return
        parts = [f"round {record['round']}", str(record["kind"]), f"{len(counted)} sites"]
        if isinstance(loss, dict):
            told = [value for value in loss.values() if value is not None]
            if told:
                parts.append(f"loss {sum(told) / len(told):.4f}")
        if isinstance(psnr, dict):
            known = [value for value in psnr.values() if value is not None]
            if known:
                parts.append(f"validation {sum(known) / len(known):.2f} dB before it")
        if record.get("epsilon") is not None:
            parts.append(f"epsilon {record['epsilon']:.3f}")
        parts.append(f"{max(bytes_by_site.values(), default=0)} bytes a site")
        parts.append(f"{record['seconds']} s")
        self.line("  " + " · ".join(parts))

    def line(self, text: str) -> None:
        """One plain line."""
        if self._quiet:
            return
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
