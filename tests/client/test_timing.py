"""The timed dry run: one patient and a few steps tell what a round will take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lift.cohort.examination import PatientReport, Remark
from lift.config.kit import Kit
from lift.config.site import SiteConfig
from lift.strict_json import parse_model
from lift_client.check.image_check import examine_cohort
from lift_client.check.preflight import _data
from lift_client.check.timing import by_size, check_timing, time_one_patient
from tests.end_to_end.tiny_run import (
    SOURCES,
    TARGET,
    make_bundle,
    make_patient,
    patient_name,
    write_nifti,
)

PATIENTS = 4


@pytest.fixture
def world(tmp_path: Path) -> tuple[SiteConfig, Kit]:
    fingerprint = make_bundle(tmp_path / "bundle")
    for index in range(PATIENTS):
        patient = tmp_path / "data" / patient_name(index)
        for channel, voxels in make_patient(np.random.default_rng(index)).items():
            write_nifti(patient / f"{patient.name}-{channel}.nii.gz", voxels)
    config = SiteConfig.from_data(
        {
            "name": "north",
            "data": {"layout": "auto", "root": str(tmp_path / "data")},
            "generator": {"bundle": str(tmp_path / "bundle")},
            "device": "cpu",
            "policy": {"privacy_modes": ["none"]},
        },
        "test",
    )
    kit = Kit.from_data(
        {
            "federation": "trial",
            "site": "north",
            "address": "localhost:1",
            "ca_sha256": "a" * 64,
            "generator_fingerprint": fingerprint,
            "task": {"source": list(SOURCES), "target": TARGET},
        },
        "test",
    )
    return config, kit


def test_one_patient_tells_what_all_of_them_take(world: tuple[SiteConfig, Kit]) -> None:
    before = {path: path.stat().st_mtime_ns for path in world[0].data.root.rglob("*")}
    found = time_one_patient(*world)
    assert found.patients == PATIENTS
    assert found.prepare_s > 0
    assert found.step_s > 0
    assert found.cache_gb > 0
    assert found.memory_gb > 0.05
    assert found.round_s == pytest.approx(40 * found.step_s)
    assert found.deadline_s == pytest.approx(3 * found.round_s + 60)
    assert {path: path.stat().st_mtime_ns for path in world[0].data.root.rglob("*")} == before
    verdict = check_timing(*world)
    assert verdict.status == "ok"
    assert f"all {PATIENTS} in" in verdict.detail
    assert "deadline" in verdict.detail
    assert "BraTS" not in verdict.detail


def test_a_cache_that_all_patients_overfill_is_said_before_the_run(
    world: tuple[SiteConfig, Kit],
) -> None:
    config, kit = world
    needed = time_one_patient(config, kit).cache_gb
    for largest_gb, status in ((1.01 * needed, "ok"), (0.99 * needed, "warning")):
        cache = config.cache.model_copy(update={"largest_gb": largest_gb})
        verdict = check_timing(config.model_copy(update={"cache": cache}), kit)
        assert verdict.status == status
        assert ("cache.largest_gb" in verdict.fix) == (status == "warning")


def test_a_patient_that_cannot_be_used_is_passed_over(world: tuple[SiteConfig, Kit]) -> None:
    config, kit = world
    (first, *_) = sorted(config.data.root.iterdir())
    for path in first.iterdir():
        path.write_bytes(b"nothing")
    assert time_one_patient(config, kit).patients == PATIENTS
    for folder in config.data.root.iterdir():
        for path in folder.iterdir():
            path.write_bytes(b"nothing")
    verdict = check_timing(config, kit)
    assert verdict.status == "problem"
    assert verdict.fix


def test_a_patient_whom_the_image_checks_veto_is_not_counted(
    world: tuple[SiteConfig, Kit], tmp_path: Path
) -> None:
    config, kit = world
    config = config.model_copy(update={"folder": tmp_path / "work"})
    examine_cohort(config, [*SOURCES, TARGET], workers=1)
    # no pairs at all: whom the reports veto depends on the volumes; here it is written by hand
    paths = sorted(config.image_reports.glob("*.json"))
    reports = [parse_model(PatientReport, path.read_bytes()) for path in paths]
    veto = Remark(check="body", verdict="veto", seen="a", remedy="b")
    for number, (path, report) in enumerate(zip(paths, reports, strict=True)):
        remarks = (veto,) if number == 0 else ()
        plain = report.model_copy(update={"remarks": remarks})
        path.write_text(plain.model_dump_json(), encoding="utf-8")
    assert time_one_patient(config, kit).patients == PATIENTS - 1
    verdict = _data(config, kit)
    assert verdict.status == "warning"
    assert f"left out: 1 ({reports[0].patient}), so {PATIENTS - 1} take part" in verdict.detail
    assert "--images" in verdict.fix
    # accepted by the site, not asked for at all, or of other files by now
    accepting = config.model_copy(update={"accept": {reports[0].patient: "looked at"}})
    policy = config.policy.model_copy(update={"image_checks": False})
    for free in (accepting, config.model_copy(update={"policy": policy})):
        assert time_one_patient(free, kit).patients == PATIENTS
        assert _data(free, kit).status == "ok"
    next((config.data.root / reports[0].patient).iterdir()).touch()
    assert time_one_patient(config, kit).patients == PATIENTS
    assert "images not looked at yet: 1" in _data(config, kit).detail


def test_when_all_are_vetoed_nobody_takes_part(
    world: tuple[SiteConfig, Kit], tmp_path: Path
) -> None:
    config, kit = world
    config = config.model_copy(update={"folder": tmp_path / "work"})
    examine_cohort(config, [*SOURCES, TARGET], workers=1)
    veto = Remark(check="body", verdict="veto", seen="a", remedy="b")
    for path in config.image_reports.glob("*.json"):
        report = parse_model(PatientReport, path.read_bytes())
        vetoed = report.model_copy(update={"remarks": (veto,)})
        path.write_text(vetoed.model_dump_json(), encoding="utf-8")
    assert (_data(config, kit).status, _data(config, kit).label) == ("problem", "data")
    assert check_timing(config, kit).status == "problem"


def test_new_volumes_are_not_timed(world: tuple[SiteConfig, Kit]) -> None:
    config, kit = world
    task = kit.task.model_copy(update={"source": ()})
    assert check_timing(config, kit.model_copy(update={"task": task})).status == "skipped"


def test_the_patient_of_middling_size_comes_first(tmp_path: Path) -> None:
    from lift.cohort.patients import Patient

    patients = []
    for name, size in {"a": 900, "b": 10, "c": 500, "d": 510, "e": 1}.items():
        path = tmp_path / name
        path.write_bytes(b"x" * size)
        patients.append(Patient(name, name, {"t1n": path}, None))
    assert [patient.id for patient in by_size(patients)] == ["c", "d", "a", "b", "e"]
    assert by_size([]) == []
