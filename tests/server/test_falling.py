"""A mixer that has become worse: the run goes back, names a site, and goes on, stops or records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lift.config.plan import AggregationPlan, FederationPlan, Plan, TaskPlan
from lift.config.privacy import NoPrivacy, SiteLevel
from lift.errors import FallError, QuorumError
from lift.protocol.messages import Answer, Kind, Parcel, TrainReply, TrainRequest
from lift.protocol.transport import Grace
from lift.records.rounds import Fall, RoundRecord
from lift_server.rounds.falling import fall_of, left_out
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.paired import PairedRun
from tests.federation.parcels import PATIENTS, honest_answer

GOAL = np.float32(4)
SITES = sorted(PATIENTS)
SITE = SiteLevel(mode="site", delta=1e-4, clip_norm=1.0, noise_multiplier=1.0, forced=True)
Trick = Callable[[np.ndarray, int], np.ndarray]


def plan(rounds: int = 6, quorum_sites: int = 2, **aggregation: Any) -> Plan:
    return Plan(
        task=TaskPlan(source=("t1n",), target="t2f"),
        federation=FederationPlan(
            rounds=rounds, deadline_s=20.0, quorum_sites=quorum_sites, quorum_patients=0.0
        ),
        aggregation=AggregationPlan(**aggregation),
        privacy=NoPrivacy(mode="none"),
    )


def psnr_db(w: np.ndarray) -> float:
    """Quality of a mixer: how near it is to the goal."""
    return float(-20 * np.log10(np.abs(w - GOAL).mean() + 1e-3))


class Hospitals:
    """A transport whose sites go half-way to the goal each round; `north` does a trick."""

    def __init__(
        self,
        trick: Trick,
        sites: Mapping[str, int] = PATIENTS,
        lies_db: float = 0.0,
        dies_in: int | None = None,
    ) -> None:
        self._trick = trick
        self._sites = sorted(sites)
        self._lies_db = lies_db
        self._dies_in = dies_in
        self.asked: list[list[str]] = []

    def sites(self) -> list[str]:
        return self._sites

    def exchange(
        self, requests: Mapping[str, Parcel], *, deadline_s: float, grace: Grace | None = None
    ) -> dict[str, Answer]:
        del deadline_s, grace
        self.asked.append(sorted(requests))
        for request in requests.values():
            if isinstance(request.body, TrainRequest) and request.body.round == self._dies_in:
                raise KilledError
        return {site: Answer(self._answer(site, requests[site]), 100) for site in requests}

    def _answer(self, site: str, request: Parcel) -> Parcel:
        body = request.body
        if not isinstance(body, TrainRequest):
            return honest_answer(site, request)
        w = np.asarray(request.tensors["w"])
        step = (GOAL - w) / 2 * np.float32(1 + 0.1 * SITES.index(site))
        told = psnr_db(w)
        if site == "north":
            step = self._trick(step, body.round).astype(np.float32)
            told += self._lies_db * body.round
        reply = TrainReply(
            plan_digest=body.plan_digest, round=body.round, loss=1.0, validation_psnr_db=told
        )
        return Parcel(Kind.TRAIN, reply, {"w": step})


class KilledError(Exception):
    """The server's process ended."""


def federate(chosen: Plan, folder: Path, hospitals: Hospitals, on_round: Any = None) -> FinishedRun:
    return run_rounds(
        chosen,
        hospitals,
        RunStore(folder, chosen.digest()),
        PairedRun(chosen, lambda taps: {"w": torch.zeros(3)}),
        roster=hospitals.sites,
        on_round=on_round,
    )


def turned(step: np.ndarray, round_index: int) -> np.ndarray:
    """From round 3 on the opposite, as long as the clip lets it be."""
    return step if round_index < 3 else -9 * step


def honest(step: np.ndarray, round_index: int) -> np.ndarray:
    del round_index
    return step


def falls(records: list[RoundRecord]) -> dict[int, Fall]:
    return {record.round: record.fall for record in records if record.fall is not None}


LOUD: dict[str, Any] = {"largest_norm_ratio": 5.0}


