"""The recorded run of the browser's tests has the structure that the demo's command leaves."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from lift.config.phantom import SCANNERS
from tests.end_to_end.tiny_run import run_here
from tests.structure import Structure, differences, structure
from tests.web.recorded_run import DEMO, SECTIONS, write_recorded_run

PATIENTS = 3
SPACING_MM = 6.0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recorded_run(tmp_path_factory.mktemp("recorded"))


def coarse_demo(folder: Path) -> Path:
    """The demo's own settings with one site, three coarse phantoms and one short round."""
    data: dict[str, Any] = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    site = data["sites"][0]
    scanner = SCANNERS[site["data"]["scanner"]].model_dump(mode="json")
    scanner |= {"slice_spacing_mm": SPACING_MM, "flair_thickness_mm": SPACING_MM}
    site["data"] |= {"scanner": scanner, "patients": PATIENTS, "in_plane_mm": 4.0}
    data |= {"sites": [site], "clean_phantom": {"patients": PATIENTS, "rounds": 1}}
    data["plan"] |= {
        "split": {"train": 0.34, "validation": 0.33},
        "threads": 1,
        "training": {"steps": 2, "patients_per_step": 2, "window": [6, 16, 16]},
        "federation": {"rounds": 1},
    }
    path = folder / "coarse.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    done = run_here("lift-simulate", "--config", path, "--output", folder / "run")
    assert done.code == 0, done
    return folder / "run"


def run_structure(folder: Path) -> Structure:
    """Of all that a report reads of a run folder."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rounds = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    volumes = [volume_facts(folder, path) for path in (folder / "synthesis").glob("*/*/*")]
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    patients = {
        patient
        for methods in metrics["patients"].values()
        for rows in methods.values()
        for patient in rows
    }
    content = {
        "run.json": record,
        "metrics.json": metrics,
        "rounds.jsonl": [json.loads(line) for line in rounds],
    }
    found = structure(content, {*(site["name"] for site in record["sites"]), *patients})
    for name, facts in volumes:
        found.setdefault(f"/synthesis/NAME/PATIENT/{name}", set()).add(facts)
    return found


def volume_facts(folder: Path, path: Path) -> tuple[str, str]:
    """A volume's name, and how its file holds numbers and of what magnitude."""
    image: Any = nibabel.load(path)
    brightest = float(np.max(np.asarray(image.dataobj)))
    units = image.header.get_xyzt_units()[0]
    magnitude = round(math.log10(brightest))
    return path.name, f"{image.ndim}D {image.get_data_dtype()} in {units}, about 1e{magnitude}"


def test_the_recorded_run_has_the_structure_that_the_demos_command_leaves(
    recorded: Path, tmp_path: Path
) -> None:
    real = coarse_demo(tmp_path)
    assert differences(run_structure(real), run_structure(recorded)) == []
    page = (real / "report.html").read_text(encoding="utf-8")
    assert tuple(re.findall(r'<section id="([a-z]+)"', page)) == SECTIONS


def lose_a_column(folder: Path) -> None:
    text = (folder / "rounds.jsonl").read_text(encoding="utf-8")
    (folder / "rounds.jsonl").write_text(text.replace('"sent_again"', '"again"'), encoding="utf-8")


def lose_a_metric(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    del metrics["second_phantom"]["z_median"]["tpr"]
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def turn_a_number_into_text(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["sites"][1]["refused"] = "none"
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


def lose_a_volume(folder: Path) -> None:
    for path in folder.glob("synthesis/*/*/z_filter.nii.gz"):
        path.unlink()


def store_a_mask_as_float(folder: Path) -> None:
    path = next(folder.glob("synthesis/*/*/mask.nii.gz"))
    image: Any = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine), path)


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (lose_a_column, "/rounds.jsonl/*/again"),
        (lose_a_metric, "/metrics.json/second_phantom/z_median/tpr"),
        (turn_a_number_into_text, "/run.json/sites/*/refused"),
        (lose_a_volume, "/synthesis/NAME/PATIENT/z_filter.nii.gz"),
        (store_a_mask_as_float, "/synthesis/NAME/PATIENT/mask.nii.gz"),
    ],
)
def test_another_structure_is_seen(
    recorded: Path, tmp_path: Path, damage: Callable[[Path], None], where: str
) -> None:
    other = shutil.copytree(recorded, tmp_path / "other")
    assert differences(run_structure(other), run_structure(recorded)) == []
    damage(other)
    found = differences(run_structure(other), run_structure(recorded))
    assert any(line.startswith(where) for line in found), found
