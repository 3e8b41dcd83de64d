"""Under noise a failure after admission is paid for, and its class tells of no patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.privacy import NoPrivacy, PatientGradients
from lift.config.site import BudgetSettings, CacheSettings, SiteSettings
from lift.errors import DataError, LiftError, NonFiniteUpdateError
from lift.generator.networks import FrozenGenerator
from lift.protocol.messages import (
    Failure,
    FailureKind,
    Kind,
    Parcel,
    StatisticsRequest,
    TrainRequest,
)
from lift.tasks.paired.building import plan_mixer
from lift_client import session as module
from lift_client.gate.ledger import LEDGER_FILE, create_ledger, verify
from lift_client.session import SiteSession
from tests.lift.small_world import small_generator, small_plan, write_brats_patient

DELTA = 1e-5
PRIVATE = PatientGradients(
    mode="patient-local",
    delta=DELTA,
    public_patients=5,
    clip_norm=0.1,
    noise_multiplier=4.0,
    sampling_rate=1.0,
)
Open = Callable[..., SiteSession]


@pytest.fixture(scope="module")
def generator() -> FrozenGenerator:
    return small_generator()


@pytest.fixture
def make(generator: FrozenGenerator, tmp_path: Path) -> Iterator[Open]:
    opened: list[SiteSession] = []
    create_ledger(tmp_path / LEDGER_FILE, cohort="north", delta=DELTA, cap=50.0)

    def session(patients: int, **settings: object) -> SiteSession:
        (tmp_path / "data").mkdir()
        for index in range(patients):
            write_brats_patient(tmp_path / "data", f"BraTS-GLI-{index:05d}-000", seed=index)
        plain = SiteSettings(
            name="north",
            data=BratsData(root=tmp_path / "data"),
            budget=BudgetSettings(epsilon=50.0, delta=DELTA),
            device="cpu",
        )
        opened.append(SiteSession(plain.model_copy(update=settings), generator, tmp_path))
        return opened[-1]

    yield session
    for each in opened:
        each.close()


def plan_of(generator: FrozenGenerator, privacy: PatientGradients | NoPrivacy) -> Plan:
    plan = small_plan("zdiff", generator=generator, training={"steps": 1, "warmup_steps": 0})
    split = plan.split.model_copy(update={"train": 1.0, "validation": 0.0})
    return plan.model_copy(update={"privacy": privacy, "split": split})


def kind_of(answer: Parcel | Failure) -> FailureKind:
    assert isinstance(answer, Failure)
    return answer.kind


@pytest.mark.parametrize(
    ("patients", "cache", "otherwise"),
    [(0, CacheSettings(), "data"), (2, CacheSettings(largest_gb=1e-6), "data")],
)
def test_what_fails_with_the_cohort_has_one_class(
    make: Open,
    generator: FrozenGenerator,
    patients: int,
    cache: CacheSettings,
    otherwise: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = make(patients, cache=cache)
    ask = {p: Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan_of(generator, p))) for p in MODES}
    assert kind_of(site.handle(ask[PRIVATE])) is FailureKind.INTERNAL
    # the operator's own log says what it was
    assert any(word in caplog.text for word in ("cannot list the patients", "too small"))
    assert kind_of(site.handle(ask[NONE])) == otherwise


@pytest.mark.parametrize(
    "error",
    [
        NonFiniteUpdateError("the update does not fit", seen="x", remedy="y"),
        DataError("cannot train", seen="x", remedy="y"),
        torch.OutOfMemoryError(),
    ],
)
def test_what_fails_in_a_round_is_paid_and_has_one_class(
    make: Open,
    generator: FrozenGenerator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: LiftError | RuntimeError,
) -> None:
    site, plan = make(2), plan_of(generator, PRIVATE)
    assert isinstance(site.handle(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))), Parcel)

    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "_update", failing)
    values = {n: v.numpy() for n, v in plan_mixer(plan, generator).values().items()}
    spent = [verify(tmp_path / LEDGER_FILE).epsilon()]
    for _ in range(2):
        request = TrainRequest(plan_digest=plan.digest(), round=1)
        answer = site.handle(Parcel(Kind.TRAIN, request, values))
        assert kind_of(answer) is FailureKind.INTERNAL
        spent.append(verify(tmp_path / LEDGER_FILE).epsilon())
    # a query that fails is no free one
    assert spent == sorted(set(spent))


NONE = NoPrivacy(mode="none")
MODES = (PRIVATE, NONE)
