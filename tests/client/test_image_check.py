"""Planted faults are found by name, sound patients are let through, and nothing is read twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives import hashes

from lift.cohort import examination as examine
from lift.cohort import vetoes
from lift.cohort.examination import PatientReport
from lift.cohort.patients import Patient
from lift.cohort.phantom.write import write_phantom_cohort
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import FirstSourceGrid, GridRule
from lift.config.site import SiteConfig
from lift.volumes.resampling import Grid, resample, with_spacing
from lift_client import cli
from lift_client.check import image_check, image_view
from lift_client.check.data_card import make_card
from lift_client.check.image_check import CohortReport, examine_cohort
from lift_client.gate.journal import verify
from tests.client.test_preflight import make_authority, pem

CHANNELS = ["t1n", "t2w", "t2f"]
SOUND = 3


def name(index: int) -> str:
    return f"BraTS-PHA-{index:05d}-000"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    config = PhantomCohortConfig(
        patients=SOUND + 7,
        scanner="north",
        seed=71,
        corruption=False,
        in_plane_mm=4.0,
        channels=("t1n", "t2w", "t2f"),
    )
    write_phantom_cohort(config, folder, workers=1)
    return folder


def file(root: Path, index: int, channel: str) -> Path:
    return root / name(index) / f"{name(index)}-{channel}.nii.gz"


def change(path: Path, how: str) -> None:
    image = nibabel.load(path)
    voxels, affine = np.asanyarray(image.dataobj), image.affine.copy()
    if how == "mirrored":
        voxels = voxels[::-1].copy()
    elif how == "moved":
        voxels = np.roll(voxels, 4, axis=1)
    elif how == "elsewhere":
        affine[0, 3] += 5.0
    made = nibabel.Nifti1Image(voxels, affine)
    made.header["descrip"] = b"PHANTOM, simulated, no patient"
    if how == "named":
        made.header["aux_file"] = b"Doe^Jane"
    nibabel.save(made, path)


@pytest.fixture(scope="module")
def planted(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    """Three sound patients and seven with a fault each, which no test looks at or changes."""
    folder = tmp_path_factory.mktemp("planted")
    root = folder / "data"
    shutil.copytree(phantoms, root)
    change(file(root, 4, "t2w"), "mirrored")
    change(file(root, 5, "t2f"), "moved")
    change(file(root, 6, "t2w"), "elsewhere")
    change(file(root, 7, "t1n"), "named")
    path = file(root, 8, "t2f")
    path.write_bytes(path.read_bytes()[:2000])
    file(root, 9, "t2w").unlink()
    for channel in CHANNELS:
        # another number format and another name: the same voxels
        source = nibabel.load(file(root, 1, channel))
        copy = nibabel.Nifti1Image(np.asanyarray(source.dataobj).astype(np.float32), source.affine)
        nibabel.save(copy, file(root, 10, channel))
    return site_in(folder)


@pytest.fixture
def cohort(planted: SiteConfig, tmp_path: Path) -> SiteConfig:
    """A copy of the planted patients, which nobody has looked at yet."""
    shutil.copytree(planted.data.root, tmp_path / "data")
    return site_in(tmp_path)


@pytest.fixture(scope="module")
def first_look(planted: SiteConfig) -> CohortReport:
    """What is said of the planted patients; the reports of each lie in the site's folder."""
    return examine_cohort(planted, CHANNELS, workers=1)


@pytest.fixture
def looked_at(cohort: SiteConfig, planted: SiteConfig, first_look: CohortReport) -> SiteConfig:
    """A copy of the planted patients with the reports of the first look."""
    assert first_look.kept == 0
    shutil.copytree(planted.folder / "check", cohort.folder / "check")
    return cohort


def site_in(folder: Path) -> SiteConfig:
    return SiteConfig.from_data(
        {
            "name": "north",
            "data": {"layout": "brats", "root": str(folder / "data")},
            "folder": str(folder / "work"),
            "generator": {"builtin": "phantom-t1n-t1c-t2w-t2f"},
            "policy": {"privacy_modes": ["none"]},
        },
        "test",
    )


def by_name(report: CohortReport) -> dict[str, PatientReport]:
    return {patient.patient: patient for patient in report.patients}


def test_every_planted_fault_is_found_and_none_invented(
    first_look: CohortReport, capsys: pytest.CaptureFixture[str]
) -> None:
    found = by_name(first_look)
    assert len(found) == SOUND + 7
    checks = {
        patient: {(remark.check, remark.channel) for remark in report.remarks}
        for patient, report in found.items()
    }
    assert checks[name(2)] == checks[name(3)] == set()
    assert found[name(4)].verdict == "veto"
    assert ("pairing", "t2w") in checks[name(4)]
    assert ("pairing", "t2f") in checks[name(5)]
    assert found[name(5)].verdict == "veto"
    assert checks[name(6)] == {("one grid", "t2w")}
    assert checks[name(7)] == {("identifiers", "t1n")}
    assert found[name(7)].verdict == "warn"
    assert checks[name(8)] == {("readable", "t2f")}
    assert checks[name(9)] == {("files", "")}
    same = {("duplicates", channel) for channel in CHANNELS}
    assert checks[name(1)] == checks[name(10)] == same
    report = CohortReport(tuple(found.values()), 0)
    assert image_view.verdict(report).status == "warning"
    image_view.show(report)
    shown = capsys.readouterr().out
    for index in (1, 4, 5, 6, 7, 8, 9, 10):
        assert name(index) in shown
    assert name(2) not in shown
    assert "Doe" not in shown
    assert "2 can be used, 1 with a warning, 7 cannot" in shown


