"""A figure of one person never leaves a site, however many examinations the person has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lift.cohort.split import Split
from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.simulation import SimulationConfig
from lift.config.site import SiteSettings
from lift.generator.bundle import load_bundle
from lift.generator.networks import FrozenGenerator
from lift.protocol.messages import (
    GuardReply,
    GuardRequest,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
)
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.predictions import patient_equations, sum_of_equations
from lift.wire.names import MIXER, TAPS, grouped
from lift_client.session import SiteSession
from lift_client.tasks.paired import PairedWork, paired_work
from lift_server.tasks.paired import PairedSums
from lift_server.tasks.registry import run_task
from lift_simulation.tasks.paired import _plans
from tests.end_to_end.tiny_run import TinyRun, make_patient, patient_name, write_nifti

EXAMINATIONS = 8


@pytest.fixture(scope="module")
def generator(tiny: TinyRun) -> FrozenGenerator:
    return load_bundle(tiny.bundle, expected_fingerprint=None, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def plan(tiny: TinyRun, generator: FrozenGenerator) -> Plan:
    plan = SimulationConfig.from_yaml(tiny.settings("persons")).plan
    return plan.model_copy(update={"generator_fingerprint": generator.fingerprint})


@pytest.fixture(scope="module")
def work(
    generator: FrozenGenerator, plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> PairedWork:
    folder = tmp_path_factory.mktemp("data")
    for index in range(EXAMINATIONS):
        name = patient_name(index)
        (folder / name).mkdir()
        for channel, voxels in make_patient(np.random.default_rng([7, index])).items():
            write_nifti(folder / name / f"{name}-{channel}.nii.gz", voxels)
    settings = SiteSettings(name="east", data=BratsData(root=folder), device="cpu")
    work = SiteSession(settings, generator, tmp_path_factory.mktemp("work")).work(plan)
    assert isinstance(work, PairedWork)
    return work


def persons(work: PairedWork, *, in_validation: int) -> None:
    """Two examinations in validation: of one person, or of two."""
    names = sorted(work.cohort.patients)
    kept = {name: replace(work.cohort.patients[name], subject=name) for name in names}
    if in_validation == 1:
        kept[names[1]] = replace(kept[names[1]], subject=kept[names[0]].subject)
    split = Split(tuple(names[2:]), tuple(names[:2]), ())
    work.cohort = replace(work.cohort, split=split, patients=kept)


def verdict(work: PairedWork, plan: Plan, generator: FrozenGenerator) -> GuardReply:
    values = {n: t.numpy() for n, t in plan_mixer(plan, generator).values().items()}
    tensors = grouped(values, MIXER) | {TAPS: np.zeros(6)}
    return work.guard(GuardRequest(plan_digest=plan.digest()), tensors)


def test_two_examinations_of_one_person_give_no_figure(
    work: PairedWork, plan: Plan, generator: FrozenGenerator
) -> None:
    values = plan_mixer(plan, generator).values()
    persons(work, in_validation=1)
    assert work.validation_psnr_db(values, {}) is None
    reply = verdict(work, plan, generator)
    assert reply.lowest_hf_share is None
    assert reply.judged_on == "validation_and_training" or reply.against_no_mixer is None
    # the same two examinations of two persons do
    persons(work, in_validation=2)
    assert work.validation_psnr_db(values, {}) is not None
    reply = verdict(work, plan, generator)
    assert reply.lowest_hf_share is not None
    assert reply.against_no_mixer is not None


def test_a_person_counts_once_however_many_examinations_there_are(
    work: PairedWork, plan: Plan, generator: FrozenGenerator
) -> None:
    plan = plan.model_copy(
        update={"federation": plan.federation.model_copy(update={"patient_count_step": 1})}
    )
    names = sorted(work.cohort.patients)
    subjects = {name: replace(work.cohort.patients[name], subject=name) for name in names}
    # five examinations of one person, and one of each of two others
    for name in names[1:5]:
        subjects[name] = replace(subjects[name], subject=subjects[names[0]].subject)
    split = Split((names[7],), tuple(names[:7]), ())
    work.cohort = replace(work.cohort, split=split, patients=subjects)
    reply = verdict(work, plan, generator)
    assert reply.against_no_mixer is not None
    step = work._plan.federation.patient_count_step
    assert reply.against_no_mixer.n == -(-3 // step) * step


@pytest.fixture(scope="module")
def several(
    generator: FrozenGenerator, plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> SiteSession:
    """A site with five persons: one has four examinations, the others one each."""
    folder = tmp_path_factory.mktemp("several")
    names = [*(f"BraTS-TST-00000-{i:03d}" for i in range(4)), *map(patient_name, range(1, 5))]
    for index, name in enumerate(names):
        for channel, voxels in make_patient(np.random.default_rng([7, index])).items():
            write_nifti(folder / name / f"{name}-{channel}.nii.gz", voxels)
    settings = SiteSettings(name="east", data=BratsData(root=folder), device="cpu")
    return SiteSession(settings, generator, tmp_path_factory.mktemp("several-work"))


def exact(plan: Plan, **split: object) -> Plan:
    """A plan that rounds no number, with other shares."""
    federation = plan.federation.model_copy(update={"patient_count_step": 1})
    changed = plan.split.model_copy(update=split)
    return plan.model_copy(update={"federation": federation, "split": changed})


@pytest.mark.parametrize("key", ["a", "b", "c", "d"])
def test_the_numbers_that_become_weights_are_of_persons(
    several: SiteSession, plan: Plan, generator: FrozenGenerator, key: str
) -> None:
    plan = exact(plan, key=key)
    reply = several.handle(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan)))
    assert isinstance(reply, Parcel)
    body = reply.body
    assert isinstance(body, StatisticsReply)
    told = (body.train_patients, body.validation_patients, body.test_patients)
    cohort = paired_work(several, plan).cohort
    assert told == tuple(len(cohort.subjects(p)) for p in ("train", "validation", "test"))
    assert sum(told) == 5
    # the sums are of as many: the server refuses larger ones
    _, sums = run_task(plan, generator).review(reply, plan.digest())
    assert isinstance(sums, PairedSums)
    assert sums.z_filter is not None
    assert sums.z_filter.patients == body.train_patients


def test_a_person_weighs_in_the_z_filter_like_everybody(several: SiteSession, plan: Plan) -> None:
    cohort = paired_work(several, exact(plan, train=1.0, validation=0.0)).cohort
    people = cohort.by_person("train")
    assert sorted(map(len, people)) == [1, 1, 1, 1, 4]
    total = sum_of_equations(people)
    assert total.patients == 5
    by_hand = sum(
        (torch.stack([patient_equations(one).a for one in person]).mean(0) for person in people),
        start=torch.zeros(6, 6, dtype=torch.float64),
    )
    torch.testing.assert_close(total.a, by_hand, rtol=0, atol=1e-11)
    flat = sum_of_equations(cohort.part("train"))
    assert flat.patients == 8
    # whole units, so that sums over sites stay exact
    units, _ = total.to_fixed_point()
    assert torch.equal(units.double() / 2**40, total.a)


def test_leaving_one_out_leaves_a_person_out_once(
    several: SiteSession, tiny: TinyRun, plan: Plan
) -> None:
    config = SimulationConfig.from_yaml(tiny.settings("each", leave_one_out=True))
    plans = _plans(config, plan, {"east": several.settings})
    held_out = [one.split.held_out for one in plans]
    assert sorted(map(len, held_out)) == [1, 1, 1, 1, 4]
    names = [name for names in held_out for name in names]
    assert len(names) == len(set(names)) == EXAMINATIONS


def test_a_table_of_results_counts_the_persons_of_a_site(
    several: SiteSession, tiny: TinyRun, tmp_path: Path
) -> None:
    root = several.settings.data.root
    data = {"layout": "brats", "root": str(root)}
    # the person with four examinations is held out
    done = tiny.simulate(
        "each-person",
        sites=[
            {"name": "east", "data": data},
            {"name": "west", "data": {"layout": "brats", "root": str(tiny.site("west"))}},
        ],
        plan__split={"held_out": ["east/BraTS-TST-00000-001", f"west/{patient_name(0)}"]},
        compare=["cross_site", "local_only"],
    )
    assert done.code == 0, done
    out = tiny.folder / "each-person"
    metrics = json.loads((out / "metrics.json").read_text())
    east = metrics["sites"]["east"]
    assert (east["patients"], east["examinations"]) == (1, 4)
    assert len(metrics["patients"]["east"]["federated_curves"]) == 4
    # one person has no interval, however many examinations there are
    figure = east["methods"]["federated_curves"]["psnr_db"]
    assert (figure["n"], figure["low"], figure["high"]) == (1, None, None)
    psnr = [one["psnr_db"] for one in metrics["patients"]["east"]["federated_curves"].values()]
    assert figure["value"] == pytest.approx(sum(psnr) / 4, abs=1e-12)
    assert metrics["pooled"]["federated_curves"]["psnr_db"]["n"] == 2
    assert metrics["comparisons"]["pooled"]["federated_curves - no_mixer"]["psnr_db"]["n"] == 2
    assert metrics["cross_site"]["west"]["east"]["psnr_db"]["n"] == 1
    record = json.loads((out / "run.json").read_text())
    assert [site["patients"]["test"] for site in record["sites"]] == [1, 1]
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "1 persons with 4 examinations" in report
    assert "A patient is a person" in report
