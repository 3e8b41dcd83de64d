from __future__ import annotations

import numpy as np
import pytest
import torch

from lift.config.plan import Plan, TaskPlan
from lift.config.privacy import NoPrivacy
from lift.errors import UpdateRejectedError
from lift.mixer.curves import KNOTS, CurveEquations, curve_equations
from lift.mixer.z_filter import SCALE, NormalEquations
from lift.protocol.messages import Kind, Parcel, StatisticsReply, TrainReply
from lift.tasks.paired.contrast import to_arrays
from lift.tasks.paired.wire import paired_statistics_form
from lift.wire.update import update_form
from lift_server.rounds.review import (
    check_form,
    review_curves,
    review_statistics,
    review_update,
    review_z_filter,
)
from tests import wording

DIGEST = "a" * 64
PLAN = Plan(
    task=TaskPlan(source=("t1n",), target="t2f"),
    generator_fingerprint="a" * 64,
    privacy=NoPrivacy(mode="none"),
)
STATISTICS = paired_statistics_form(PLAN)
EXPECTED = {"w": torch.zeros(3), "b": torch.zeros(1)}


def reply(round_index: int = 4, digest: str = DIGEST, **tensors: np.ndarray) -> Parcel:
    body = TrainReply(plan_digest=digest, round=round_index, loss=1.0, validation_psnr_db=None)
    return Parcel(Kind.TRAIN, body, tensors)


def review(parcel: Parcel, largest_norm: float = 10.0) -> dict[str, torch.Tensor]:
    return review_update(
        parcel,
        update_form(EXPECTED, PLAN),
        plan_digest=DIGEST,
        round_index=4,
        largest_norm=largest_norm,
    )[1]


W, B = np.ones(3, np.float32), np.ones(1, np.float32)


def test_a_fitting_update_passes_unchanged() -> None:
    update = review(reply(w=W, b=B))
    assert torch.equal(update["w"], torch.ones(3))


@pytest.mark.parametrize(
    ("parcel", "reason"),
    [
        (reply(w=W), "missing"),
        (reply(w=W, b=B, x=B), "no such"),
        (reply(w=np.ones(4, np.float32), b=B), "shape"),
        (reply(w=W.astype(np.float64), b=B), "float32 is needed"),
        (reply(w=np.array([1, np.nan, 1], np.float32), b=B), "NaN"),
        (reply(w=np.array([1, np.inf, 1], np.float32), b=B), wording.NOT_FINITE),
        (reply(w=W * 100, b=B), "norm"),
        (reply(3, w=W, b=B), "round 3"),
        (reply(4, "b" * 64, w=W, b=B), wording.ANOTHER_PLAN),
    ],
)
def test_an_update_that_does_not_fit_is_refused_with_its_reason(
    parcel: Parcel, reason: str
) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        review(parcel)
    assert reason in caught.value.seen


def statistics(a: np.ndarray, b: np.ndarray) -> Parcel:
    body = StatisticsReply(
        plan_digest=DIGEST,
        train_patients=3,
        validation_patients=1,
        test_patients=1,
        refused_volumes=0,
        lowest_slice_spacing_mm=3.0,
        highest_slice_spacing_mm=3.0,
    )
    return Parcel(Kind.STATISTICS, body, {"z_filter_a": a, "z_filter_b": b})


def reviewed(parcel: Parcel) -> NormalEquations:
    body = review_statistics(parcel, DIGEST, STATISTICS)
    return review_z_filter(parcel.tensors, body.train_patients)


