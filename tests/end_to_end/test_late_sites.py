"""Hospitals that join after the training: in a simulation, left out in turn, and by command."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lift.tasks.paired.choice import USES
from lift.tasks.paired.contrast import POOLED_FILE, read_site_model
from lift.wire.names import POOLED_CURVES
from tests.end_to_end.tiny_run import (
    PATIENTS,
    SOURCES,
    Outcome,
    TinyRun,
    check_refusal,
    make_patient,
    patient_name,
    run_here,
    write_nifti,
)

CURVES = {"kind": "zrefine", "width": 4, "contrast": "curves"}
SPLIT = {"train": 0.6, "validation": 0.2}
ROWS = ["curves", "local_only", "local_curves", "centralised"]
PAIRS = 2
LARGE = "south"


def site(tiny: TinyRun, name: str, root: Path | None = None, **more: object) -> dict[str, object]:
    return {"name": name, "data": {"layout": "brats", "root": str(root or tiny.site(name))}, **more}


def make_site(folder: Path, patients: int, seed: int) -> Path:
    for index in range(patients):
        name = patient_name(index)
        (folder / name).mkdir(parents=True)
        for channel, voxels in make_patient(np.random.default_rng([seed, index])).items():
            write_nifti(folder / name / f"{name}-{channel}.nii.gz", voxels)
    return folder


def simulated(tiny: TinyRun, out: str, sites: list[dict[str, object]], **more: object) -> Path:
    changes: dict[str, object] = {"plan__mixer": CURVES, "plan__split": SPLIT, "compare": ROWS}
    done = tiny.simulate(out, **(changes | more), sites=sites)
    assert done.code == 0, done.stderr
    return tiny.folder / out


def read(run: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((run / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with enough training patients to share its curves' sums."""
    return make_site(tmp_path_factory.mktemp("large"), 10, 8)


@pytest.fixture(scope="module")
def run(tiny: TinyRun, large: Path) -> Path:
    late = site(tiny, "west", joins="afterwards")
    sites = [site(tiny, "east"), site(tiny, LARGE, large), late]
    return simulated(tiny, "late", sites, calibration_pairs=PAIRS)


def test_a_late_site_takes_no_part_and_is_measured_apart(
    run: Path, tiny: TinyRun, large: Path
) -> None:
    asked = {
        name
        for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        for name in json.loads(line)["asked"]
    }
    assert asked == {"east", LARGE}
    without = simulated(tiny, "late-without", [site(tiny, "east"), site(tiny, LARGE, large)])
    # the mixer, and what everyone pools, are those of the federation without it
    for name in ("mixer.safetensors", POOLED_FILE):
        assert (run / name).read_bytes() == (without / name).read_bytes()
    late, plain = read(run, "metrics.json"), read(without, "metrics.json")
    assert late["pooled"] == plain["pooled"]
    assert late["comparisons"]["pooled"] == plain["comparisons"]["pooled"]
    assert set(late["sites"]) == {"east", LARGE, "west"}
    rows = set(late["sites"]["west"]["methods"])
    assert {"federated_curves", "local_curves", "local_only", "curves", "chosen"} <= rows


def test_the_record_and_the_report_say_who_joined_late(run: Path) -> None:
    record = read(run, "run.json")
    pairs = {entry["name"]: entry["calibration_patients"] for entry in record["sites"]}
    assert pairs == {"east": None, LARGE: None, "west": PAIRS}
    assert set(record["guard"]) == {"east", LARGE}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"joined after the training, with curves from {PAIRS} of its patients" in page
    choice = record["chosen"][0]["west"]
    assert choice["patients"] == PAIRS
    assert {"no_mixer", "federated_curves", "calibrated curves"} <= set(choice["psnr_db"])


def test_the_command_gives_what_the_simulation_measured(
    run: Path, tiny: TinyRun, tmp_path: Path
) -> None:
    split = read(run / "sites" / "west", "split.json")
    few = tmp_path / "few"
    for name in sorted(split["train"])[:PAIRS]:
        shutil.copytree(tiny.site("west") / name, few / name)
    curves = tmp_path / "curves.safetensors"
    done = run_here("lift", "calibrate", few, "--mixer", run, "-o", curves)
    assert done.code == 0, done.stderr
    assert f"{PAIRS} patients of this hospital, " in done.stderr
    choice = read(run, "run.json")["chosen"][0]["west"]
    names = list(choice["psnr_db"])
    use = read_site_model(curves, len(SOURCES)).use
    assert use == USES[names.index(choice["method"])]
    shown = f"{choice['psnr_db'][choice['method']]:.2f} dB"
    assert shown in done.stderr
    # without the pooled sums the same pairs give other curves
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("sites", POOLED_FILE))
    alone = tmp_path / "alone.safetensors"
    done = run_here("lift", "calibrate", few, "--mixer", tmp_path / "run", "-o", alone)
    assert done.code == 0, done.stderr
    assert "sites of the run" not in done.stderr