def test_after_a_fall_the_run_goes_on_from_the_best_mixer_without_the_site(tmp_path: Path) -> None:
    hospitals = Hospitals(turned)
    finished = federate(plan(**LOUD), tmp_path, hospitals)
    (index, fall), *more = falls(list(finished.records)).items()
    assert not more
    # the update of round 3 shows when round 4 validates what it made
    assert (index, fall.best_round, fall.left_out) == (4, 3, "north")
    assert fall.by_db > 1
    record = finished.records[4]
    assert record.counted == {}
    assert set(record.answered) == set(SITES)
    assert "north" not in hospitals.asked[5]
    assert set(finished.records[5].counted) == {"east", "west"}
    assert psnr_db(finished.mixer["w"].numpy()) > psnr_db(np.zeros(3)) + 12


def test_the_mixer_after_a_fall_has_the_bits_of_the_best_one(tmp_path: Path) -> None:
    federate(plan(ema=0.5, optimiser="momentum", **LOUD), tmp_path, Hospitals(turned))
    folder = tmp_path / "checkpoints"
    assert "average/w" in torch_file(folder / "round-0002.safetensors")
    assert (folder / "round-0004.safetensors").read_bytes() == (
        folder / "round-0002.safetensors"
    ).read_bytes()


def torch_file(path: Path) -> str:
    return path.read_bytes()[:4000].decode("latin-1")


@pytest.mark.parametrize("in_the_round", [False, True])
@pytest.mark.parametrize("killed_at", range(1, 7))
def test_a_server_that_dies_around_a_fall_ends_with_the_same_bits(
    tmp_path: Path, killed_at: int, in_the_round: bool
) -> None:
    whole = federate(plan(**LOUD), tmp_path / "whole", Hospitals(turned))

    def die(record: RoundRecord) -> None:
        if record.round == killed_at and not in_the_round:
            raise KilledError

    dying = Hospitals(turned, dies_in=killed_at if in_the_round else None)
    with pytest.raises(KilledError):
        federate(plan(**LOUD), tmp_path / "cut", dying, die)
    hospitals = Hospitals(turned)
    again = federate(plan(**LOUD), tmp_path / "cut", hospitals)
    assert torch.equal(again.mixer["w"], whole.mixer["w"])
    lines = [
        [json.loads(line) | {"seconds": 0, "resumed": False} for line in text.splitlines()]
        for text in ((tmp_path / name / "rounds.jsonl").read_text() for name in ("whole", "cut"))
    ]
    assert lines[0] == lines[1]
    if killed_at > 4:
        assert all("north" not in asked for asked in hospitals.asked)


def test_a_checkpoint_that_is_lost_during_the_fall_is_an_error_with_a_remedy(
    tmp_path: Path,
) -> None:
    def lose(record: RoundRecord) -> None:
        if record.round == 3:
            shutil.move(tmp_path / "checkpoints" / "round-0002.safetensors", tmp_path / "gone")

    with pytest.raises(Exception, match="cannot go back") as caught:
        federate(plan(**LOUD), tmp_path, Hospitals(turned), lose)
    assert "round 2" in str(caught.value)


def test_stop_goes_back_names_the_site_and_waits_for_a_decision(tmp_path: Path) -> None:
    chosen = plan(on_fall="stop", **LOUD)
    with pytest.raises(FallError) as caught:
        federate(chosen, tmp_path, Hospitals(turned))
    assert caught.value.exit_code == 7
    assert "north" in caught.value.seen
    assert "remove-site" in caught.value.remedy
    folder = tmp_path / "checkpoints"
    assert (folder / "round-0004.safetensors").read_bytes() == (
        folder / "round-0002.safetensors"
    ).read_bytes()
    # the coordinator removed the site
    others = {site: n for site, n in PATIENTS.items() if site != "north"}
    finished = federate(chosen, tmp_path, Hospitals(turned, others))
    assert set(finished.records[5].counted) == {"east", "west"}
    assert list(falls(list(finished.records))) == [4]


def test_go_on_records_the_fall_and_changes_no_bit(tmp_path: Path) -> None:
    on = federate(plan(on_fall="go-on", **LOUD), tmp_path / "on", Hospitals(turned))
    off = federate(plan(fall_tolerance_db=None, **LOUD), tmp_path / "off", Hospitals(turned))
    assert torch.equal(on.mixer["w"], off.mixer["w"])
    found = falls(list(on.records))
    assert list(found) == [4, 5, 6]
    assert {fall.farthest for fall in found.values()} == {"north"}
    assert {fall.left_out for fall in found.values()} == {None}
    assert falls(list(off.records)) == {}


def test_an_honest_run_has_the_bits_that_it_has_without_the_watch(tmp_path: Path) -> None:
    on = federate(plan(), tmp_path / "on", Hospitals(honest))
    off = federate(
        plan(fall_tolerance_db=None, largest_norm_ratio=None), tmp_path / "off", Hospitals(honest)
    )
    assert torch.equal(on.mixer["w"], off.mixer["w"])
    assert falls(list(on.records)) == {}


