"""A federation in one process: the server's round loop, and the sites' own sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from lift.config.plan import Plan
from lift.generator.base import Generator
from lift.protocol.flower.in_process import run_in_process
from lift.protocol.transport import SiteHandler, Transport
from lift.records.rounds import RoundRecord
from lift_client.session import SiteSession
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.registry import run_task
from lift_simulation.progress import SITE_LOGS

Handlers = Mapping[str, SiteHandler]
Records = Callable[[], Sequence[RoundRecord]]
Watch = Callable[[Handlers, Records], AbstractContextManager[Handlers]]
Replay = Callable[[Transport, Callable[[], int]], Transport]


def federate(
    plan: Plan,
    generator: Generator,
    sessions: Mapping[str, SiteSession],
    folder: Path,
    *,
    on_round: Callable[[RoundRecord], None],
    with_guard: bool,
    watch: Watch | None = None,
    replay: Replay | None = None,
    asked: Callable[[int], Sequence[str]] | None = None,
    declared: Mapping[str, int] | None = None,
) -> FinishedRun:
    """Run the plan's rounds with these sites to their end, or from the last checkpoint to it.

    Args:
        plan: of the run.
        generator: of the plan.
        sessions: by site; all are admitted.
        folder: of the run.
        on_round: called with each round's record.
        with_guard: ask the sites for their verdict; a comparison is never released.
        watch: stands around the exchange and may wrap the sites' handlers.
        replay: makes of the transport one that repeats a recorded participation.
        asked: sites that are asked in a round; all without it.
        declared: patients of each site, above which a claim is refused.

    Raises:
        QuorumError: too few sites answered.
    """
    results: list[FinishedRun] = []
    store = RunStore(folder, plan.digest())

    def next_round() -> int:
        return len(store.records)

    def roster() -> list[str]:
        return list(sessions if asked is None else asked(next_round()))

    def main(transport: Transport) -> None:
        results.append(
            run_rounds(
                plan,
                transport if replay is None else replay(transport, next_round),
                store,
                run_task(plan, generator),
                roster=roster,
                on_round=on_round,
                with_guard=with_guard,
                declared=lambda: declared or {},
                site_logs=SITE_LOGS,
            )
        )

    handlers = {name: session.handle for name, session in sessions.items()}
    with (
        nullcontext(handlers)
        if watch is None
        else watch(handlers, lambda: store.records) as watched
    ):
        run_in_process(main, watched)
    return results[0]
