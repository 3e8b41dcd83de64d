"""A privacy ledger that is put back during a run is noticed at the site and at the server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.config.site import BudgetSettings, SiteSettings
from lift.generator.networks import FrozenGenerator
from lift.protocol.flower.in_process import run_in_process
from lift.protocol.messages import Failure, Parcel
from lift.protocol.transport import SiteHandler, Transport
from lift.records.rounds import RoundRecord
from lift.tasks.paired.building import start_values
from lift_client.gate.cohort_ledger import begin
from lift_client.gate.ledger import LEDGER_FILE, verify
from lift_client.session import SiteSession
from lift_server.rounds.ledger_heads import HEADS_FILE
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.paired import PairedRun
from tests.lift.small_world import small_generator, small_plan, write_brats_patient

DELTA, CAP = 1e-5, 50.0
ROUNDS = 3
NORTH, SOUTH = "north", "south"


@pytest.fixture(scope="module")
def generator() -> FrozenGenerator:
    return small_generator()


class Hospital:
    """A site that somebody copies after round 1, and puts back after round 2."""

    def __init__(self, name: str, folder: Path, generator: FrozenGenerator) -> None:
        self.name, self.work, self._generator = name, folder / "work", generator
        self._data, self._copy = folder / "data", folder / "copy"
        for index in range(2):
            write_brats_patient(self._data, f"BraTS-GLI-{index:05d}-000", seed=index)
        budget = BudgetSettings(epsilon=CAP, delta=DELTA)
        data = BratsData(root=self._data)
        self._settings = SiteSettings(name=name, data=data, budget=budget, device="cpu")
        begin(self._settings, self.work)
        self.open()

    def open(self) -> None:
        self.session = SiteSession(self._settings, self._generator, self.work)

    def __call__(self, request: Parcel) -> Parcel | Failure:
        return self.session.handle(request)

    def back_up(self) -> None:
        shutil.copytree(self.work, self._copy)

    def put_back(self) -> None:
        self.session.close()
        shutil.rmtree(self.work)
        shutil.copytree(self._copy, self.work)
        self.open()

    def steps(self) -> int:
        return sum(verify(self.work / LEDGER_FILE).steps().values())


class Careless(Hospital):
    """A site that does not look at what the server knows."""

    def __call__(self, request: Parcel) -> Parcel | Failure:
        body = request.body.model_copy(update={"known_head": None})
        return self.session.handle(replace(request, body=body))


def federate(
    folder: Path, generator: FrozenGenerator, north: Hospital, *, accident: bool
) -> list[RoundRecord]:
    plan = _plan(generator)
    south = Hospital(SOUTH, folder / SOUTH, generator)
    store = RunStore(folder / "run", plan.digest())

    def look(record: RoundRecord) -> None:
        if accident and record.round == 1:
            north.back_up()
        if accident and record.round == 2:
            north.put_back()

    def main(transport: Transport) -> None:
        task = PairedRun(plan, lambda taps: start_values(plan, generator, taps))
        sites = [NORTH, SOUTH]
        run_rounds(plan, transport, store, task, roster=lambda: sites, on_round=look)

    handlers: dict[str, SiteHandler] = {NORTH: north, SOUTH: south}
    try:
        run_in_process(main, handlers)
    finally:
        north.session.close()
        south.session.close()
    return store.records


def _plan(generator: FrozenGenerator) -> Plan:
    plan = small_plan(
        "zdiff", generator=generator, rounds=ROUNDS, training={"steps": 1, "warmup_steps": 0}
    )
    privacy = PatientGradients(
        mode="patient-local",
        delta=DELTA,
        public_patients=2,
        clip_norm=0.1,
        noise_multiplier=4.0,
        sampling_rate=1.0,
    )
    return plan.model_copy(
        update={
            "privacy": privacy,
            "split": plan.split.model_copy(update={"train": 1.0, "validation": 0.0}),
            "federation": plan.federation.model_copy(
                update={"quorum_sites": 1, "quorum_patients": 0.5}
            ),
        }
    )


def test_a_ledger_put_back_during_a_run_is_refused_at_the_site(
    tmp_path: Path, generator: FrozenGenerator
) -> None:
    north = Hospital(NORTH, tmp_path / NORTH, generator)
    records = federate(tmp_path, generator, north, accident=True)
    assert [set(record.counted) for record in records[1:3]] == [{NORTH, SOUTH}] * 2
    assert records[3].refused == {NORTH: "privacy"}
    # nothing was computed on account of the older ledger
    assert north.steps() == 1


@pytest.mark.parametrize("server_too", [False, True], ids=["ledger alone", "heads as well"])
def test_an_older_ledger_passes_only_where_the_servers_heads_are_as_old(
    tmp_path: Path, generator: FrozenGenerator, server_too: bool
) -> None:
    heads, copy = tmp_path / "run" / HEADS_FILE, tmp_path / "heads"
    plan = _plan(generator)
    north = Hospital(NORTH, tmp_path / NORTH, generator)
    south = Hospital(SOUTH, tmp_path / SOUTH, generator)
    handlers: dict[str, SiteHandler] = {NORTH: north, SOUTH: south}

    def federate_again(seed: int, look: Callable[[RoundRecord], None]) -> list[RoundRecord]:
        now = plan.model_copy(update={"seed": seed})
        store = RunStore(tmp_path / f"run-{seed}", now.digest())

        def main(transport: Transport) -> None:
            task = PairedRun(now, lambda taps: start_values(now, generator, taps))
            run_rounds(now, transport, store, task, roster=lambda: [NORTH, SOUTH],
                       on_round=look, heads_file=heads)  # fmt: skip

        run_in_process(main, handlers)
        return store.records

    def back_up(record: RoundRecord) -> None:
        if record.round == 1:
            north.back_up()
            shutil.copy(heads, copy)

    try:
        federate_again(plan.seed, back_up)
        assert north.steps() == ROUNDS
        north.put_back()
        if server_too:
            shutil.copy(copy, heads)
        records = federate_again(plan.seed + 1, lambda record: None)
    finally:
        north.session.close()
        south.session.close()
    if not server_too:
        assert records[0].refused == {NORTH: "privacy"}
        assert all(set(record.counted) == {SOUTH} for record in records)
        assert north.steps() == 1
        return
    assert all(not record.refused for record in records)
    # two rounds of the first run are in no ledger any more
    assert north.steps() == 1 + ROUNDS


def test_a_site_that_does_not_look_is_refused_at_the_server(
    tmp_path: Path, generator: FrozenGenerator
) -> None:
    north = Careless(NORTH, tmp_path / NORTH, generator)
    records = federate(tmp_path, generator, north, accident=False)
    # the first answer tells a head, and no later one shows how it follows
    assert set(records[0].counted) == {NORTH, SOUTH}
    for record in records[1:]:
        assert set(record.counted) == {SOUTH}
        assert "does not continue from the head reported before" in record.refused[NORTH]


def test_a_ledger_that_stays_where_it_is_counts_every_round(
    tmp_path: Path, generator: FrozenGenerator
) -> None:
    north = Hospital(NORTH, tmp_path / NORTH, generator)
    records = federate(tmp_path, generator, north, accident=False)
    assert [set(record.counted) for record in records] == [{NORTH, SOUTH}] * (ROUNDS + 1)
    assert north.steps() == ROUNDS