def test_statistics_come_back_from_fixed_point() -> None:
    sums = reviewed(statistics(np.eye(6, dtype=np.int64) * SCALE, np.zeros(6, np.int64)))
    assert torch.equal(sums.a, torch.eye(6, dtype=torch.float64))
    assert sums.patients == 3


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.eye(6), np.zeros(6, np.int64)),
        (np.eye(5, dtype=np.int64), np.zeros(6, np.int64)),
        (-np.eye(6, dtype=np.int64), np.zeros(6, np.int64)),
        (np.triu(np.ones((6, 6), np.int64)), np.zeros(6, np.int64)),
        (np.eye(6, dtype=np.int64), np.zeros(5, np.int64)),
    ],
)
def test_sums_that_no_cohort_can_have_are_refused(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(UpdateRejectedError):
        reviewed(statistics(a, b))


CURVE_PATIENTS = 6
CURVE_SIZE = 2 * KNOTS


def curve_sums(patients: int = CURVE_PATIENTS) -> dict[str, np.ndarray]:
    """Of patients with one source channel."""
    total = CurveEquations.zero(1)
    random = torch.Generator().manual_seed(0)
    for _ in range(patients):
        volume = torch.rand(3, 4, 1, 6, 6, generator=random)
        mask = (volume[0] > 0.1).float()
        total = total + curve_equations(volume[0], volume[1], volume[2], mask)
    return dict(to_arrays(total))


def curves_of(tensors: dict[str, np.ndarray], patients: int) -> CurveEquations | None:
    parcel = statistics(np.eye(6, dtype=np.int64) * SCALE, np.zeros(6, np.int64))
    check_form(Parcel(parcel.kind, parcel.body, {**parcel.tensors, **tensors}), STATISTICS)
    return review_curves(tensors, patients, 1)


def test_curve_sums_come_back_from_fixed_point() -> None:
    sums = curve_sums()
    found = curves_of(sums, CURVE_PATIENTS)
    assert found is not None
    assert found.patients == CURVE_PATIENTS
    assert torch.equal(found.a, torch.from_numpy(sums["curves_a"]).double() / SCALE)
    assert torch.equal(found.b, torch.from_numpy(sums["curves_b"]).double() / SCALE)


def test_a_site_may_share_no_curve_sums() -> None:
    assert curves_of({}, 2) is None


def damaged(**parts: np.ndarray) -> dict[str, np.ndarray]:
    return {**curve_sums(), **parts}


def with_entry(name: str, place: tuple[int, ...], value: int) -> dict[str, np.ndarray]:
    array = curve_sums()[name].copy()
    array[place] = value
    if len(place) == 2:
        array[place[::-1]] = value
    return damaged(**{name: array})


def one_sided() -> dict[str, np.ndarray]:
    array = curve_sums()["curves_a"].copy()
    array[0, 1] += 1
    return damaged(curves_a=array)


def not_squares() -> dict[str, np.ndarray]:
    """Every block adds up to the patients, and yet it is no sum of products."""
    array = np.zeros((CURVE_SIZE, CURVE_SIZE), np.int64)
    share = CURVE_PATIENTS * SCALE // 2
    for row in range(2):
        for column in range(2):
            low, other = row * KNOTS, column * KNOTS
            array[low, other + 1] = array[low + 1, other] = share
    return {"curves_a": array, "curves_b": np.zeros(CURVE_SIZE, np.int64)}


@pytest.mark.parametrize(
    ("tensors", "patients", "reason"),
    [
        ({"curves_a": curve_sums()["curves_a"]}, CURVE_PATIENTS, "missing"),
        (damaged(more=np.zeros(1)), CURVE_PATIENTS, "no such"),
        (damaged(curves_b=np.zeros(CURVE_SIZE)), CURVE_PATIENTS, "int64 is needed"),
        (damaged(curves_b=np.zeros(4, np.int64)), CURVE_PATIENTS, "is needed"),
        (curve_sums(3), 3, "fewer than"),
        (curve_sums(), CURVE_PATIENTS + 1, "as many patients"),
        (one_sided(), CURVE_PATIENTS, "sum of products"),
        (with_entry("curves_a", (0, 5), -1), CURVE_PATIENTS, "sum of products"),
        (with_entry("curves_b", (0,), 2**60), CURVE_PATIENTS, "larger than"),
        (not_squares(), CURVE_PATIENTS, "sum of squares"),
    ],
)
def test_curve_sums_that_no_cohort_can_have_are_refused(
    tensors: dict[str, np.ndarray], patients: int, reason: str
) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        curves_of(tensors, patients)
    assert reason in caught.value.seen
