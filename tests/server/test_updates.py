"""What the server makes of answers under each privacy mode: review, noise once, weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.config.plan import FederationPlan, Plan, TaskPlan, TrainingPlan
from lift.config.privacy import NoPrivacy, PatientGradients, SiteLevel
from lift.errors import PrivacyError, RecordError, UpdateRejectedError
from lift.protocol.messages import Kind, Parcel, StatisticsReply, TrainReply
from lift.tasks.paired.private.training import UNITS
from lift_server.rounds.ledger_heads import LedgerHeads
from lift_server.rounds.updates import (
    MeanOfUpdates,
    NoisySites,
    SumOfGradients,
    check_sites,
    round_aggregation,
)
from tests import wording
from tests.lift.privacy.streams import KnownStream

CENTRAL = PatientGradients(
    mode="patient-central",
    delta=1e-4,
    public_patients={"east": 30, "west": 10},
    clip_norm=0.5,
    noise_multiplier=2.0,
    sampling_rate=0.25,
)
SITE = SiteLevel(mode="site", delta=1e-4, clip_norm=1.0, noise_multiplier=1e-9, forced=True)
SHAPE = (30, 40)
MIXER = {"w": torch.zeros(SHAPE)}


def plan(privacy: PatientGradients | SiteLevel | NoPrivacy) -> Plan:
    return Plan(
        task=TaskPlan(source=("t1n",), target="t2f"),
        training=TrainingPlan(steps=1),
        federation=FederationPlan(rounds=3),
        privacy=privacy,
    )


def answer(tensors: dict[str, np.ndarray], of: Plan, *, round_index: int = 1) -> Parcel:
    body = TrainReply(
        plan_digest=of.digest(), round=round_index, loss=None, validation_psnr_db=None
    )
    return Parcel(Kind.TRAIN, body, tensors)


def central() -> tuple[Plan, SumOfGradients]:
    chosen = plan(CENTRAL)
    return chosen, SumOfGradients(chosen, CENTRAL, KnownStream())


def test_a_sum_of_gradients_is_taken_as_it_comes() -> None:
    chosen, aggregation = central()
    units = np.full(SHAPE, 3, dtype=np.int64)
    reply, sent = aggregation.review("east", answer({"w": units}, chosen), MIXER, 1)
    assert reply.loss is None
    assert np.array_equal(sent["w"], units)


@pytest.mark.parametrize(
    ("tensors", "round_index", "reason"),
    [
        ({"w": np.zeros(SHAPE, np.float32)}, 1, "int64 is needed"),
        ({"w": np.zeros((3, 4), np.int64)}, 1, "shape"),
        ({"v": np.zeros(SHAPE, np.int64)}, 1, "missing"),
        ({}, 1, "missing"),
        ({"w": np.full(SHAPE, 2**55, np.int64)}, 1, "larger"),
        ({"w": np.zeros(SHAPE, np.int64)}, 2, "round"),
    ],
)
def test_a_sum_that_no_site_can_have_is_refused(
    tensors: dict[str, np.ndarray], round_index: int, reason: str
) -> None:
    chosen, aggregation = central()
    parcel = answer(tensors, chosen, round_index=round_index)
    with pytest.raises(UpdateRejectedError, match=reason):
        aggregation.review("east", parcel, MIXER, 1)


def test_a_sum_of_another_plan_is_refused() -> None:
    _, aggregation = central()
    other = plan(CENTRAL.model_copy(update={"noise_multiplier": 9.0}))
    with pytest.raises(UpdateRejectedError, match=wording.ANOTHER_PLAN):
        aggregation.review("east", answer({"w": np.zeros(SHAPE, np.int64)}, other), MIXER, 1)


def test_lockstep_divides_the_noisy_sum_by_public_numbers() -> None:
    _, aggregation = central()
    sent = {site: {"w": np.full(SHAPE, UNITS, np.int64)} for site in ("east", "west")}
    made = aggregation.combine(sent, {"east": 1, "west": 999})
    update, weights = made.update, made.weights
    # weights by the plan's public numbers, whatever a site claimed
    assert weights == {"east": 0.75, "west": 0.25}
    expected_patients = 0.25 * 40
    moved = update["w"].double()
    mean, std = -2 * 0.5 / expected_patients, 2.0 * 0.5 / expected_patients
    assert abs(float(moved.mean()) - mean) < 5 * std / moved.numel() ** 0.5
    tolerance = 5 / (2 * moved.numel()) ** 0.5
    assert abs(float(moved.std()) / std - 1) < tolerance
    assert all(abs(float(moved.std()) / std * wrong - 1) > tolerance for wrong in (2 / 3, 3 / 2))


def _length(values: Tensor) -> float:
    return float(values.double().norm())


def test_one_site_moves_the_mean_by_at_most_the_clip_norm_over_the_roster() -> None:
    chosen = plan(SITE)
    sites = 4
    calm = {"w": np.full(SHAPE, 1e-4, np.float32)}
    wild = {"w": np.full(SHAPE, 50.0, np.float32)}

    def moved(sent: dict[str, dict[str, np.ndarray]]) -> Tensor:
        made = NoisySites(chosen, SITE, sites, KnownStream())
        return made.combine(sent, {}).update["w"]

    others = {"a": calm, "b": calm, "c": calm}
    difference = moved({**others, "d": wild}) - moved(others)
    assert _length(difference) <= SITE.clip_norm / sites * (1 + 1e-5)
    assert _length(difference) > 0.9 * SITE.clip_norm / sites


def test_site_level_noise_is_refused_for_a_handful_of_sites() -> None:
    honest = SITE.model_copy(update={"forced": False})
    with pytest.raises(PrivacyError, match=r"3 sites; at least 100"):
        check_sites(honest, 3)
    check_sites(honest, 100)
    with pytest.raises(PrivacyError):
        round_aggregation(plan(honest), 3, KnownStream())


def test_each_mode_has_its_aggregation() -> None:
    local = CENTRAL.model_copy(update={"mode": "patient-local"})
    for privacy, kind in (
        (NoPrivacy(mode="none"), MeanOfUpdates),
        (local, MeanOfUpdates),
        (CENTRAL, SumOfGradients),
        (SITE, NoisySites),
    ):
        assert type(round_aggregation(plan(privacy), 3, KnownStream())) is kind


def told(head: str | None, *lines: str) -> StatisticsReply:
    """An answer that names a head of the site's ledger, and the lines since the one before."""
    return StatisticsReply(
        plan_digest="0" * 64,
        train_patients=3,
        validation_patients=0,
        test_patients=0,
        refused_volumes=0,
        lowest_slice_spacing_mm=None,
        highest_slice_spacing_mm=None,
        ledger_head=head,
        ledger_proof=lines,
    )


