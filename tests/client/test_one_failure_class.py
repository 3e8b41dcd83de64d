"""Under noise a failure after admission is paid for, and its class tells of no patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lift.cohort.layouts import list_patients
from lift.cohort.patients import Patient
from lift.cohort.preprocessing import prepare as honest_prepare
from lift.config.cohort import BratsData, TableData
from lift.config.plan import Plan
from lift.config.privacy import NoPrivacy, PatientGradients, StartRelease
from lift.config.site import BudgetSettings, CacheSettings, SiteSettings
from lift.errors import DataError, LiftError, NonFiniteUpdateError
from lift.generator.features import Features
from lift.generator.networks import FrozenGenerator
from lift.protocol.messages import (
    Failure,
    FailureKind,
    Kind,
    Parcel,
    StatisticsRequest,
    TrainRequest,
)
from lift.tasks.paired import predictions as evaluation
from lift.tasks.paired import site_cohort as opened
from lift.tasks.paired.building import plan_mixer
from lift_client import session as module
from lift_client.gate.cohort_ledger import begin
from lift_client.gate.ledger import LEDGER_FILE, verify
from lift_client.session import SiteSession
from lift_client.tasks import paired
from tests.lift.small_world import small_generator, small_plan, write_brats_patient

DELTA = 1e-5
PRIVATE = PatientGradients(
    mode="patient-local",
    delta=DELTA,
    public_patients=5,
    clip_norm=0.1,
    noise_multiplier=4.0,
    sampling_rate=1.0,
    start=StartRelease(noise_multiplier=9.0, clip_norm=0.1),
)
Open = Callable[..., SiteSession]


@pytest.fixture(scope="module")
def generator() -> FrozenGenerator:
    return small_generator()


@pytest.fixture
def make(generator: FrozenGenerator, tmp_path: Path) -> Iterator[Open]:
    opened: list[SiteSession] = []

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
        begin(plain, tmp_path)
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


def answers_of(site: SiteSession, generator: FrozenGenerator) -> dict[str, list[Parcel | Failure]]:
    """By mode: the answer to round 0, and to a round."""
    found: dict[str, list[Parcel | Failure]] = {}
    for privacy in MODES:
        plan = plan_of(generator, privacy)
        values = {n: v.numpy() for n, v in plan_mixer(plan, generator).values().items()}
        request = TrainRequest(plan_digest=plan.digest(), round=1)
        found[privacy.mode] = [
            site.handle(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))),
            site.handle(Parcel(Kind.TRAIN, request, values)),
        ]
    return found


def assert_only_noise_hides_it(
    site: SiteSession, generator: FrozenGenerator, otherwise: FailureKind
) -> None:
    answers = answers_of(site, generator)
    assert all(isinstance(answer, Parcel) for answer in answers["patient-local"])
    # the same cohort without noise: everybody may know that it fails
    assert kind_of(answers["none"][0]) is otherwise


@pytest.mark.parametrize(
    ("patients", "cache", "said"),
    [
        (0, CacheSettings(), "no_patient_can_be_used"),
        (2, CacheSettings(largest_gb=1e-6), "too small"),
    ],
)
def test_under_noise_a_cohort_of_any_size_is_answered_for(
    make: Open,
    generator: FrozenGenerator,
    patients: int,
    cache: CacheSettings,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert_only_noise_hides_it(make(patients, cache=cache), generator, FailureKind.DATA)
    # the operator's own log says it
    assert said in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("x"), MemoryError(), DataError("y", seen="z")])
def test_under_noise_a_patient_who_cannot_be_read_keeps_no_site_from_answering(
    make: Open,
    generator: FrozenGenerator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
) -> None:
    """Also where the operator wants to be stopped by a bad file."""

    def prepare(patient: Patient, *arguments: object, **more: object) -> object:
        if patient.id.startswith("BraTS-GLI-00001"):
            raise error
        return honest_prepare(patient, *arguments, **more)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(opened, "prepare", prepare)
    data = BratsData(root=tmp_path / "data", on_bad_file="stop")
    expected = FailureKind.DATA if isinstance(error, DataError) else FailureKind.INTERNAL
    assert_only_noise_hides_it(make(3, data=data), generator, expected)


def test_under_noise_an_incomplete_patient_stops_nobody(
    make: Open, generator: FrozenGenerator, tmp_path: Path
) -> None:
    site = make(2, data=BratsData(root=tmp_path / "data", on_bad_file="stop"))
    next((tmp_path / "data" / "BraTS-GLI-00001-000").glob("*t2f*")).unlink()
    assert_only_noise_hides_it(site, generator, FailureKind.DATA)


@pytest.mark.parametrize(
    ("where", "name"), [(evaluation, "patient_curves"), (paired, "patient_equations")]
)
def test_under_noise_a_patient_whose_equations_fail_adds_nothing(
    make: Open,
    generator: FrozenGenerator,
    monkeypatch: pytest.MonkeyPatch,
    where: ModuleType,
    name: str,
) -> None:
    honest = getattr(where, name)
    asked: list[int] = []

    def equations(features: Features) -> object:
        asked.append(1)
        if len(asked) % 3 == 2:
            raise RuntimeError("x")
        return honest(features)

    site = make(3)
    monkeypatch.setattr(where, name, equations)
    answers = answers_of(site, generator)
    assert asked
    assert all(isinstance(answer, Parcel) for answer in answers["patient-local"])


def test_a_folder_that_is_not_there_is_nobody_s_absence(
    make: Open, generator: FrozenGenerator, tmp_path: Path
) -> None:
    """A disk that was not mounted: the budget is not to be spent on noise."""
    site = make(1, data=BratsData(root=tmp_path / "elsewhere"))
    answers = answers_of(site, generator)
    # refused before the run is admitted: the mark of the data is not there
    assert kind_of(answers["patient-local"][0]) is FailureKind.CONFIG


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ("", []),
        ("one,a\n", ["one"]),
        ("one,a\n,b\n", ["one"]),
        ("one,a\none,b\n", ["one"]),
        ("one,a\ntwo,b,c\n", ["one"]),
        ("one,a\ntwo,../../b\n", ["one"]),
    ],
)
def test_under_noise_a_bad_row_of_a_table_is_passed_over(
    tmp_path: Path, rows: str, kept: list[str]
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
    cells = rows.replace(",a", ",a.nii.gz").replace(",b", ",b.nii.gz")
    (tmp_path / "table.csv").write_text(f"patient,t1n\n{cells}")
    data = TableData(root=tmp_path, table=tmp_path / "table.csv")
    patients, _ = list_patients(data, ["t1n"], one_by_one=True)
    assert [patient.id for patient in patients] == kept
    if rows.count("\n") == 2:
        assert list_patients(data, ["t1n"])[1]
        with pytest.raises(DataError):
            list_patients(data.model_copy(update={"on_bad_file": "stop"}), ["t1n"])


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


def test_a_round_that_is_not_covered_opens_no_volume_after_a_restart_either(
    make: Open, generator: FrozenGenerator, tmp_path: Path
) -> None:
    site, plan = make(2), plan_of(generator, PRIVATE)
    site.handle(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan)))
    values = {n: v.numpy() for n, v in plan_mixer(plan, generator).values().items()}

    def ask(session: SiteSession, number: int) -> Parcel | Failure:
        moved = {name: value + np.float32(number) for name, value in values.items()}
        request = TrainRequest(plan_digest=plan.digest(), round=1)
        return session.handle(Parcel(Kind.TRAIN, request, moved))

    # two rounds, and a tenth of them for what is asked for again, rounded up
    answers = [ask(site, number) for number in range(4)]
    assert [isinstance(answer, Parcel) for answer in answers] == [True, True, True, False]
    (tmp_path / "split.json").unlink()
    again = SiteSession(site.settings, generator, tmp_path)
    assert kind_of(ask(again, 3)) is FailureKind.BUDGET
    assert not (tmp_path / "split.json").exists()
    # what was answered is there for nothing
    assert isinstance(ask(again, 0), Parcel)


NONE = NoPrivacy(mode="none")
MODES = (PRIVATE, NONE)
