"""Updates and sums that no honest site sends: refused by name, and nothing else happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lift.config.plan import Plan
from lift.errors import QuorumError
from lift.mixer.z_filter import SCALE
from lift.protocol.messages import (
    Answer,
    Failure,
    FailureKind,
    GuardReply,
    Parcel,
    TrainRequest,
)
from lift.protocol.transport import Grace
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.paired import PairedRun
from tests.federation.parcels import F32, PATIENTS, honest_answer, make_plan

pytestmark = [
    pytest.mark.timeout(300),
    # Flower's way of building an app
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
Trick = Callable[[Parcel, Parcel | None], Parcel]


class ByHand:
    """A transport whose sites answer honestly, but for `north`, which answers with a trick."""

    def __init__(self, trick: Trick, *, in_round: int) -> None:
        self._trick = trick
        self._in_round = in_round
        self._before: Parcel | None = None

    def sites(self) -> list[str]:
        return sorted(PATIENTS)

    def exchange(
        self, requests: Mapping[str, Parcel], *, deadline_s: float, grace: Grace | None = None
    ) -> dict[str, Answer]:
        del deadline_s, grace
        return {site: Answer(self._answer(site, requests[site]), 100) for site in requests}

    def _answer(self, site: str, request: Parcel) -> Parcel | Failure:
        honest = honest_answer(site, request)
        if site != "north":
            return honest
        body = request.body
        now = body.round if isinstance(body, TrainRequest) else 0
        given = honest
        if now == self._in_round and not isinstance(honest.body, GuardReply):
            given = self._trick(honest, self._before)
        self._before = honest
        return given


def federate(plan: Plan, folder: Path, trick: Trick, *, in_round: int) -> FinishedRun:
    return run_rounds(
        plan,
        ByHand(trick, in_round=in_round),
        RunStore(folder, plan.digest()),
        PairedRun(plan, lambda taps: {"w": torch.zeros(3), "b": torch.zeros(1)}),
        roster=lambda: sorted(PATIENTS),
    )


def with_tensors(parcel: Parcel, **tensors: Any) -> Parcel:
    kept = {n: np.asarray(v) for n, v in {**parcel.tensors, **tensors}.items() if v is not None}
    return Parcel(parcel.kind, parcel.body, kept)


def with_body(parcel: Parcel, **changes: Any) -> Parcel:
    return Parcel(parcel.kind, parcel.body.model_copy(update=changes), parcel.tensors)


def before(honest: Parcel, earlier: Parcel | None) -> Parcel:
    del honest
    assert earlier is not None
    return earlier


UPDATES: dict[str, tuple[Trick, str]] = {
    "NaN": (lambda p, _: with_tensors(p, w=np.array([1, np.nan, 1], F32)), "NaN or infinity"),
    "infinity": (lambda p, _: with_tensors(p, b=np.array([-np.inf], F32)), "NaN or infinity"),
    "wrong shape": (lambda p, _: with_tensors(p, w=np.ones(4, F32)), "is needed"),
    "transposed": (lambda p, _: with_tensors(p, w=np.ones((3, 1), F32)), "is needed"),
    "a scalar": (lambda p, _: with_tensors(p, b=np.ones((), F32)), "is needed"),
    "missing tensor": (lambda p, _: with_tensors(p, b=None), "missing"),
    "extra tensor": (lambda p, _: with_tensors(p, x=np.ones(1, F32)), "no such tensor"),
    "no tensor": (lambda p, _: with_tensors(p, w=None, b=None), "missing"),
    "renamed tensor": (lambda p, _: with_tensors(p, b=None, B=np.ones(1, F32)), "missing"),
    "huge norm": (lambda p, _: with_tensors(p, w=np.full(3, 1e30, F32)), "norm"),
    "largest float": (lambda p, _: with_tensors(p, w=np.full(3, 3e38, F32)), "norm"),
    "double precision": (lambda p, _: with_tensors(p, w=np.ones(3)), "float32 is needed"),
    "whole numbers": (lambda p, _: with_tensors(p, w=np.ones(3, np.int64)), "float32 is needed"),
    "the next round": (lambda p, _: with_body(p, round=3), "answers round 3"),
    "a far round": (lambda p, _: with_body(p, round=10**30), "answers round"),
    "another plan": (lambda p, _: with_body(p, plan_digest="0" * 64), "another plan"),
    "replayed": (before, "answers round 1"),
}


@pytest.mark.parametrize("name", UPDATES)
def test_a_bad_update_is_refused_by_name_and_leaves_no_trace_in_the_mixer(
    tmp_path: Path, name: str
) -> None:
    trick, reason = UPDATES[name]
    plan = make_plan(quorum_sites=2, quorum_patients=0.5)
    finished = federate(plan, tmp_path / "attacked", trick, in_round=2)
    record = finished.records[2]
    refused, counted = record.refused, record.counted
    assert list(refused) == ["north"]
    assert reason in refused["north"]
    assert set(counted) == {"east", "west"}
    assert list(record.answered) == sorted(PATIENTS)
    assert sum(counted.values()) == pytest.approx(1)
    # the very bits of a run in which the site kept silent
    silent = federate(plan, tmp_path / "silent", lambda p, _: silence(), in_round=2)  # type: ignore[arg-type,return-value]
    assert silent.records[2].refused == {"north": "no_answer"}
    for tensor, value in silent.mixer.items():
        assert torch.equal(value, finished.mixer[tensor])
    honest = federate(plan, tmp_path / "honest", lambda p, _: p, in_round=2)
    assert not torch.equal(honest.mixer["w"], finished.mixer["w"])


def silence() -> Failure:
    return Failure(FailureKind.NO_ANSWER)


@pytest.mark.parametrize("name", UPDATES)
def test_a_bad_update_does_not_count_towards_the_quorum(tmp_path: Path, name: str) -> None:
    trick, reason = UPDATES[name]
    plan = make_plan()
    with pytest.raises(QuorumError) as caught:
        federate(plan, tmp_path, trick, in_round=2)
    assert caught.value.exit_code == 8
    assert "north" in caught.value.seen
    assert reason in caught.value.seen
    store = RunStore(tmp_path, plan.digest())
    resumed = store.resume()
    assert resumed is not None
    assert resumed[0] == 1
    assert len(store.records) == 2


HONEST_A = np.eye(6, dtype=np.int64) * SCALE // 8 * PATIENTS["north"]
STATISTICS: dict[str, Trick] = {
    "another plan": lambda p, _: with_body(p, plan_digest="0" * 64),
    "missing sums": lambda p, _: with_tensors(p, z_filter_b=None),
    "extra sums": lambda p, _: with_tensors(p, voxels=np.zeros(9)),
    "wrong shape": lambda p, _: with_tensors(p, z_filter_a=np.eye(7, dtype=np.int64)),
    "floats": lambda p, _: with_tensors(p, z_filter_b=np.full(6, np.nan)),
    "negative squares": lambda p, _: with_tensors(p, z_filter_a=-HONEST_A),
    "not symmetric": lambda p, _: with_tensors(p, z_filter_a=np.triu(HONEST_A + 1)),
}
IMPOSSIBLE: dict[str, Trick] = {
    # normalised volumes lie in [0, 1]: no mean square or product of differences is above 1
    "squares above 1": lambda p, _: with_tensors(p, z_filter_a=HONEST_A << 18),
    "products above 1": lambda p, _: with_tensors(p, z_filter_b=np.full(6, 2**62)),
    "smallest number": lambda p, _: with_tensors(p, z_filter_b=np.full(6, -(2**63))),
    "indefinite": lambda p, _: with_tensors(
        p, z_filter_a=HONEST_A + (1 - np.eye(6, dtype=np.int64)) * SCALE * 2
    ),
    "sums of no patient": lambda p, _: with_body(p, train_patients=0),
}


@pytest.mark.parametrize(
    "name",
    [
        *STATISTICS,
        *IMPOSSIBLE,
    ],
)
def test_sums_that_no_cohort_can_have_never_reach_the_z_filter(tmp_path: Path, name: str) -> None:
    trick = (STATISTICS | IMPOSSIBLE)[name]
    plan = make_plan(quorum_sites=2, quorum_patients=0.5)
    attacked = federate(plan, tmp_path / "attacked", trick, in_round=0)
    silent = federate(plan, tmp_path / "silent", lambda p, _: silence(), in_round=0)  # type: ignore[arg-type,return-value]
    assert "north" in attacked.records[0].refused
    assert torch.equal(attacked.taps, silent.taps)