@pytest.mark.parametrize("lies_db", [-1000.0, 1000.0])
def test_a_site_that_lies_about_its_validation_neither_makes_nor_hides_a_fall(
    tmp_path: Path, lies_db: float
) -> None:
    calm = federate(plan(), tmp_path / "calm", Hospitals(honest, lies_db=lies_db))
    assert falls(list(calm.records)) == {}
    loud = federate(plan(**LOUD), tmp_path / "loud", Hospitals(turned, lies_db=lies_db))
    assert [fall.left_out for fall in falls(list(loud.records)).values()] == ["north"]


def test_with_two_sites_nobody_is_named_and_the_run_goes_back(tmp_path: Path) -> None:
    two = {site: PATIENTS[site] for site in ("east", "north")}
    hospitals = Hospitals(turned, two)
    finished = federate(plan(**LOUD), tmp_path, hospitals)
    found = falls(list(finished.records))
    assert found
    assert {fall.farthest for fall in found.values()} == {None}
    assert set(finished.records[5].answered) == set(two)


def test_a_quorum_of_sites_that_cannot_be_met_any_more_names_the_one_left_out(
    tmp_path: Path,
) -> None:
    with pytest.raises(QuorumError, match="left out: north"):
        federate(plan(quorum_sites=3, **LOUD), tmp_path, Hospitals(turned))
    # `all` means those that take part
    federate(plan(quorum_sites=0, **LOUD), tmp_path / "all", Hospitals(turned))


def record(index: int, fall: Fall | None = None, **psnr: float | None) -> RoundRecord:
    distances = {"a": 1.0, "b": 1.1, "c": 2.0}
    return RoundRecord(
        round=index, validation_psnr_db=psnr, fall=fall, distances={} if fall else distances
    )


def test_the_change_is_the_median_over_sites_that_told_both() -> None:
    chosen = plan()
    before = [RoundRecord(round=0, kind="statistics"), record(1, a=20.0, b=30.0, c=25.0)]
    assert fall_of(before, {"a": 10.0, "b": 30.0, "c": 25.0}, chosen) is None
    assert fall_of(before, {"a": 10.0, "b": 29.1, "c": 24.1}, chosen) is None
    found = fall_of(before, {"a": 10.0, "b": 28.9, "c": 25.0 - 1.2}, chosen)
    assert found is not None
    assert found.by_db == pytest.approx(1.2)
    private = chosen.model_copy(update={"privacy": SITE})
    assert fall_of(before, {"a": 10.0, "b": 28.9, "c": 23.8}, private) is None
    # one value beside none says nothing, nor do sites that told it only once
    assert fall_of(before, {"a": 1.0, "b": None}, chosen) is None
    assert fall_of(before, {"a": 1.0, "d": 2.0}, chosen) is None
    assert fall_of(before[:1], {"a": 1.0, "b": 1.0}, chosen) is None
    # of two the milder one: none can show a fall alone
    assert fall_of(before, {"a": 1.0, "b": 29.5}, chosen) is None


def test_slow_falls_add_up_against_the_best_round() -> None:
    chosen = plan()
    rounds = [record(i, a=20 - 0.4 * i, b=20 - 0.4 * i, c=20 - 0.4 * i) for i in (1, 2, 3)]
    assert fall_of(rounds, {"a": 18.7, "b": 18.7, "c": 18.7}, chosen) is None
    found = fall_of(rounds, {"a": 18.4, "b": 18.4, "c": 18.4}, chosen)
    assert found is not None
    assert (found.best_round, found.left_out) == (1, "c")


def test_only_rounds_that_made_the_present_mixer_are_held_against_a_site() -> None:
    back = Fall(by_db=2.0, best_round=1, action="go-back", farthest="c", left_out="c")
    best: dict[str, Any] = {"a": 20.0, "b": 20.0, "d": 20.0}
    again = RoundRecord(round=3, validation_psnr_db=best, distances={"a": 1.0, "b": 3.0, "d": 1.0})
    rounds = [record(1, **best), record(2, back, a=1.0, b=1.0, d=1.0), again]
    found = fall_of(rounds, {"a": 18.0, "b": 18.0, "d": 18.0}, plan())
    assert found is not None
    assert found.left_out == "b"
    assert left_out(rounds) == {"c": 2}
