"""Progress of a long run: a live display on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from time import monotonic
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from lift.protocol.messages import Failure, Kind, Parcel
from lift.protocol.transport import SiteHandler
from lift.records.rounds import RoundRecord, clips_told, mean_of
from lift_server.watch.board import board
from lift_server.watch.rounds_file import Rounds, SiteTally

SITE_LOGS: Final = "log.txt in the output folder"
"""Where simulated sites, which share one process, keep the text of their refusals."""
_AT_WORK = {Kind.STATISTICS: "preparing", Kind.TRAIN: "training", Kind.GUARD: "judging"}


class _Federation:
    """One federation on the screen: what each site is at, and the rounds so far."""

    def __init__(
        self, sites: Sequence[str], rounds: int, records: Callable[[], Sequence[RoundRecord]]
    ) -> None:
        self.doing = dict.fromkeys(sites, "waiting")
        self._rounds = rounds
        self._records = records
        self._read = Rounds()

    def render(self) -> RenderableType:
        records = self._records()
        if len(records) != len(self._read.lines):
            self._read = Rounds(tuple(records))
        rounds = self._read
        done = len(rounds.trained)
        shown = {
            "rounds_done": done,
            "epsilon": rounds.lines[-1].epsilon if rounds.lines else None,
            "sites": {
                name: {
                    "online": None,
                    "last_contact": None,
                    "doing": doing,
                    **asdict(rounds.tallies.get(name, SiteTally())),
                }
                for name, doing in self.doing.items()
            },
        }
        headline = Text(f"round {min(done + 1, self._rounds)} of {self._rounds}", style="bold")
        return Group(headline, board(shown, rounds.lines, datetime.now(UTC)))


def table_console(piped_width: int) -> Console:
    """Where a result's table is printed: standard output, as wide as the terminal.

    Args:
        piped_width: in characters, where there is no terminal.
    """
    width = None if sys.stdout.isatty() else piped_width
    return Console(file=sys.stdout, width=width, highlight=False)


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
        self._federation: _Federation | None = None
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
        progress = Progress(*columns, console=self.console) if live else None
        self._progress = progress
        self._tasks = {}

        def render() -> RenderableType:
            shown = () if self._federation is None else (self._federation.render(),)
            return Group(*shown, *(() if progress is None else (progress,)))

        display = (
            Live(console=self.console, get_renderable=render, refresh_per_second=4, transient=True)
            if live
            else nullcontext()
        )
        try:
            with display:
                yield
        finally:
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

    @contextmanager
    def federation(
        self,
        handlers: Mapping[str, SiteHandler],
        rounds: int,
        records: Callable[[], Sequence[RoundRecord]],
    ) -> Iterator[dict[str, SiteHandler]]:
        """On a terminal a table of sites and rounds inside the block.

        Args:
            handlers: what each site does with a request.
            rounds: training rounds of the plan.
            records: gives the rounds on record, those of an earlier start too.

        Yields:
            The handlers to use: each says what its site is at.
        """
        if self._progress is None:
            yield dict(handlers)
            return
        self._federation = federation = _Federation(list(handlers), rounds, records)

        def watched(name: str, handler: SiteHandler) -> SiteHandler:
            def handle(parcel: Parcel) -> Parcel | Failure:
                federation.doing[name] = _AT_WORK[parcel.kind]
                try:
                    return handler(parcel)
                finally:
                    federation.doing[name] = "answered, waiting"

            return handle

        try:
            yield {name: watched(name, handler) for name, handler in handlers.items()}
        finally:
            # what stood on the screen last stays there
            self.console.print(federation.render())
            self._federation = None

    def round_done(self, record: RoundRecord) -> None:
        """One line by round when piped: who counted, mean loss, validation PSNR, bytes, seconds.

        On a terminal the federation's table shows it.
        """
        if self._federation is not None:
            return
        loss, psnr_db = mean_of(record.loss), mean_of(record.validation_psnr_db)
        parts = [f"round {record.round}", record.kind, f"{len(record.counted)} sites"]
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        if psnr_db is not None:
            parts.append(f"validation {psnr_db:.2f} dB before it")
        if record.epsilon is not None:
            parts.append(f"epsilon {record.epsilon:.3f}")
        if record.bytes:
            parts.append(f"{max(record.bytes.values())} bytes a site")
        if record.seconds is not None:
            parts.append(f"{record.seconds} s")
        if record.clipped:
            parts.append(f"clipped: {clips_told(record)}")
        self.line("  " + " · ".join(parts))
        if record.fall is not None:
            self.line(f"  round {record.round}: {record.fall.sentence}")

    def line(self, text: str) -> None:
        """One plain line."""
        if self._quiet:
            return
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