def test_channels_on_several_grids_are_compared_where_the_plan_resamples(
    cohort: SiteConfig,
) -> None:
    for index in (1, 3, 4, 5, 7, 8, 9, 10):
        shutil.rmtree(cohort.data.root / name(index))
    path = file(cohort.data.root, 2, "t2w")
    image = nibabel.load(path)
    own = Grid(image.shape, image.affine)
    coarser = with_spacing(own, (5.0, 5.0, 4.0), "t2w")
    made = resample(np.asanyarray(image.dataobj), own, coarser)
    nibabel.Nifti1Image(made, coarser.affine).to_filename(path)
    found = by_name(examine_cohort(cohort, CHANNELS, workers=1))
    assert {remark.check for remark in found[name(2)].remarks} == {"one grid"}
    assert "preprocessing.grid" in found[name(2)].remarks[0].remedy
    planned = by_name(examine_cohort(cohort, CHANNELS, grid=FirstSourceGrid(), workers=1))
    assert planned[name(2)].verdict == "use"
    # its header moved it: another grid, and no longer the same place
    (remark,) = planned[name(6)].remarks
    assert (remark.check, remark.channel, remark.verdict) == ("pairing", "t2w", "veto")


def test_unchanged_files_are_not_looked_at_again(
    looked_at: SiteConfig, first_look: CohortReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = looked_at
    seen: list[str] = []
    real = examine.examine_patient

    def counted(patient: object, root: Path, grid: GridRule) -> PatientReport:
        seen.append(patient.id)  # type: ignore[attr-defined]  # a patient
        return real(patient, root, grid)  # type: ignore[arg-type]

    monkeypatch.setattr(vetoes, "examine_patient", counted)
    again = examine_cohort(cohort, CHANNELS, workers=1)
    assert seen == []
    assert again.patients == first_look.patients
    change(file(cohort.data.root, 2, "t2w"), "mirrored")
    third = by_name(examine_cohort(cohort, CHANNELS, workers=1))
    assert seen == [name(2)]
    assert third[name(2)].verdict == "veto"
    (broken, *_) = sorted((cohort.folder / "check").iterdir())
    broken.write_text("{")
    seen.clear()
    examine_cohort(cohort, CHANNELS, workers=1)
    assert len(seen) == 1


def test_many_processes_find_the_same_as_one(cohort: SiteConfig, first_look: CohortReport) -> None:
    steps: list[tuple[int, int]] = []
    two = examine_cohort(cohort, CHANNELS, workers=2, progress=lambda *at: steps.append(at))
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]

    def without_time(report: CohortReport) -> list[dict[str, object]]:
        return [patient.model_dump(exclude={"seconds", "peak_mb"}) for patient in report.patients]

    assert without_time(first_look) == without_time(two)