def test_a_hospital_without_a_pair_takes_the_pooled_curves(
    run: Path, tiny: TinyRun, tmp_path: Path
) -> None:
    curves = tmp_path / "curves.safetensors"
    done = run_here("lift", "calibrate", "--mixer", run, "-o", curves)
    assert done.code == 0, done.stderr
    assert "no pairs of this hospital" in done.stderr
    found = read_site_model(curves, len(SOURCES))
    assert found.curves.any()
    inputs = [f"{name}={tiny.file('west', 1, name)}" for name in SOURCES]
    words: list[str | Path] = ["--mixer", run, "--curves", curves, "-o", tmp_path / "a.nii.gz"]
    assert run_here("lift", "translate", *inputs, *words).code == 0


def test_pooled_curves_name_no_site_and_belong_to_one_run(
    run: Path, tiny: TinyRun, tmp_path: Path
) -> None:
    path = run / POOLED_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    held = safetensors.numpy.load_file(path)
    assert set(held) == set(POOLED_CURVES)
    for name in ("east", LARGE):
        assert name.encode() not in path.read_bytes()
    # east has too few training patients to share
    assert held["curves/patients"].tolist() == [6.0]
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors.numpy.save(held, {"plan_digest": "0" * 64}))
    words: list[str | Path] = ["--mixer", run, "--pooled", other, "-o", tmp_path / "c.safetensors"]
    done: Outcome = run_here("lift", "calibrate", tiny.site("west"), *words)
    check_refusal(done, 3, names=[other.name, "another run"])
    assert not (tmp_path / "c.safetensors").exists()


def test_every_site_is_left_out_once_and_measured_by_itself(tiny: TinyRun) -> None:
    sites = [site(tiny, name) for name in PATIENTS]
    run = simulated(tiny, "left-out", sites, leave_one_site_out=True, compare=["curves"])
    for index, name in enumerate(sorted(PATIENTS)):
        folder = run / "folds" / f"{index:03d}"
        lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        assert {n for line in lines for n in json.loads(line)["asked"]} == set(PATIENTS) - {name}
    table = read(run, "metrics.json")
    assert set(table["sites"]) == set(PATIENTS)
    tested = sum(entry["patients"] for entry in table["sites"].values())
    # all of them are pooled: each was a stranger to the mixer that was used
    assert table["pooled"]["federated_curves"]["psnr_db"]["n"] == tested


def test_with_folds_every_patient_of_every_left_out_site_is_measured(tiny: TinyRun) -> None:
    sites = [site(tiny, name) for name in PATIENTS]
    changes: dict[str, object] = {"folds": 2, "leave_one_site_out": True, "compare": []}
    run = simulated(tiny, "left-out-folds", sites, **changes)
    assert len(list((run / "folds").iterdir())) == 2 * len(PATIENTS)
    table = read(run, "metrics.json")
    counts = {name: entry["patients"] for name, entry in table["sites"].items()}
    assert counts == PATIENTS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"leave_one_site_out": True, "leave_one_out": True}, "leave_one_site_out"),
        ({"leave_one_site_out": True, "clean_phantom": {"patients": 3, "rounds": 1}}, "phantom"),
        ({"participation": "rounds.jsonl", "leave_one_site_out": True}, "participation"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tiny: TinyRun, changes: dict[str, object], words: str
) -> None:
    check_refusal(tiny.simulate("contradiction", **changes), 2, names=[words])


def test_a_federation_of_nobody_is_refused(tiny: TinyRun) -> None:
    late = [site(tiny, name, joins="afterwards") for name in PATIENTS]
    check_refusal(tiny.simulate("nobody", sites=late), 2, names=["join in training"])
    one = [site(tiny, "east")]
    done = tiny.simulate("one-left-out", sites=one, leave_one_site_out=True)
    check_refusal(done, 2, names=["leave_one_site_out needs 2 sites"])