def test_heads_survive_a_restart_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    heads = LedgerHeads(path)
    assert heads.known(["east"]) == {}
    heads.note("east", told("ab" * 32), required=True)
    heads.note("west", told(None), required=False)
    assert LedgerHeads(path).known(["east", "west"]) == {"east": "ab" * 32}
    assert json.loads(path.read_text()) == {"east": "ab" * 32}
    path.write_text("{")
    with pytest.raises(RecordError, match="backup"):
        LedgerHeads(path)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_head_is_taken_with_the_lines_that_lead_to_it_and_never_without(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    first, lines = "ab" * 32, ["01" * 32, "02" * 32]
    second = sha256(bytes.fromhex(first + lines[0]))
    third = sha256(bytes.fromhex(second + lines[1]))
    LedgerHeads(path).note("east", told(first), required=True)
    # an older copy of the ledger, one that went another way, one begun anew, no ledger at all
    for wrong in (
        told(second),
        told(third, *lines[:1]),
        told(third, *reversed(lines)),
        told("cd" * 32, *lines),
        told("cd" * 32),
        told(None),
    ):
        with pytest.raises(UpdateRejectedError):
            LedgerHeads(path).note("east", wrong, required=True)
        assert LedgerHeads(path).known(["east"]) == {"east": first}
    heads = LedgerHeads(path)
    heads.note("east", told(first), required=True)
    heads.note("east", told(third, *lines), required=True)
    assert LedgerHeads(path).known(["east"]) == {"east": third}
    # a run that no ledger pays for changes nothing
    heads.note("east", told(None), required=False)
    assert LedgerHeads(path).known(["east"]) == {"east": third}
