"""The bench of what privacy costs, on few coarse phantoms: cells, resume, table, figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import lift_benchmarks.utility.__main__ as bench
from lift.config.privacy import PatientGradients
from lift.privacy.accounting import Mechanism, epsilon
from lift_benchmarks.utility.cells import (
    Cell,
    UtilityConfig,
    cell_config,
    list_cells,
    public_delta,
    training_patients,
)
from lift_benchmarks.utility.summary import summarise_cells
from tests.end_to_end.tiny_run import ENTRY_POINTS, bytes_under, run_here

SHIPPED = Path(bench.__file__).parent / "settings.yaml"
PATIENTS, EPSILON = 12, 8.0


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    data |= {"cohorts": [PATIENTS], "held_out": 1, "epsilons": [EPSILON], "batch": 6}
    for site in data["simulation"]["sites"]:
        site["data"]["in_plane_mm"] = 4.0
    plan = data["simulation"]["plan"]
    plan["federation"]["rounds"] = 2
    plan["training"] |= {"steps": 2, "window": [6, 16, 16], "patients_per_step": 2}
    path = tmp_path_factory.mktemp("utility") / "small.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def test_every_cell_runs_once_and_the_table_has_its_rows(settings: Path) -> None:
    ENTRY_POINTS[bench.PROGRAM] = bench.main
    out = settings.parent / "out"
    words = ("--config", settings, "--output", out)
    done = run_here(bench.PROGRAM, *words)
    assert done.code == 0, done
    for word in ("no_mixer", "z_median", "z_filter", "patient-central", "PHANTOM", "coherence"):
        assert word in done.stdout, done.stdout
    assert (out / "summary.png").stat().st_size > 10_000
    cells = summarise_cells(out)
    assert len(cells) == 5
    for cell in cells:
        # the difference of means is the mean of differences
        gain = cell.gains["no_mixer"]["psnr_db"]
        values = cell.values
        direct = values["federated"]["psnr_db"] - values["no_mixer"]["psnr_db"]
        assert gain.value == pytest.approx(direct)
        assert gain.n == 3
        assert (cell.kept["psnr_db"] is None) == (cell.mode == "none")
        stored = json.loads((out / "cells" / f"{_name(cell.mode, cell.epsilon)}.json").read_text())
        if cell.epsilon is not None:
            assert stored["epsilon_spent"] <= EPSILON
            assert stored["epsilon_spent"] > 0.97 * EPSILON
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert "PHANTOM" in summary["statement"]
    before = bytes_under(out / "cells")
    again = run_here(bench.PROGRAM, *words)
    assert again.code == 0, again
    assert again.stderr.count("kept") == 5
    assert bytes_under(out / "cells") == before


def _name(mode: str, level: float | None) -> str:
    suffix = "" if mode == "none" else "-inf" if level is None else f"-{level:g}"
    return f"{PATIENTS}-{mode}{suffix}"


def test_the_shipped_cells_promise_what_they_say() -> None:
    config = UtilityConfig.from_yaml(SHIPPED)
    cells = list_cells(config)
    assert len(cells) == 27
    assert len({cell.name for cell in cells}) == 27
    for mode in ("patient-local", "patient-central"):
        plan = cell_config(config, Cell(200, mode, 8.0)).plan
        privacy = plan.privacy
        assert isinstance(privacy, PatientGradients)
        assert privacy.start is not None
        assert privacy.delta == 1e-4
        assert privacy.public_patients == {"north": 67, "harbour": 67, "valley": 66}
        steps = Mechanism(privacy.noise_multiplier, privacy.sampling_rate, plan.total_steps)
        spent = epsilon([steps, Mechanism(privacy.start.noise_multiplier)], privacy.delta)
        assert 7.9 < spent <= 8.0
        assert plan.total_steps == 120


@pytest.mark.parametrize(
    ("patients", "delta"), [(60, 1e-3), (100, 1e-3), (101, 1e-4), (600, 1e-4), (1000, 1e-4)]
)
def test_delta_is_below_one_over_ten_times_the_patients(patients: int, delta: float) -> None:
    assert public_delta(patients) == delta
    assert delta <= 1 / (10 * patients) < 10 * delta * 1.001


def test_patients_are_dealt_evenly() -> None:
    config = UtilityConfig.from_yaml(SHIPPED)
    for patients in (60, 200, 601):
        dealt = training_patients(config, patients)
        assert sum(dealt.values()) == patients
        assert max(dealt.values()) - min(dealt.values()) <= 1
