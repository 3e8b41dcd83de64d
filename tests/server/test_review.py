from __future__ import annotations

import numpy as np
import pytest
import torch

from lift.errors import UpdateRejectedError
from lift.mixer.z_filter import SCALE
from lift.protocol.messages import Kind, Parcel, StatisticsReply, TrainReply
from lift_server.review import review_statistics, review_update
from tests import wording

DIGEST = "a" * 64
EXPECTED = {"w": torch.zeros(3), "b": torch.zeros(1)}


def reply(round_index: int = 4, digest: str = DIGEST, **tensors: np.ndarray) -> Parcel:
    body = TrainReply(plan_digest=digest, round=round_index, loss=1.0, validation_psnr_db=None)
    return Parcel(Kind.TRAIN, body, tensors)


def review(parcel: Parcel, largest_norm: float = 10.0) -> dict[str, torch.Tensor]:
    return review_update(
        parcel,
        EXPECTED,
        plan_digest=DIGEST,
        round_index=4,
        dtype="float32",
        largest_norm=largest_norm,
    )[1]


W, B = np.ones(3, np.float32), np.ones(1, np.float32)


def test_a_fitting_update_passes_unchanged() -> None:
    update = review(reply(w=W, b=B))
    assert torch.equal(update["w"], torch.ones(3))


@pytest.mark.parametrize(
    ("parcel", "reason"),
    [
        (reply(w=W), "missing or extra"),
        (reply(w=W, b=B, x=B), "missing or extra"),
        (reply(w=np.ones(4, np.float32), b=B), "shape"),
        (reply(w=W.astype(np.float64), b=B), "not float32"),
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


def test_statistics_come_back_from_fixed_point() -> None:
    sums = review_statistics(
        statistics(np.eye(6, dtype=np.int64) * SCALE, np.zeros(6, np.int64)), DIGEST
    )[1]
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
        review_statistics(statistics(a, b), DIGEST)
