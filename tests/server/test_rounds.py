"""The round loop against scripted sites: quorum, refusals, resume, order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lift.config.plan import FederationPlan, Plan, TaskPlan
from lift.config.privacy import NoPrivacy
from lift.errors import CheckpointError, QuorumError
from lift.protocol.flower.in_process import run_in_process
from lift.protocol.messages import (
    Answer,
    Failure,
    FailureKind,
    GuardReply,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
)
from lift.protocol.transport import Grace, SiteHandler, Transport
from lift.records.rounds import RoundRecord
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.paired import PairedRun
from tests import wording

PATIENTS = {"north": 12, "harbour": 6, "valley": 2}


def plan(rounds: int = 3, **federation: float) -> Plan:
    return Plan(
        task=TaskPlan(source=("t1n",), target="t2f"),
        federation=FederationPlan(rounds=rounds, **federation),  # type: ignore[arg-type]
        privacy=NoPrivacy(mode="none"),
    )


class ScriptedSite:
    """Moves the mixer half-way towards its own point; fails in the rounds that it is told."""

    def __init__(self, name: str, fails: Mapping[int, FailureKind] | None = None) -> None:
        self.name = name
        self.point = float(len(name))
        self.fails = dict(fails or {})
        self.trained: list[int] = []

    def __call__(self, request: Parcel) -> Parcel | Failure:
        body = request.body
        if isinstance(body, StatisticsRequest):
            if 0 in self.fails:
                return Failure(self.fails[0])
            self.digest = body.plan.digest()
            reply = StatisticsReply(
                plan_digest=self.digest,
                train_patients=PATIENTS[self.name],
                validation_patients=2,
                test_patients=2,
                refused_volumes=0,
                lowest_slice_spacing_mm=3.0,
                highest_slice_spacing_mm=3.0,
            )
            a, b = np.eye(6, dtype=np.int64), np.zeros(6, np.int64)
            return Parcel(Kind.STATISTICS, reply, {"z_filter_a": a, "z_filter_b": b})
        if isinstance(body, TrainRequest):
            if body.round in self.fails:
                return Failure(self.fails[body.round])
            self.trained.append(body.round)
            step = (self.point - request.tensors["w"]) / 2
            train = TrainReply(
                plan_digest=body.plan_digest,
                round=body.round,
                loss=float(np.abs(step).mean()),
                validation_psnr_db=None,
            )
            return Parcel(Kind.TRAIN, train, {"w": step.astype(np.float32)})
        guard = GuardReply(
            plan_digest=self.digest,
            verdict="undecided",
            against_no_mixer=None,
            against_z_filter=None,
            lowest_hf_share=None,
            highest_hf_share=None,
        )
        return Parcel(Kind.GUARD, guard)


class Deadlines:
    """A transport that notes how long each exchange may last."""

    def __init__(self, inner: Transport, seen: list[tuple[Kind, float]]) -> None:
        self._inner = inner
        self._seen = seen

    def sites(self) -> list[str]:
        return self._inner.sites()

    def exchange(
        self, requests: Mapping[str, Parcel], *, deadline_s: float, grace: Grace | None = None
    ) -> dict[str, Answer]:
        self._seen += [(parcel.kind, deadline_s) for parcel in list(requests.values())[:1]]
        return self._inner.exchange(requests, deadline_s=deadline_s, grace=grace)


def federate(
    chosen: Plan,
    folder: Path,
    sites: Mapping[str, SiteHandler],
    on_round: Callable[[RoundRecord], None] | None = None,
    *,
    roster: Sequence[str] = tuple(PATIENTS),
    seen: list[tuple[Kind, float]] | None = None,
) -> FinishedRun:
    results: list[FinishedRun] = []

    def main(transport: Transport) -> None:
        results.append(
            run_rounds(
                chosen,
                Deadlines(transport, [] if seen is None else seen),
                RunStore(folder, chosen.digest()),
                PairedRun(chosen, lambda taps: {"w": torch.zeros(3)}),
                roster=lambda: list(roster),
                on_round=on_round,
            )
        )

    run_in_process(main, sites)
    return results[0]


def scripted(**fails: Mapping[int, FailureKind]) -> dict[str, ScriptedSite]:
    return {name: ScriptedSite(name, fails.get(name)) for name in PATIENTS}


def test_each_round_is_the_weighted_mean_of_the_updates(tmp_path: Path) -> None:
    finished = federate(plan(rounds=1), tmp_path, scripted())
    expected = 0.6 * 5 / 2 + 0.3 * 7 / 2 + 0.1 * 6 / 2
    assert finished.mixer["w"].numpy() == pytest.approx(np.full(3, expected))
    record = json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[1])
    assert record["counted"] == pytest.approx({"harbour": 0.3, "north": 0.6, "valley": 0.1})
    assert set(finished.guard) == set(PATIENTS)


def test_a_missed_quorum_stops_with_the_reason_and_resumes_to_the_same_bits(
    tmp_path: Path,
) -> None:
    whole = federate(plan(), tmp_path / "whole", scripted())
    with pytest.raises(QuorumError) as caught:
        federate(plan(), tmp_path / "cut", scripted(valley={2: FailureKind.DATA}))
    assert "the quorum of round 2 was missed" in caught.value.what
    assert "valley (data): the site's volumes cannot be used" in caught.value.seen
    assert "log.txt in each of these sites' own work folder" in caught.value.remedy
    assert caught.value.exit_code == 8
    resumed = federate(plan(), tmp_path / "cut", scripted())
    assert torch.equal(whole.mixer["w"], resumed.mixer["w"])
    records = [json.loads(x) for x in (tmp_path / "cut" / "rounds.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [0, 1, 2, 3]


def test_a_round_that_fails_everywhere_names_every_reason_and_where_its_text_is(
    tmp_path: Path,
) -> None:
    kinds = (FailureKind.INTERNAL, FailureKind.CONFIG, FailureKind.NOT_FINITE)
    fails = {name: {1: kind} for name, kind in zip(sorted(PATIENTS), kinds, strict=True)}
    with pytest.raises(QuorumError) as caught:
        federate(plan(), tmp_path, scripted(**fails))
    assert caught.value.what == "round 1 failed at every site"
    assert "harbour (internal): a fault at the site" in caught.value.seen
    assert "north (config): the site's settings do not allow it" in caught.value.seen
    assert "valley (not_finite): training at the site gave no finite" in caught.value.seen
    assert "the text is in log.txt" in caught.value.remedy


def test_an_absent_site_does_not_stop_a_run_with_a_quorum_of_two(tmp_path: Path) -> None:
    chosen = plan(quorum_sites=2, quorum_patients=0.5)
    finished = federate(chosen, tmp_path, scripted(valley={2: FailureKind.NO_ANSWER}))
    second = finished.records[2]
    assert second.refused == {"valley": "no_answer"}
    assert set(second.counted) == {"north", "harbour"}
    assert set(finished.records[3].counted) == set(PATIENTS)


def test_the_share_of_the_patients_counts_beside_the_number_of_sites(tmp_path: Path) -> None:
    chosen = plan(quorum_sites=2, quorum_patients=0.8)
    with pytest.raises(QuorumError) as caught:
        federate(chosen, tmp_path, scripted(north={1: FailureKind.INTERNAL}))
    assert "40% of the patients" in caught.value.seen


def test_a_site_that_raises_counts_as_a_failure_and_its_text_stays_there(tmp_path: Path) -> None:
    sites: dict[str, SiteHandler] = dict(scripted())

    def broken(request: Parcel) -> Parcel | Failure:
        raise RuntimeError("/data/secret/patient-17")

    sites["valley"] = broken
    finished = federate(plan(quorum_sites=2, quorum_patients=0.5), tmp_path, sites)
    assert finished.records[1].refused == {}
    assert finished.records[0].refused == {"valley": "internal"}
    assert "patient-17" not in (tmp_path / "rounds.jsonl").read_text()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_killed_after_any_round_ends_with_the_same_bits(tmp_path: Path, after: int) -> None:
    class Killed(BaseException):
        pass

    def kill(record: RoundRecord) -> None:
        if record.round == after:
            raise Killed

    whole = federate(plan(), tmp_path / "whole", scripted())
    with pytest.raises(Killed):
        federate(plan(), tmp_path / "cut", scripted(), kill)
    sites = scripted()
    resumed = federate(plan(), tmp_path / "cut", sites)
    assert torch.equal(whole.mixer["w"], resumed.mixer["w"])
    assert sites["north"].trained == list(range(after + 1, 4))


@pytest.mark.parametrize("damage", ["cut", "gone", "half_json"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: str
) -> None:
    whole = federate(plan(), tmp_path, scripted())
    path = tmp_path / "checkpoints" / "round-0003.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:40])
    elif damage == "gone":
        path.unlink()
    else:
        card = path.with_suffix(".json")
        card.write_text(card.read_text()[:30])
    sites = scripted()
    resumed = federate(plan(), tmp_path, sites)
    assert sites["north"].trained == [3]
    assert torch.equal(whole.mixer["w"], resumed.mixer["w"])


def test_another_plan_never_uses_the_checkpoints_of_this_one(tmp_path: Path) -> None:
    federate(plan(), tmp_path, scripted())
    with pytest.raises(CheckpointError, match=wording.ANOTHER_PLAN):
        federate(plan(rounds=4), tmp_path, scripted())
    shutil.rmtree(tmp_path / "checkpoints")


def test_the_transport_passes_over_sites_that_it_does_not_know(tmp_path: Path) -> None:
    sites = scripted()
    del sites["valley"]

    def main(transport: Transport) -> None:
        assert transport.sites() == ["harbour", "north"]
        request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan()))
        answers: dict[str, Answer] = transport.exchange(
            {"north": request, "valley": request}, deadline_s=1.0
        )
        assert answers["valley"].content == Failure(FailureKind.NO_ANSWER)
        assert isinstance(answers["north"].content, Parcel)

    run_in_process(main, sites)


def test_after_a_resume_nobody_waits_a_day_for_an_absent_site(tmp_path: Path) -> None:
    chosen = plan(rounds=2, deadline_s=None, quorum_sites=2, quorum_patients=0.5)  # type: ignore[arg-type]  # null derives it
    seen: list[tuple[Kind, float]] = []

    def stop(record: RoundRecord) -> None:
        if record.round == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        federate(chosen, tmp_path, scripted(), stop, seen=seen)
    assert [deadline for kind, deadline in seen if kind is Kind.STATISTICS] == [86_400]
    seen.clear()
    federate(chosen, tmp_path, scripted(), seen=seen)
    assert seen
    assert max(deadline for _, deadline in seen) <= 60


def test_a_removed_sites_patients_are_nobodys_to_wait_for(tmp_path: Path) -> None:
    roster = list(PATIENTS)

    def remove(record: RoundRecord) -> None:
        if record.round == 1:
            roster.remove("valley")

    finished = federate(plan(rounds=2), tmp_path, scripted(), remove, roster=roster)
    assert [list(record.counted) for record in finished.records] == [
        ["harbour", "north", "valley"],
        ["harbour", "north", "valley"],
        ["harbour", "north"],
    ]


@pytest.mark.parametrize("when", [0, 2])
def test_a_site_without_budget_is_not_asked_again(tmp_path: Path, when: int) -> None:
    # it has stopped: whoever asked it again would wait for the deadline in every round
    asked: list[str] = []
    sites: dict[str, SiteHandler] = dict(scripted(valley={when: FailureKind.BUDGET}))
    valley = sites["valley"]

    def counting(request: Parcel) -> Parcel | Failure:
        asked.append(request.kind.value)
        return valley(request)

    chosen = plan(rounds=4, quorum_sites=2, quorum_patients=0.5)
    finished = federate(chosen, tmp_path, sites | {"valley": counting})
    assert finished.records[when].refused == {"valley": "budget"}
    for record in finished.records[when + 1 :]:
        assert "valley" not in record.asked
    trained = [kind for kind in asked if kind == "train"]
    assert (asked.count("statistics"), len(trained)) == (1, when)
