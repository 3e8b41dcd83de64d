"""Rounds under random answers, delays, duplicates, reconnections, removals and deaths.

The real round loop, store and exchange run above a scripted Grid; the process may die at any
look and at any write, and the same command starts again in the same folder. What the folder
then holds is compared with what truly happened, computed anew with numpy.
tests/scale.py says how many scripts are tried in all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import pytest
import torch
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from lift.config.plan import AggregationPlan, FederationPlan, Plan, TaskPlan
from lift.config.privacy import NoPrivacy
from lift.errors import QuorumError
from lift.protocol.flower.apps import GridTransport
from lift.protocol.flower.in_process import run_in_process
from lift.protocol.messages import Kind, Parcel, TrainRequest
from lift.protocol.transport import SiteHandler, Transport
from lift.records.rounds import RoundRecord
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.paired import PairedRun
from lift_simulation.tasks.participation import Participation
from tests.scale import EXAMPLES, SHARDS
from tests.server.round_laws import Record, RunFolder, assert_equal, known_patients
from tests.server.round_world import Died, ScriptedGrid, Witness
from tests.server.scripted_sites import DEEDS, SITES, START, good_reply

DEADLINE_S = 6.0
GRACE_S = 2.0
POLL_S = 0.5
site_names = st.sampled_from(SITES)


class Event(NamedTuple):
    """One line of a script: what happens to or at a site, how many steps after the last."""

    what: str
    site: str
    after: int
    value: str | float = ""


def _event(
    what: str, values: Sequence[str | float] = ("",), latest: int = 6
) -> st.SearchStrategy[Event]:
    after = st.integers(0, latest)
    return st.builds(Event, st.just(what), site_names, after, st.sampled_from(values))


events = st.one_of(
    # what a site does with its next request of a kind: it waits in a queue of its own
    *(_event("train", DEEDS, latest=1) for _ in range(6)),
    *(_event("statistics", DEEDS, latest=1) for _ in range(2)),
    _event("guard", DEEDS, latest=1),
    *(_event("goes") for _ in range(2)),
    *(_event("is_back") for _ in range(2)),
    *(_event("is_back_request_gone") for _ in range(2)),
    *(_event("takes", [0.0, 0.7, 3.0, 7.0]) for _ in range(2)),
    *(_event("admitted") for _ in range(2)),
    _event("removed"),
    _event("repeats"),
    _event("request_lost", [ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE]),
    _event("pushes_fail", [1, 2]),
    _event("slow", [0.3, 0.9, 4.0]),
    _event("server_dies"),
    _event("server_dies_writing", [0, 1, 2, 3, 4]),
)
# several lists: one alone is short on average
scripts = st.lists(st.lists(events, max_size=12), min_size=1, max_size=4).map(
    lambda x: list(chain(*x))
)


class RoundMachine(RuleBasedStateMachine):
    """`serve` runs the server's command over a script of events, in the same folder each time."""

    def __init__(self) -> None:
        super().__init__()
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.home = tempfile.TemporaryDirectory(prefix="lift-rounds-")
        self.writes_left: int | None = None
        self.runs = 0

    @initialize(
        rounds=st.integers(1, 5),
        quorum_sites=st.sampled_from([1, 2, 1, 1, 2, 3, 0]),
        quorum_patients=st.sampled_from([0.0, 0.25, 0.0, 0.5, 0.8, 1.0]),
        weights=st.sampled_from(["patients", "uniform"]),
        largest_share=st.sampled_from([0.6, 1.0]),
        largest_norm_ratio=st.sampled_from([None, 1.0, 1.25, 2.0]),
        dtype=st.sampled_from(["float32", "float16"]),
        unknown=st.sets(site_names, max_size=2),
        away=st.sets(site_names, max_size=2),
        strays=st.booleans(),
    )
    def begin(
        self,
        rounds: int,
        quorum_sites: int,
        quorum_patients: float,
        weights: Any,
        largest_share: float,
        largest_norm_ratio: float | None,
        dtype: Any,
        unknown: set[str],
        away: set[str],
        strays: bool,
    ) -> None:
        self.plan = Plan(
            task=TaskPlan(source=("t1n",), target="t2f"),
            aggregation=AggregationPlan(
                weights=weights,
                largest_share=largest_share,
                largest_norm_ratio=largest_norm_ratio,
            ),
            federation=FederationPlan(
                rounds=rounds,
                quorum_sites=quorum_sites,
                quorum_patients=quorum_patients,
                deadline_s=DEADLINE_S,
                grace_s=GRACE_S,
                update_dtype=dtype,
            ),
            privacy=NoPrivacy(mode="none"),
        )
        self._new_run()
        self.grid = ScriptedGrid(dtype, strays=strays)
        self.roster = set(SITES) - unknown
        for site in away:
            self.grid.sites[site].here = False

    @rule(script=scripts)
    def serve(self, script: list[Event]) -> None:
        """The server's command, to its end: finished, a missed quorum or a death."""
        self.grid.script += [(event.after, partial(self._play, event)) for event in script]
        before = self.run.cards()
        seen_by_status: list[Record] = []
        transport = GridTransport(
            cast("Grid", self.grid), poll_s=POLL_S, clock=self.grid.clock, wait=self.grid.wait
        )
        witness = Witness(transport, self.grid, self.run.check_request)

        def on_round(record: RoundRecord) -> None:
            witness.round_done()
            seen_by_status.append(record.line())
            assert self.run.cards()[-1]["record"] == record.line(), "seen before its checkpoint"

        finished: FinishedRun | None = None
        ending = "finished"
        try:
            with patch.object(os, "fsync", self._fsync):
                finished = run_rounds(
                    self.plan,
                    witness,
                    RunStore(self.run.path, self.plan.digest()),
                    PairedRun(
                        self.plan,
                        lambda taps: {name: torch.tensor(value) for name, value in START.items()},
                    ),
                    roster=lambda: witness.read_roster(self.roster),
                    on_round=on_round,
                    on_ask=witness.asking,
                )
        except QuorumError:
            ending = "quorum"
        except Died:
            ending = "died"
        self.writes_left = None
        self.run.check_folder(ending)
        known = known_patients(card["record"] for card in before)
        for exchange in witness.exchanges:
            self.run.check_exchange(exchange, self.grid)
        self.run.check_rounds(before, known, witness.exchanges, ending)
        new = [card["record"] for card in self.run.cards()[len(before) :]]
        assert seen_by_status in ([new] if ending != "died" else [new, new[:-1]])
        if finished is not None:
            self.run.check_finished(finished, witness.exchanges[-1])
            self._check_replay()
            self._new_run()

    def teardown(self) -> None:
        """Once everybody is well, the same command goes on from what the folder holds."""
        if hasattr(self, "grid"):
            self.grid.heal()
            self.serve([])
        self.home.cleanup()

    def _new_run(self) -> None:
        self.runs += 1
        self.run = RunFolder(Path(self.home.name) / f"run-{self.runs}", self.plan)

    def _play(self, event: Event) -> None:
        grid, hospital = self.grid, self.grid.sites[event.site]
        match event.what:
            case "goes":
                hospital.here = False
            case "is_back":
                grid.connect(event.site, lost=False)
            case "is_back_request_gone":
                grid.connect(event.site, lost=True)
            case "statistics" | "train" | "guard":
                hospital.deeds[Kind(event.what)].append(str(event.value))
            case "takes":
                hospital.delay_s = float(event.value)
            case "repeats":
                grid.repeat(event.site)
            case "request_lost":
                grid.say_lost(event.site, int(event.value))
            case "admitted":
                self.roster.add(event.site)
            case "removed":
                self.roster.discard(event.site)
            case "pushes_fail":
                grid.failing_pushes = int(event.value)
            case "slow":
                grid.be_slow(float(event.value))
            case "server_dies":
                raise Died
            case "server_dies_writing":
                self.writes_left = int(event.value)

    def _fsync(self, descriptor: int) -> None:
        del descriptor
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise Died

    def _check_replay(self) -> None:
        """A run in which only those answer that counted ends with the same bits."""
        dtype = self.plan.federation.update_dtype
        handlers: dict[str, SiteHandler] = {
            site: partial(good_reply, site, dtype=dtype) for site in SITES
        }
        participation = Participation(
            self.run.path / "rounds.jsonl", SITES, self.plan.federation.rounds
        )
        store = RunStore(self.run.path / "replay", self.plan.digest())
        finished: list[FinishedRun] = []

        def next_round() -> int:
            return len(store.records)

        def main(transport: Transport) -> None:
            replayed = participation.replayed(transport, next_round)
            start = {name: torch.tensor(value) for name, value in START.items()}
            finished.append(
                run_rounds(
                    self.plan,
                    replayed,
                    store,
                    PairedRun(self.plan, lambda taps: start),
                    roster=lambda: participation.asked(next_round()),
                )
            )

        with patch.object(os, "fsync", self._fsync):
            run_in_process(main, handlers)
        mixer = {name: tensor.numpy() for name, tensor in finished[0].mixer.items()}
        assert_equal(mixer, self.run.mixer(self.plan.federation.rounds))
        for card, again in zip(self.run.cards(), finished[0].records, strict=True):
            assert again.counted == card["record"]["counted"]