def test_the_command_says_what_to_mend_and_goes_on(
    looked_at: SiteConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort = looked_at
    # one patient is still to be looked at
    shutil.copy(file(cohort.data.root, 3, "t2f"), file(cohort.data.root, 5, "t2f"))
    authority = make_authority().certificate
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "ca.pem").write_bytes(pem(authority))
    content = {
        "federation": "trial",
        "site": "north",
        "address": "127.0.0.1:1",
        "ca_sha256": authority.fingerprint(hashes.SHA256()).hex(),
        "generator_fingerprint": "a" * 64,
        "task": {"source": CHANNELS[:2], "target": CHANNELS[2]},
    }
    (kit / "kit.json").write_text(json.dumps(content))
    site = tmp_path / "site.yaml"
    data = json.loads(cohort.model_dump_json(exclude_none=True))
    site.write_text(yaml.safe_dump(data | {"kit": str(kit), "key": str(tmp_path / "site.key")}))
    words = ["lift-client", "check", "--quick", "--images", "--json", "--site", str(site)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        cli.main()
    found = json.loads(capsys.readouterr().out)
    verdicts = {patient["patient"]: patient["verdict"] for patient in found["patients"]}
    assert verdicts[name(2)] == "use"
    assert verdicts[name(4)] == "veto"
    (images,) = [check for check in found["checks"] if check["check"] == "images"]
    assert images["status"] == "warning"
    # nothing was shared without being asked for, and nobody can be asked here
    card = found["card"]
    assert (card["persons"], card["floor"]) == (10, 5)
    work = cohort.folder
    assert not (work / "data-card.json").exists()
    monkeypatch.setattr(sys, "argv", [*words, "--share-card"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "--yes" in capsys.readouterr().err
    assert not (work / "data-card.json").exists()
    monkeypatch.setattr(sys, "argv", [*words, "--share-card", "--yes"])
    with pytest.raises(SystemExit):
        cli.main()
    shared = json.loads((work / "data-card.json").read_text())
    assert json.loads(capsys.readouterr().out)["card"] == shared == card
    (line,) = verify(work / "journal.jsonl").lines
    assert line.card is not None
    assert line.card.model_dump(mode="json") == shared


def test_reports_stay_readable_as_json(looked_at: SiteConfig) -> None:
    paths = list((looked_at.folder / "check").iterdir())
    assert paths
    for path in paths:
        assert json.loads(path.read_text(encoding="utf-8"))["patient"].startswith("BraTS-PHA")


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (ZeroDivisionError("Doe^Jane"), "ZeroDivisionError"),
        (MemoryError("Doe^Jane"), "memory was not enough"),
    ],
)
def test_a_fault_in_one_patient_does_not_stop_the_others(
    cohort: SiteConfig, monkeypatch: pytest.MonkeyPatch, error: Exception, seen: str
) -> None:
    for index in (1, 4, 5, 6, 7, 8, 9, 10):
        shutil.rmtree(cohort.data.root / name(index))
    real = examine.examine_patient

    def faulty(patient: object, root: Path, grid: GridRule) -> PatientReport:
        if patient.id == name(3):  # type: ignore[attr-defined]  # a patient
            raise error
        return real(patient, root, grid)  # type: ignore[arg-type]

    monkeypatch.setattr(vetoes, "examine_patient", faulty)
    found = by_name(examine_cohort(cohort, CHANNELS, workers=1))
    (remark,) = found[name(3)].remarks
    assert remark.verdict == "veto"
    assert "could not be examined" in remark.seen
    assert seen in remark.seen
    assert ("report it" in remark.remedy) == ("memory" not in seen)
    assert "Doe" not in str(found[name(3)])
    assert found[name(2)].verdict == "use"


def test_refused_examinations_of_one_person_are_one_person_of_the_card(tmp_path: Path) -> None:
    config = site_in(tmp_path)
    for visit in range(5):
        name = f"BraTS-TST-00001-{visit:03d}"
        folder = config.data.root / name
        folder.mkdir(parents=True)
        (folder / f"{name}-{CHANNELS[0]}.nii.gz").touch()
    report = examine_cohort(config, CHANNELS, workers=1)
    assert len(report.patients) == 5
    assert {one.subject for one in report.patients} == {"BraTS-TST-00001"}
    card = make_card(report.patients, CHANNELS, site="north", floor=5, day="2026-11-23")
    # five of five: nothing of a single person is told
    assert (card.persons, card.vetoed) == (0, 0)


def dies_on_some(patient: Patient, root: Path, grid: GridRule) -> PatientReport:
    """As `examined`, in a process that the system kills at two of the patients."""
    if patient.id in {name(1), name(3)}:
        os.kill(os.getpid(), signal.SIGKILL)
    return PatientReport(patient=patient.id, subject=patient.subject, files=str(root) + str(grid))


def dies_once(patient: Patient, root: Path, grid: GridRule) -> PatientReport:
    """As `examined`, killed the first time that it looks at one patient."""
    mark = root.parent / "died"
    if patient.id == name(2) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return PatientReport(patient=patient.id, subject=patient.subject, files=str(root) + str(grid))


@pytest.mark.parametrize("workers", [None, 2, 3])
def test_a_killed_process_vetoes_its_patient_and_the_others_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int | None
) -> None:
    for index in range(5):
        for channel in CHANNELS:
            file(tmp_path / "data", index, channel).parent.mkdir(parents=True, exist_ok=True)
            file(tmp_path / "data", index, channel).touch()
    site = site_in(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(image_check, "examined", dies_on_some)
    seen: list[tuple[int, int]] = []
    report = examine_cohort(
        site, CHANNELS, workers=workers, progress=lambda at, total: seen.append((at, total))
    )
    verdicts = {patient.patient: patient.verdict for patient in report.patients}
    vetoed = {name(1), name(3)}
    assert verdicts == {name(i): "veto" if name(i) in vetoed else "use" for i in range(5)}
    remark = by_name(report)[name(1)].remarks[0]
    assert "could not be examined" in remark.seen
    assert "memory" in remark.seen
    assert seen == [(at, 5) for at in range(1, 6)]
    # what was judged is kept, and the next run looks again at those alone that were not
    kept = list((site.folder / "check").glob("*.json"))
    assert len(kept) == 3


def test_a_patient_whose_process_is_killed_once_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(4):
        for channel in CHANNELS:
            file(tmp_path / "data", index, channel).parent.mkdir(parents=True, exist_ok=True)
            file(tmp_path / "data", index, channel).touch()
    monkeypatch.setattr(image_check, "examined", dies_once)
    report = examine_cohort(site_in(tmp_path), CHANNELS, workers=2)
    assert (tmp_path / "died").exists()
    assert [patient.verdict for patient in report.patients] == ["use"] * 4
