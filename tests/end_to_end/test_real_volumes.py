"""The preset on real volumes: every patient is held out once and comes back on its own grid.

The volumes are no part of the project. `LIFT_TEST_DATA` says where they lie; without them the
test is skipped, and says so. It takes two steps a round: what is learned is `make real`'s.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import pytest
import yaml

from tests.end_to_end.tiny_run import run_here

PROJECT: Final = Path(__file__).parents[2]
PRESET: Final = PROJECT / "configs/presets/real-flair.yaml"
DATA: Final = Path(os.environ.get("LIFT_TEST_DATA") or PROJECT / "../shared/data").resolve()

pytestmark = pytest.mark.skipif(
    not (DATA / "open_ms_mni_4contrast").is_dir(),
    reason=f"no real volumes in {DATA}: set LIFT_TEST_DATA to run the preset on them",
)


def _short(folder: Path) -> tuple[Path, dict[str, Any]]:
    settings = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    settings["plan"]["training"]["steps"] = 2
    settings["plan"]["federation"]["rounds"] = 1
    settings["compare"] = []
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path, settings


def _targets(settings: dict[str, Any]) -> dict[tuple[str, str], Path]:
    """(site, patient) -> its acquired FLAIR."""
    found = {}
    for site in settings["sites"]:
        root = DATA / Path(site["data"]["root"]).name
        with (PROJECT / site["data"]["table"]).open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                found[site["name"], row["patient"]] = root / row["t2f"]
    return found


def test_every_real_patient_gets_its_flair_on_its_own_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIFT_TEST_DATA", str(DATA))
    # the preset's paths are those of someone who works in the project's folder
    monkeypatch.chdir(PROJECT)
    path, settings = _short(tmp_path)
    out = tmp_path / "run"

    outcome = run_here("lift-simulate", "--config", path, "--output", out)

    assert outcome.code == 0, outcome
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert {"no_mixer", "z_median", "z_filter", "federated_curves"} <= set(metrics["pooled"])
    acquired = _targets(settings)
    assert metrics["pooled"]["federated_curves"]["psnr_db"]["n"] == len(acquired) == 5
    for (site, patient), target in acquired.items():
        written = nibabel.load(out / "synthesis" / site / patient / "federated_curves.nii.gz")
        original = nibabel.load(target)
        assert written.shape == original.shape
        np.testing.assert_allclose(written.affine, original.affine, atol=1e-4)
        voxels = np.asarray(written.dataobj)
        assert np.isfinite(voxels).all()
        assert voxels.max() > 0
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    # one federation for each patient, none of which has a validation patient to spare: training
    # patients judge, two of them at least
    told = [site for fold in run["folds"] for site in fold.values()]
    assert {site["n"] for site in told} == {0, 2}
    assert {site["verdict"] for site in told if site["n"] == 0} == {"undecided"}
    assert {site["judged_on"] for site in told if site["n"]} == {"validation_and_training"}
    shutil.rmtree(out)