@pytest.mark.fuzz
@pytest.mark.parametrize("shard", range(SHARDS))
def test_rounds_under_random_events_keep_every_law(shard: int) -> None:
    # a seed by shard: without one, every shard would play the same scripts
    machine = seed(shard)(type(f"Shard{shard}", (RoundMachine,), {}))
    examples = max(1, EXAMPLES // SHARDS)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=5)
    )


@pytest.mark.parametrize("deed", DEEDS)
def test_every_kind_of_answer_counts_or_is_refused_as_it_should_be(deed: str) -> None:
    machine = RoundMachine()
    machine.begin(
        rounds=2,
        quorum_sites=1,
        quorum_patients=0.0,
        weights="patients",
        largest_share=0.6,
        largest_norm_ratio=1.25,
        dtype="float32",
        unknown=set(),
        away=set(),
        strays=False,
    )
    machine.serve(
        [
            Event("statistics", "south", 0, deed),
            Event("train", "north", 0, deed),
            Event("guard", "east", 0, deed),
        ]
    )
    assert machine.runs == 2, "it did not finish"
    machine.teardown()


def test_a_late_loss_report_about_an_old_connection_sends_nothing_again() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    grid = ScriptedGrid("float32", strays=False)
    grid.sites["east"].delay_s = 2 * DEADLINE_S
    grid.script = [
        (4, lambda: grid.connect("east", lost=False)),
        (8, lambda: grid.say_lost("east", ErrorCode.NODE_UNAVAILABLE)),
    ]
    transport = GridTransport(cast("Grid", grid), poll_s=POLL_S, clock=grid.clock, wait=grid.wait)
    witness = Witness(transport, grid, lambda exchange: None)
    request = Parcel(Kind.TRAIN, TrainRequest(plan_digest="a" * 64, round=1))

    witness.exchange({"east": request}, deadline_s=DEADLINE_S)

    assert list(witness.exchanges[0].pushed.values()) == [("east", "0"), ("east", "1")]
