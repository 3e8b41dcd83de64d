"""A site with too few validation patients judges on training patients too, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch

from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.site import BudgetSettings, SiteSettings
from lift.generator.bundle import load_bundle
from lift.generator.networks import FrozenGenerator
from lift.guard import OPTIMISM_DB
from lift.protocol.messages import GuardReply, GuardRequest, Kind, Parcel
from lift.tasks.paired import predictions as evaluation
from lift.tasks.paired.contrast import CURVES_FILE, read_site_model
from lift_client.gate.cohort_ledger import begin
from lift_client.session import SiteSession
from lift_client.tasks import paired
from lift_client.tasks.paired import PairedWork
from lift_server.release.results import verdicts
from tests.end_to_end.test_contrast import CURVES, open_session, plan_of
from tests.end_to_end.test_privacy import DELTA, LOCAL
from tests.end_to_end.tiny_run import SOURCES, TinyRun

SITE: Final = "west"
"""Of five patients."""
FEW: Final = {"train": 0.6, "validation": 0.0}
ENOUGH: Final = {"train": 0.4, "validation": 0.4}
TRAINED: Final = 3
EXACT: Final = {"rounds": 1, "patient_count_step": 1}


@pytest.fixture(scope="module")
def generator(tiny: TinyRun) -> FrozenGenerator:
    return load_bundle(tiny.bundle, expected_fingerprint=None, device=torch.device("cpu"))


def judged_with(work: PairedWork, plan: Plan) -> GuardReply:
    tensors = {f"mixer/{name}": tensor.numpy() for name, tensor in work.start().items()}
    request = GuardRequest(plan_digest=plan.digest())
    return work.guard(request, {**tensors, "z_filter/taps": np.zeros(6)})


def opened(session: SiteSession, plan: Plan) -> PairedWork:
    work = session.work(plan)
    assert isinstance(work, PairedWork)
    return work


def test_with_too_few_others_it_judges_on_training_patients_and_says_so(
    tiny: TinyRun, generator: FrozenGenerator, tmp_path: Path
) -> None:
    plan = plan_of(tiny, generator, plan__split=FEW, plan__federation=EXACT)
    work = opened(open_session(tiny.site(SITE), SITE, generator, tmp_path), plan)
    reply = judged_with(work, plan)
    assert reply.judged_on == "validation_and_training"
    assert reply.against_no_mixer is not None
    assert reply.against_no_mixer.n == TRAINED
    # nothing of slice profiles of single training patients
    assert reply.lowest_hf_share is None
    assert verdicts({SITE: reply})[SITE].judged_on == "validation_and_training"
    # what the site uses is not chosen by patients whom the mixer has seen
    assert read_site_model(tmp_path / CURVES_FILE, len(SOURCES)).name == "mixer"


def test_with_enough_of_them_training_patients_are_left_alone(
    tiny: TinyRun, generator: FrozenGenerator, tmp_path: Path
) -> None:
    plan = plan_of(tiny, generator, plan__split=ENOUGH, plan__federation=EXACT)
    reply = judged_with(
        opened(open_session(tiny.site(SITE), SITE, generator, tmp_path), plan), plan
    )
    assert reply.judged_on == "validation"
    assert reply.against_no_mixer is not None
    assert reply.against_no_mixer.n == 2
    assert reply.lowest_hf_share is not None


def test_each_is_judged_under_curves_that_it_had_no_part_in(
    tiny: TinyRun, generator: FrozenGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tiny, generator, plan__split=FEW)
    work = opened(open_session(tiny.site(SITE), SITE, generator, tmp_path), plan)
    seen = []
    volumes_of = evaluation.volumes_of_uses

    def noted(features: object, *rest: object) -> object:
        seen.append(features.curves)  # type: ignore[attr-defined]
        return volumes_of(features, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(paired, "volumes_of_uses", noted)
    judged_with(work, plan)
    expected = [
        work.curves({}, without={work.cohort.patients[patient].subject}).curves
        for patient in work.cohort.split.train
    ]
    assert len(seen) == len(expected) == TRAINED
    for own, other in zip(seen, expected, strict=True):
        assert own is None if other is None else torch.equal(own, other)


def test_the_number_is_rounded_like_every_number_of_patients(
    tiny: TinyRun, generator: FrozenGenerator, tmp_path: Path
) -> None:
    plan = plan_of(tiny, generator, plan__split=FEW)
    assert plan.federation.patient_count_step == 4
    reply = judged_with(
        opened(open_session(tiny.site(SITE), SITE, generator, tmp_path), plan), plan
    )
    assert reply.against_no_mixer is not None
    assert reply.against_no_mixer.n == 4


def test_one_patients_own_figure_never_leaves(
    tiny: TinyRun, generator: FrozenGenerator, tmp_path: Path
) -> None:
    root = tmp_path / "one"
    root.mkdir()
    patient = tiny.patient(SITE, 0)
    (root / patient.name).symlink_to(patient)
    plan = plan_of(tiny, generator, plan__split=FEW)
    session = open_session(root, SITE, generator, tmp_path / "work")
    answer = session.handle(Parcel(Kind.GUARD, GuardRequest(plan_digest=plan.digest()), {}))
    assert not isinstance(answer, Parcel)
    reply = judged_with(opened(session, plan), plan)
    assert reply.verdict == "undecided"
    assert reply.against_no_mixer is None
    assert reply.against_z_filter is None
    assert reply.lowest_hf_share is None


@pytest.mark.parametrize("why", ["privacy", "no curves"])
def test_no_training_patient_is_judged_under_privacy_or_without_curves(
    tiny: TinyRun, generator: FrozenGenerator, tmp_path: Path, why: str
) -> None:
    changes: dict[str, object] = {"plan__split": FEW}
    budget = None
    if why == "privacy":
        path, mark = tmp_path / "ledger.jsonl", tmp_path / "mark.json"
        budget = BudgetSettings(epsilon=20, delta=DELTA, ledger=path, mark=mark)
        begin(SiteSettings(name=SITE, data=BratsData(root=tmp_path), budget=budget), tmp_path)
        changes["plan__privacy"] = LOCAL
    else:
        changes["plan__mixer"] = {**CURVES, "contrast": "none"}
    plan = plan_of(tiny, generator, **changes)
    session = open_session(tiny.site(SITE), SITE, generator, tmp_path / "w", budget=budget)
    work = opened(session, plan)
    assert work.cohort.split.train
    reply = judged_with(work, plan)
    session.close()
    assert reply.judged_on == "validation"
    assert reply.against_no_mixer is None
    assert reply.verdict == "undecided"


def test_helped_needs_more_than_training_may_have_added(
    tiny: TinyRun,
    generator: FrozenGenerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(tiny, generator, plan__split=FEW)
    work = opened(open_session(tiny.site(SITE), SITE, generator, tmp_path), plan)
    gain = 0.0

    def figures(features: object, *rest: object) -> dict[str, float]:
        del features, rest
        return {"no_mixer": 0.0, "z_filter": 0.0, "mixer": gain}

    monkeypatch.setattr(paired, "volumes_of_uses", figures)
    monkeypatch.setattr(paired, "patient_psnr_db", lambda features, volume: volume)
    told = {}
    for gain in (OPTIMISM_DB - 0.01, OPTIMISM_DB + 0.01, -0.01):
        told[gain] = judged_with(work, plan).verdict
    assert list(told.values()) == ["undecided", "helped", "harmed"]
