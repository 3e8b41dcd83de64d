"""What a site sends has one size under a plan, whatever it holds: sizes tell of nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from lift.config.card import DataCard
from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.privacy import NoPrivacy, PatientGradients, StartRelease
from lift.config.site import BudgetSettings, SiteSettings
from lift.generator.networks import FrozenGenerator
from lift.protocol.codec import encode
from lift.protocol.flower.apps import make_client_app
from lift.protocol.flower.records import pack
from lift.protocol.messages import (
    Failure,
    FailureKind,
    GuardRequest,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
)
from lift.protocol.transport import SiteHandler
from lift.tasks.answers import answer_form
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.private import engines
from lift.wire.names import MIXER, TAPS, grouped
from lift_client.gate.cohort_ledger import begin
from lift_client.session import SiteSession
from tests.lift.small_world import random_mixer, small_generator, small_plan, write_brats_patient

DELTA = 1e-5
NONE = NoPrivacy(mode="none")
CENTRAL = PatientGradients(
    mode="patient-central",
    delta=DELTA,
    public_patients=5,
    clip_norm=0.1,
    noise_multiplier=2.0,
    sampling_rate=0.5,
)
LOCAL = CENTRAL.model_copy(
    update={"mode": "patient-local", "start": StartRelease(noise_multiplier=9.0, clip_norm=0.1)}
)
Open = Callable[[int], SiteSession]


@pytest.fixture(scope="module")
def generator() -> FrozenGenerator:
    return small_generator()


@pytest.fixture
def make(generator: FrozenGenerator, tmp_path: Path) -> Iterator[Open]:
    opened: list[SiteSession] = []

    def session(patients: int) -> SiteSession:
        folder = tmp_path / str(len(opened))
        for index in range(patients):
            write_brats_patient(folder / "data", f"BraTS-GLI-{index:05d}-000", seed=index)
        settings = SiteSettings(
            name="north",
            data=BratsData(root=folder / "data"),
            budget=BudgetSettings(epsilon=1e6, delta=DELTA),
            device="cpu",
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        begin(settings, folder)
        opened.append(SiteSession(settings, generator, folder))
        return opened[-1]

    yield session
    for each in opened:
        each.close()


def plan_of(generator: FrozenGenerator, privacy: PatientGradients | NoPrivacy) -> Plan:
    plan = small_plan(generator=generator, rounds=9, training={"steps": 1, "warmup_steps": 0})
    split = plan.split.model_copy(update={"train": 1.0, "validation": 0.0})
    return plan.model_copy(update={"privacy": privacy, "split": split})


def sent_bytes(handler: SiteHandler, request: Parcel) -> int:
    """Bytes of the whole answer, as they cross the wire."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 2, 3
    message = Message(pack(encode(request)), 2, "train", ttl=60.0)
    message.metadata.__dict__["_message_id"] = "m" * 64
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    reply = make_client_app(handler)(message, context)
    return sum(len(part.deflate()) for part in get_all_nested_objects(reply).values())


def statistics(plan: Plan) -> Parcel:
    return Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))


def training(plan: Plan, generator: FrozenGenerator, round_index: int) -> Parcel:
    values = {n: v.numpy() for n, v in random_mixer(plan, generator).values().items()}
    central = plan.privacy.mode == "patient-central"
    request = TrainRequest(
        plan_digest=plan.digest(), round=round_index, exchange="e" * 64 if central else None
    )
    return Parcel(Kind.TRAIN, request, values)


def test_an_exact_sum_has_one_size_whether_or_not_anybody_was_drawn(
    make: Open, generator: FrozenGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, site, drawn = plan_of(generator, CENTRAL), make(3), iter([0, 3, 0, 1, 2])
    assert isinstance(site.handle(statistics(plan)), Parcel)
    monkeypatch.setattr(engines, "poisson_sample", lambda *_: np.arange(next(drawn)))
    sizes = {sent_bytes(site.handle, training(plan, generator, r)) for r in range(1, 6)}
    assert len(sizes) == 1
    assert next(drawn, None) is None


@pytest.mark.parametrize("privacy", [NONE, LOCAL, CENTRAL])
def test_the_size_of_an_answer_does_not_depend_on_the_cohort(
    make: Open, generator: FrozenGenerator, privacy: PatientGradients | NoPrivacy
) -> None:
    """Two patients share no curves, six do; losses and spacings have other digits."""
    plan = plan_of(generator, privacy)
    requests = [statistics(plan), training(plan, generator, 1)]
    if privacy is NONE:
        values = {n: v.numpy() for n, v in plan_mixer(plan, generator).values().items()}
        asked = GuardRequest(plan_digest=plan.digest())
        tensors = grouped(values, MIXER) | {TAPS: np.zeros(6)}
        requests.append(Parcel(Kind.GUARD, asked, tensors))
    few, many = make(2), make(6)
    for request in requests:
        assert all(isinstance(site.handle(request), Parcel) for site in (few, many))
        sizes = {sent_bytes(site.handle, request) for site in (few, many)}
        assert len(sizes) == 1, request.kind


def test_a_site_that_shares_its_card_sends_as_much_as_one_that_does_not() -> None:
    card = DataCard(
        site="north",
        made="2026-01-01",
        floor=5,
        persons=40,
        usable=40,
        warned=0,
        vetoed=0,
        train=30,
        validation=5,
        test=5,
        channels=(),
    )
    reply = StatisticsReply(
        plan_digest="a" * 64,
        train_patients=5,
        validation_patients=0,
        test_patients=0,
        refused_volumes=0,
        lowest_slice_spacing_mm=None,
        highest_slice_spacing_mm=None,
    )
    without, told = (
        Parcel(Kind.STATISTICS, reply.model_copy(update={"data_card": each}))
        for each in (None, card)
    )
    request = statistics(small_plan())
    assert sent_bytes(lambda _: without, request) == sent_bytes(lambda _: told, request)


@pytest.mark.parametrize("loss", [0.5, 0.12345678901234567, 1e-300, None])
def test_the_digits_of_a_number_do_not_change_the_size(loss: float | None) -> None:
    def answer(value: float | None) -> Parcel:
        reply = TrainReply(plan_digest="a" * 64, round=1, loss=value, validation_psnr_db=value)
        return Parcel(Kind.TRAIN, reply, {"w": np.zeros(3, np.float32)})

    request = statistics(small_plan())
    assert sent_bytes(lambda _: answer(loss), request) == sent_bytes(
        lambda _: answer(7.25), request
    )


def test_a_failure_has_one_size_whatever_its_class() -> None:
    request = statistics(small_plan())
    sizes = {
        sent_bytes(lambda _, kind=kind: Failure(kind), request)  # type: ignore[misc]  # bound now
        for kind in FailureKind
    }
    assert len(sizes) == 1


@pytest.mark.parametrize("privacy", [NONE, LOCAL, CENTRAL])
@pytest.mark.parametrize("kind", list(Kind))
def test_the_room_of_an_answer_holds_every_tensor_and_no_more(
    generator: FrozenGenerator, privacy: PatientGradients | NoPrivacy, kind: Kind
) -> None:
    form = answer_form(kind, plan_of(generator, privacy), generator)
    whole = {n: np.zeros(f.shape, f.dtype) for part in form.parts for n, f in part.tensors.items()}
    body = GuardRequest(plan_digest="a" * 64)
    assert form.room_bytes == len(encode(Parcel(kind, body, whole)).block)
