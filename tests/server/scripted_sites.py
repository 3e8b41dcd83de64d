"""What the sites of a scripted federation answer: the right update, or one of many wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from flwr.app import ConfigRecord, Error, RecordDict
from flwr.common.constant import ErrorCode

from lift.mixer.z_filter import SCALE
from lift.protocol.codec import Encoded, encode
from lift.protocol.flower.records import pack
from lift.protocol.messages import (
    PROTOCOL_VERSION,
    GuardReply,
    GuardRequest,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
)

PATIENTS: Final = {"east": 12, "north": 6, "south": 2, "west": 0}
SITES: Final = tuple(sorted(PATIENTS))
START: Final = {"b": np.ones((1, 2), np.float32), "w": np.zeros(3, np.float32)}
ABSENT: Final = "no_answer"
REVIEWED: Final = ("nan", "shape", "dtype", "extra", "missing", "huge", "stale", "wrong_plan")
"""Well-formed answers that only the server's review can refuse."""
REASONS: Final = {
    "fails_data": "data",
    "fails_not_finite": "not_finite",
    "claims_absence": ABSENT,
    "unknown_failure": "protocol",
    "garbage": "protocol",
    "other_kind": "protocol",
    "other_version": "version",
    "raises": "internal",
    "refuses_code": "policy",
    "unreadable": "protocol",
    "unknown_error": "internal",
}
"""Refused answer -> the reason in the record."""
VALID: Final = ("answers", "answers_twice")
DEEDS: Final = (*VALID, *REVIEWED, *REASONS)
_ERRORS: Final = {
    "raises": ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    "refuses_code": ErrorCode.INVALID_FAB,
    "unreadable": ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    "unknown_error": 4711,
}
_FAILURES: Final = {
    "fails_data": "data",
    "fails_not_finite": "not_finite",
    "claims_absence": ABSENT,
    "unknown_failure": "because",
}
_UNIT: Final = SCALE // 4


def site_update(
    site: str, round_index: int, mixer: Mapping[str, np.ndarray], dtype: str
) -> dict[str, np.ndarray]:
    """A site's only right update: half-way to a point that moves with the round."""
    point = np.float32(0.7 * (1 + SITES.index(site)) + 0.31 * round_index)
    return {name: ((point - mixer[name]) / 2).astype(dtype) for name in sorted(mixer)}


def site_sums(site: str) -> dict[str, np.ndarray]:
    """A site's z-filter sums, fixed point; each site's alone would give other taps."""
    units = PATIENTS[site] * _UNIT
    return {
        "z_filter_a": units * np.eye(6, dtype=np.int64),
        "z_filter_b": np.full(6, units // 10 * (1 + SITES.index(site)), np.int64),
    }


def good_reply(site: str, request: Parcel, dtype: str) -> Parcel:
    """What a healthy site answers; the same request always gives the same bits."""
    body = request.body
    if isinstance(body, StatisticsRequest):
        statistics = StatisticsReply(
            plan_digest=body.plan.digest(),
            train_patients=PATIENTS[site],
            validation_patients=2,
            test_patients=2,
            refused_volumes=0,
            lowest_slice_spacing_mm=3.0,
            highest_slice_spacing_mm=3.0,
        )
        return Parcel(Kind.STATISTICS, statistics, site_sums(site))
    if isinstance(body, TrainRequest):
        train = TrainReply(
            plan_digest=body.plan_digest,
            round=body.round,
            loss=float(SITES.index(site)),
            validation_psnr_db=None,
        )
        return Parcel(Kind.TRAIN, train, site_update(site, body.round, request.tensors, dtype))
    assert isinstance(body, GuardRequest)
    guard = GuardReply(
        plan_digest=body.plan_digest,
        verdict="undecided",
        against_no_mixer=None,
        against_z_filter=None,
        lowest_hf_share=None,
        highest_hf_share=None,
    )
    return Parcel(Kind.GUARD, guard)


def reply_contents(site: str, request: Parcel, deed: str, dtype: str) -> list[RecordDict | Error]:
    """What a site sends that does `deed` with a request: one content, or two."""
    if deed in _ERRORS:
        return [Error(_ERRORS[deed], "-")]
    if deed == "garbage":
        return [RecordDict({"config": ConfigRecord({"key": 1})})]
    if deed in _FAILURES:
        return [RecordDict({"lift.failure": ConfigRecord({"kind": _FAILURES[deed]})})]
    good = good_reply(site, request, dtype)
    if deed == "other_version":
        encoded = encode(good)
        text = encoded.text.replace(f'"version":{PROTOCOL_VERSION}', '"version":99')
        return [pack(Encoded(text, encoded.block))]
    if deed == "other_kind":
        return [pack(encode(_of_another_kind(good)))]
    if deed in REVIEWED:
        return [pack(encode(_spoilt(good, deed)))]
    contents: list[RecordDict | Error] = [pack(encode(good))]
    if deed == "answers_twice":
        # of the same form, with other numbers: it shows in the mixer if it is taken
        other_numbers = {name: tensor + 3 for name, tensor in good.tensors.items()}
        contents.append(pack(encode(Parcel(good.kind, good.body, other_numbers))))
    return contents


def _of_another_kind(parcel: Parcel) -> Parcel:
    digest = "f" * 64
    if parcel.kind is Kind.GUARD:
        body = TrainReply(plan_digest=digest, round=1, loss=0.0, validation_psnr_db=None)
        return Parcel(Kind.TRAIN, body)
    return good_reply(SITES[0], Parcel(Kind.GUARD, GuardRequest(plan_digest=digest)), "float32")


def _spoilt(parcel: Parcel, deed: str) -> Parcel:
    """A well-formed reply with one fault that the review has to see."""
    if deed == "wrong_plan" or parcel.kind is Kind.GUARD:
        body = parcel.body.model_copy(update={"plan_digest": "f" * 64})
        return Parcel(parcel.kind, body, parcel.tensors)
    tensors = {name: np.array(tensor) for name, tensor in parcel.tensors.items()}
    name = sorted(tensors)[0]
    tensor = tensors[name]
    if deed == "stale":
        if isinstance(parcel.body, TrainReply):
            late = parcel.body.model_copy(update={"round": parcel.body.round + 1})
            return Parcel(parcel.kind, late, tensors)
        tensor[0, 1] += 1  # no longer a sum of squares
    elif deed == "missing":
        del tensors[name]
    elif deed == "extra":
        tensors["extra"] = tensor
    elif deed == "shape":
        tensors[name] = tensor[:, :-1]
    elif deed == "dtype":
        tensors[name] = tensor.astype(np.float64)
    elif tensor.dtype == np.int64:
        tensor[0, 0] = 2**61 if deed == "huge" else -1
    else:
        tensor[0, 0] = 6e4 if deed == "huge" else np.nan
    return Parcel(parcel.kind, parcel.body, tensors)
