"""Claimed and declared numbers of patients: refusals, quorum, late joiners."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from lift.config.plan import FederationPlan, Plan, TaskPlan
from lift.config.privacy import NoPrivacy, PatientGradients
from lift.errors import QuorumError, UpdateRejectedError
from lift.protocol.messages import (
    Answer,
    Failure,
    FailureKind,
    Kind,
    Parcel,
    StatisticsReply,
    TrainRequest,
)
from lift.protocol.transport import Grace
from lift_server.rounds.counts import check_claim, quorum_counts
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.paired import PairedRun
from tests.federation.parcels import PATIENTS, honest_answer, statistics_of

DECLARED = {"east": 12, "north": 12, "west": 12}
MANY = 10**6
LOCAL = PatientGradients(
    mode="patient-local",
    delta=1e-4,
    public_patients={"north": 30},
    clip_norm=0.5,
    noise_multiplier=2.0,
    sampling_rate=0.25,
)


def plan(step: int = 1, privacy: NoPrivacy | PatientGradients | None = None) -> Plan:
    return Plan(
        task=TaskPlan(source=("t1n",), target="t2f"),
        federation=FederationPlan(
            rounds=2,
            deadline_s=20.0,
            quorum_sites=2,
            quorum_patients=0.5,
            patient_count_step=step,
        ),
        privacy=privacy or NoPrivacy(mode="none"),
    )


def reply(train: int, validation: int = 0, test: int = 0) -> StatisticsReply:
    return StatisticsReply(
        plan_digest="a" * 64,
        train_patients=train,
        validation_patients=validation,
        test_patients=test,
        refused_volumes=0,
        lowest_slice_spacing_mm=None,
        highest_slice_spacing_mm=None,
    )


class Sites:
    """A transport whose `north` claims a number of patients, and may then keep silent."""

    def __init__(self, claims: int, *, silent: bool = False, late: bool = False) -> None:
        self._claims = claims
        self._silent = silent
        self._late = late
        self._asked: set[str] = set()

    def sites(self) -> list[str]:
        return sorted(PATIENTS)

    def exchange(
        self, requests: Mapping[str, Parcel], *, deadline_s: float, grace: Grace | None = None
    ) -> dict[str, Answer]:
        del deadline_s, grace
        return {site: Answer(self._answer(site, requests[site]), 100) for site in requests}

    def _answer(self, site: str, request: Parcel) -> Parcel | Failure:
        first = site not in self._asked
        self._asked.add(site)
        if site == "north":
            if self._late and first:
                return Failure(FailureKind.NO_ANSWER)
            if request.kind is Kind.STATISTICS:
                return statistics_of(request.body.plan, self._claims)  # type: ignore[union-attr]
            if self._silent and isinstance(request.body, TrainRequest):
                return Failure(FailureKind.NO_ANSWER)
        return honest_answer(site, request)


def federate(
    folder: Path, sites: Sites, declared: Mapping[str, int], roster: list[str] | None = None
) -> FinishedRun:
    chosen = plan()
    return run_rounds(
        chosen,
        sites,
        RunStore(folder, chosen.digest()),
        PairedRun(chosen, lambda taps: {"w": torch.zeros(3), "b": torch.zeros(1)}),
        roster=lambda: roster or sorted(PATIENTS),
        declared=lambda: declared,
    )


def test_a_claim_above_what_was_declared_is_refused_by_name_and_costs_the_run_nothing(
    tmp_path: Path,
) -> None:
    finished = federate(tmp_path, Sites(MANY), DECLARED)
    # 4 validation and test patients beside
    assert finished.records[0].refused == {
        "north": f"it claims {MANY + 4} patients; 12 are declared"
    }
    for record in finished.records[1:3]:
        assert set(record.counted) == {"east", "west"}


def test_what_was_declared_can_be_claimed(tmp_path: Path) -> None:
    finished = federate(tmp_path, Sites(8), DECLARED)
    assert finished.records[0].counted["north"] == 8
    assert set(finished.records[2].counted) == set(PATIENTS)


def test_a_site_without_a_declaration_is_taken_at_its_word(tmp_path: Path) -> None:
    finished = federate(tmp_path, Sites(MANY), {"east": 12, "west": 12})
    assert finished.records[0].counted["north"] == MANY
    assert finished.records[1].counted["north"] == pytest.approx(0.6)


def test_a_late_site_that_claims_too_much_does_not_join(tmp_path: Path) -> None:
    finished = federate(tmp_path / "much", Sites(MANY, late=True), DECLARED)
    assert [record.joined for record in finished.records[1:3]] == [{}, {}]
    finished = federate(tmp_path / "right", Sites(8, late=True), DECLARED)
    assert finished.records[1].joined == {"north": 8}


def test_silence_after_a_large_claim_is_no_veto_where_patients_are_declared(
    tmp_path: Path,
) -> None:
    # undeclared: the claim stays on record, and no restart helps until the site is removed
    for _ in range(2):
        with pytest.raises(QuorumError, match="0% of the patients counted") as caught:
            federate(tmp_path / "free", Sites(MANY, silent=True), {})
    assert "lift-server remove-site" in caught.value.remedy
    ended = federate(tmp_path / "free", Sites(MANY, silent=True), {}, roster=["east", "west"])
    assert len(ended.records) == 3

    # declared: at most what it declared is missing, 12 of 36
    finished = federate(tmp_path / "declared", Sites(8, silent=True), DECLARED)
    assert [set(record.counted) for record in finished.records[1:3]] == [{"east", "west"}] * 2


def test_a_declaration_that_comes_later_lifts_the_veto(tmp_path: Path) -> None:
    with pytest.raises(QuorumError):
        federate(tmp_path, Sites(MANY, silent=True), {})
    assert len(federate(tmp_path, Sites(MANY, silent=True), DECLARED).records) == 3


@pytest.mark.parametrize(
    ("counts", "step", "fits"),
    [
        ((7, 3, 2), 1, True),
        ((8, 3, 2), 1, False),
        ((13, 0, 0), 1, False),
        # 12 patients, each count rounded up to a multiple of five
        ((10, 5, 5), 5, True),
        ((15, 5, 5), 5, False),
        ((20, 0, 0), 5, False),
    ],
)
def test_the_sum_of_all_counts_may_pass_the_declaration_by_their_rounding_alone(
    counts: tuple[int, int, int], step: int, fits: bool
) -> None:
    if fits:
        check_claim("north", reply(*counts), plan(step), {"north": 12})
        return
    with pytest.raises(UpdateRejectedError) as caught:
        check_claim("north", reply(*counts), plan(step), {"north": 12})
    assert caught.value.seen == f"it claims {sum(counts)} patients; 12 are declared"


def test_under_privacy_the_plans_public_number_is_the_only_one() -> None:
    private = plan(privacy=LOCAL)
    check_claim("north", reply(30), private, {"north": 12})
    with pytest.raises(UpdateRejectedError, match="the plan says 30"):
        check_claim("north", reply(31), private, {})
    with pytest.raises(UpdateRejectedError, match="no public number"):
        check_claim("south", reply(30), private, {})


def test_a_site_that_trains_on_nobody_counts_nobody() -> None:
    claimed = {"a": 5, "b": 0, "c": 7}
    assert quorum_counts(claimed, {"a": 20, "b": 20}) == {"a": 20, "b": 0, "c": 7}
