"""Fewer training patients, the same test patients: table, figure, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lift.config.simulation import SimulationConfig
from lift.errors import ConfigError
from lift_benchmarks import few_patients
from lift_benchmarks.few_patients import FIGURE_FILE, SUMMARY_FILE, drawn, limited
from tests.end_to_end.tiny_run import TinyRun

CURVES = {"kind": "zrefine", "width": 4, "contrast": "curves"}
SPLIT = {"train": 0.6, "validation": 0.2}


def run(tiny: TinyRun, output: Path, **changes: object) -> None:
    settings = tiny.settings("few", plan__mixer=CURVES, plan__split=SPLIT, **changes)
    few_patients.few_patients(settings, output, [1, 2])


@pytest.fixture(scope="module")
def result(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("few")
    run(tiny, output, synthesis_patients=0)
    return output


def cells(result: Path) -> list[dict[str, Any]]:
    found = json.loads((result / SUMMARY_FILE).read_text(encoding="utf-8"))["cells"]
    return list(found)


def test_each_federation_has_so_many_training_patients_and_the_same_test(result: Path) -> None:
    assert [cell["training_patients"] for cell in cells(result)] == [[1, 1], [2, 2], [3, 2]]
    tested = []
    for name in ("train-1", "train-2", "train-all"):
        table = json.loads((result / name / "metrics.json").read_text(encoding="utf-8"))
        tested.append({site: set(rows["no_mixer"]) for site, rows in table["patients"].items()})
        assert not (result / name / "cohorts").exists()
    assert tested[0] == tested[1] == tested[2]
    assert not (result / "cache").exists()
    # nothing is trained in this row, so nothing may differ; in the others it must
    rows = [cell["psnr_db"] for cell in cells(result)]
    assert rows[0]["no_mixer"] == rows[1]["no_mixer"]
    assert rows[0]["federated_curves"] != rows[1]["federated_curves"]


def test_the_same_command_changes_nothing(tiny: TinyRun, result: Path) -> None:
    before = {path: path.read_bytes() for path in result.glob("*.*")}
    assert {path.name for path in before} == {SUMMARY_FILE, FIGURE_FILE}
    run(tiny, result, synthesis_patients=0)
    assert {path: path.read_bytes() for path in result.glob("*.*")} == before


def test_a_figure_says_what_the_volumes_are_and_shows_the_cells(result: Path) -> None:
    whole = drawn(cells(result), phantom=False)
    assert whole.startswith(b"\x89PNG")
    assert whole != drawn(cells(result), phantom=True)
    assert whole != drawn(cells(result)[:2], phantom=False)


def test_settings_without_contrast_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    settings = tiny.settings("few-plain", plan__mixer={**CURVES, "contrast": "none"})
    with pytest.raises(ConfigError) as refused:
        few_patients.few_patients(settings, tmp_path, [1])
    assert "contrast: curves" in refused.value.remedy
    assert not any(tmp_path.iterdir())


def test_only_the_number_of_patients_differs(tiny: TinyRun, tmp_path: Path) -> None:
    settings = SimulationConfig.from_yaml(tiny.settings("few-limited", plan__mixer=CURVES))
    one, everyone = (limited(settings, most, tmp_path) for most in (1, None))
    assert one.plan.split.most_training == 1
    assert everyone.plan == settings.plan
