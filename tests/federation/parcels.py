"""A plan and an honest site's answers, for tests that change them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lift.config.plan import FederationPlan, Plan, TaskPlan
from lift.config.privacy import NoPrivacy
from lift.mixer.z_filter import SCALE
from lift.protocol.messages import (
    GuardReply,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
)

PATIENTS = {"east": 6, "north": 5, "west": 4}
F32 = np.float32
FINGERPRINT = "a" * 64


def make_plan(**federation: Any) -> Plan:
    return Plan(
        task=TaskPlan(source=("t1n",), target="t2f"),
        federation=FederationPlan(**({"rounds": 2, "deadline_s": 20.0} | federation)),
        privacy=NoPrivacy(mode="none"),
    )


def a_plan(**changes: Any) -> Plan:
    values = {"generator_fingerprint": FINGERPRINT} | changes
    return make_plan().model_copy(update=values)


def honest_answer(site: str, request: Parcel) -> Parcel:
    body = request.body
    if isinstance(body, StatisticsRequest):
        return statistics_of(body.plan, PATIENTS[site])
    if isinstance(body, TrainRequest):
        reply = TrainReply(
            plan_digest=body.plan_digest, round=body.round, loss=1.0, validation_psnr_db=None
        )
        step = np.full(3, PATIENTS[site] / body.round, np.float32)
        return Parcel(Kind.TRAIN, reply, {"w": step, "b": step[:1]})
    digest = getattr(body, "plan_digest", "")
    guard = GuardReply(
        plan_digest=digest,
        verdict="undecided",
        against_no_mixer=None,
        against_z_filter=None,
        lowest_hf_share=None,
        highest_hf_share=None,
    )
    return Parcel(Kind.GUARD, guard)


def statistics_of(plan: Plan, patients: int) -> Parcel:
    reply = StatisticsReply(
        plan_digest=plan.digest(),
        train_patients=patients,
        validation_patients=2,
        test_patients=2,
        refused_volumes=0,
        lowest_slice_spacing_mm=3.0,
        highest_slice_spacing_mm=3.0,
    )
    sums = {
        "z_filter_a": np.eye(6, dtype=np.int64) * SCALE // 8 * patients,
        "z_filter_b": np.full(6, SCALE // 16 * patients),
    }
    return Parcel(Kind.STATISTICS, reply, sums)
