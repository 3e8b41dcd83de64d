"""Whom the image checks veto takes no part: in a cohort of a site, and in a simulation."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from lift.cohort import vetoes
from lift.cohort.examination import PatientReport, examine_patient
from lift.cohort.patients import Patient
from lift.cohort.reading import Usable, read_patients
from lift.config.plan import GridRule, Plan
from lift.config.site import SiteConfig
from lift.errors import ConfigError, DataError
from lift_client.gate.image_notes import note_overrides
from lift_client.gate.journal import JOURNAL_FILE, Journal, verify
from tests.client.test_one_failure_class import PRIVATE as LOCAL
from tests.end_to_end.tiny_run import SOURCES, TARGET, Outcome, TinyRun
from tests.vetoed import (
    ACCEPTED,
    GREY,
    PATIENTS,
    REASON,
    UNPAIRED,
    VETOED,
    file,
    make_sites,
    name,
    without_vetoed,
)

ACCEPT = {ACCEPTED: REASON}
PLAN = Plan.from_data(
    {"task": {"source": list(SOURCES), "target": TARGET}, "privacy": {"mode": "none"}}, "test"
)
PRIVATE = PLAN.model_copy(update={"privacy": LOCAL})


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_sites(tmp_path_factory.mktemp("vetoed"))


def site(phantoms: TinyRun, folder: Path, of: str = "east", **changes: Any) -> SiteConfig:
    data = {
        "name": of,
        "data": {"layout": "brats", "root": str(phantoms.site(of)), **changes.pop("data", {})},
        "folder": str(folder / "work"),
        "generator": {"bundle": str(phantoms.bundle)},
        "policy": {"privacy_modes": ["none"], **changes.pop("policy", {})},
        **changes,
    }
    return SiteConfig.from_data(data, "test")


def opened(config: SiteConfig, plan: Plan = PLAN) -> Usable[str]:
    return read_patients(config, plan, lambda patient: patient.id)


def refused(usable: Usable[str]) -> dict[str, DataError]:
    return {one.patient: one.reason for one in usable.refusals}


@pytest.mark.parametrize("plan", [PLAN, PRIVATE], ids=["none", "patient-local"])
def test_vetoed_patients_are_left_out_by_name_and_reason(
    phantoms: TinyRun, tmp_path: Path, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    usable = opened(site(phantoms, tmp_path, accept=ACCEPT), plan)
    reasons = refused(usable)
    assert set(reasons) == set(GREY)
    assert set(usable.content) == {name(i) for i in range(1, PATIENTS + 1)} - set(GREY)
    for patient, reason in reasons.items():
        assert patient in reason.what
        assert "background t1n" in reason.seen
        assert "signed" in reason.remedy
        assert "accept" in reason.remedy
        assert any("patient_refused" in line and patient in line for line in caplog.messages)
    assert any(
        "patient_accepted" in line and ACCEPTED in line and REASON in line
        for line in caplog.messages
    )
    unpaired = refused(opened(site(phantoms, tmp_path / "west", "west"), plan))
    assert set(unpaired) == {UNPAIRED}
    assert "pairing" in unpaired[UNPAIRED].seen
    assert "the bodies overlap" in unpaired[UNPAIRED].seen


def test_without_the_checks_everybody_takes_part(phantoms: TinyRun, tmp_path: Path) -> None:
    config = site(phantoms, tmp_path, policy={"image_checks": False})
    assert len(opened(config).content) == PATIENTS
    assert not config.image_reports.exists()


def test_a_patient_is_examined_once(
    phantoms: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = examine_patient

    def counted(patient: Patient, root: Path, grid: GridRule) -> PatientReport:
        seen.append(patient.id)
        return real(patient, root, grid)

    monkeypatch.setattr(vetoes, "examine_patient", counted)
    root = tmp_path / "data"
    shutil.copytree(phantoms.site("east"), root)
    config = site(phantoms, tmp_path, data={"root": str(root)})
    first = refused(opened(config))
    assert sorted(seen) == [name(i) for i in range(1, PATIENTS + 1)]
    seen.clear()
    again = refused(opened(config))
    assert seen == []
    assert set(again) == set(first) == {*GREY, ACCEPTED}
    # other files are other images
    file(root, name(1), TARGET).touch()
    opened(config)
    assert seen == [name(1)]


def test_the_same_voxels_twice_count_without_noise_alone(phantoms: TinyRun, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for channel in (*SOURCES, TARGET):
        for patient, source in ((name(1), 1), (name(7), 1), (name(4), 4)):
            path = file(root, patient, channel)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file(phantoms.site("east"), name(source), channel), path)
    config = site(phantoms, tmp_path, data={"root": str(root)})
    assert set(refused(opened(config))) == {name(1), name(7)}
    # whether somebody takes part must not depend on another patient
    assert not refused(opened(config, PRIVATE))
    # one channel under two names is the patient's own matter
    shutil.copy(file(root, name(4), "t1n"), file(root, name(4), "t2w"))
    assert set(refused(opened(config, PRIVATE))) == {name(4)}
    assert "duplicates" in refused(opened(config, PRIVATE))[name(4)].seen


def test_a_file_that_cannot_be_read_has_its_own_reason_and_is_not_accepted(
    phantoms: TinyRun, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(phantoms.site("west"), root)
    path = file(root, name(1), TARGET)
    path.write_bytes(path.read_bytes()[:2000])
    config = site(phantoms, tmp_path, data={"root": str(root)}, accept={name(1): "it is fine"})

    def read(patient: Patient) -> str:
        if patient.id == name(1):
            raise DataError("cannot use volume", seen="it is cut off")
        return patient.id

    reasons = refused(read_patients(config, PLAN, read))
    assert set(reasons) == {name(1), UNPAIRED}
    assert reasons[name(1)].seen == "it is cut off"


def test_a_site_that_stops_at_bad_files_stops_at_a_veto(phantoms: TinyRun, tmp_path: Path) -> None:
    stopping = {"on_bad_file": "stop"}
    with pytest.raises(DataError, match="image checks veto"):
        opened(site(phantoms, tmp_path, "west", data=stopping))
    assert opened(site(phantoms, tmp_path, "west", data=stopping, accept={UNPAIRED: REASON}))


def test_an_override_without_effect_is_told(
    phantoms: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    opened(site(phantoms, tmp_path, "west", accept={"BraTS-PHA-3": REASON}))
    assert any("accepts_nobody" in line and "BraTS-PHA-3" in line for line in caplog.messages)


def test_overrides_stand_in_the_journal_once(phantoms: TinyRun, tmp_path: Path) -> None:
    config = site(phantoms, tmp_path, accept=ACCEPT)
    path = config.folder / JOURNAL_FILE

    def purposes(config: SiteConfig) -> list[str]:
        # twice, as after a restart
        for _ in range(2):
            note_overrides(Journal(path), config)
        return [line.purpose for line in verify(path).lines]

    (said,) = purposes(config)
    assert REASON in said
    assert ACCEPTED not in path.read_text(encoding="utf-8")
    other = config.model_copy(update={"accept": {ACCEPTED: "another reason"}})
    assert len(purposes(other)) == 2
    off = config.policy.model_copy(update={"image_checks": False})
    assert "off" in purposes(config.model_copy(update={"policy": off}))[2]
    assert "on again" in purposes(config)[3]
    assert len(purposes(config.model_copy(update={"policy": off}))) == 5
    assert not any("Repetition" in line for line in purposes(config))
    plain = site(phantoms, tmp_path / "plain")
    note_overrides(Journal(plain.folder / JOURNAL_FILE), plain)
    assert verify(plain.folder / JOURNAL_FILE).lines == ()


def test_a_reason_names_nobody(phantoms: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        site(phantoms, tmp_path, accept={ACCEPTED: f"{ACCEPTED} is fine"})
    assert "names the patient" in caught.value.seen
    # part of a word is no name
    assert site(phantoms, tmp_path, accept={"7": "17 slices are enough"}).accept


def test_a_failure_of_the_examination_is_no_verdict_for_good(
    phantoms: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(patient: Patient, root: Path, grid: GridRule) -> PatientReport:
        if patient.id == name(1):
            raise MemoryError
        return examine_patient(patient, root, grid)

    config = site(phantoms, tmp_path, "west")
    with monkeypatch.context() as patched:
        patched.setattr(vetoes, "examine_patient", failing)
        assert "memory was not enough" in refused(opened(config))[name(1)].seen
    assert set(refused(opened(config))) == {UNPAIRED}


def simulated(made: TinyRun, out: str, **changes: object) -> tuple[Outcome, Path]:
    sites = [
        {
            "name": of,
            "data": {"layout": "brats", "root": str(made.site(of))},
            "accept": ACCEPT if of == "east" else {},
        }
        for of in VETOED
    ]
    done = made.simulate(out, **{"sites": sites, "image_checks": True, **changes})
    assert done.code == 0, done.stderr
    return done, made.folder / out


def test_a_simulation_leaves_them_out_too(phantoms: TinyRun, tmp_path: Path) -> None:
    done, out = simulated(phantoms, "checked")
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    page = (out / "report.html").read_text(encoding="utf-8")
    for entry in record["sites"]:
        assert set(entry["left_out"]) == set(VETOED[entry["name"]])
        assert entry["refused"] == len(VETOED[entry["name"]])
        for patient, why in entry["left_out"].items():
            assert patient in done.stderr + done.stdout
            assert patient in page
            assert ("background" in why) == (entry["name"] == "east")
    # as if they had never been there, bit for bit
    clean = without_vetoed(phantoms, tmp_path / "clean")
    _, other = simulated(clean, "clean", image_checks=False)
    mixer = (out / "mixer.safetensors").read_bytes()
    assert mixer == (other / "mixer.safetensors").read_bytes()
    # and not as if nobody had looked
    _, unchecked = simulated(phantoms, "unchecked", image_checks=False)
    assert mixer != (unchecked / "mixer.safetensors").read_bytes()


def test_folds_are_made_of_those_who_take_part(
    phantoms: TinyRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _, out = simulated(phantoms, "folds", folds=2, synthesis_patients=0)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    held_out = {of: found["patients"] for of, found in metrics["sites"].items()}
    assert held_out == {of: PATIENTS - len(VETOED[of]) for of in VETOED}
    looks = [line for line in caplog.messages if "event=images_checked" in line]
    anew = [line for line in looks if f"examined_now={PATIENTS} " in line]
    # whoever was examined for one fold was so for all
    assert len(anew) == len(VETOED)
    assert all("examined_now=0 " in line for line in looks if line not in anew)
    assert len(looks) > len(anew)


@pytest.mark.real_data
def test_a_real_hospitals_grey_background_is_vetoed_and_nobody_else(
    real_data: Path, tmp_path: Path
) -> None:
    root = real_data / "tcga_lgg_four_sites"
    found: dict[str, DataError] = {}
    for of in ("cs", "du", "fg", "ht"):
        data = {
            "name": of,
            "data": {"layout": "table", "root": str(root), "table": str(root / f"{of}.csv")},
            "folder": str(tmp_path / of),
            "generator": {"bundle": str(tmp_path)},
            "policy": {"privacy_modes": ["none"]},
        }
        task = {"source": ["t1n", "t1c"], "target": "t2f"}
        plan = Plan.from_data({"task": task, "privacy": {"mode": "none"}}, "test")
        found |= refused(opened(SiteConfig.from_data(data, "test"), plan))
    assert set(found) == {"FG-A4MU"}
    assert "background t1n" in found["FG-A4MU"].seen
