"""Both public benchmarks from a phantom folder in the official layout to the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import lift_benchmarks.public.__main__ as public
from lift.csv_tables import read_table
from lift_benchmarks.public.folders import Benchmark
from lift_benchmarks.public.phantoms import write_official
from tests.end_to_end.tiny_run import ENTRY_POINTS, bytes_under, check_refusal, run_here

ENTRY_POINTS[public.PROGRAM] = public.main
FOUR_MM = 4.0


def _settings(path: Path, *, sources: int, mask: str) -> Path:
    data = {
        "division": {"sites": 2, "public_share": 0.25},
        "network": {"name": "unet", "width": 4, "multipliers": [1, 2], "n_source": sources},
        "pretraining": {"steps": 3, "batch_slices": 2, "window": [32, 32], "threads": 1},
        "preprocessing": {"mask": mask},
        "plan": {
            "threads": 1,
            "split": {"train": 0.4, "validation": 0.2},
            "mixer": {"width": 2},
            "training": {"steps": 2, "patients_per_step": 1, "window": [6, 16, 16]},
            "federation": {"rounds": 1},
            "privacy": {"mode": "none"},
        },
        "synthesis_patients": 0,
        "image_checks": False,
    }
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def _persons(out: Path) -> dict[str, set[str]]:
    """Table -> its persons."""
    return {
        path.stem: {row.cells["subject"] for row in read_table(path, ["patient", "subject"]).rows}
        for path in (out / "tables").glob("*.csv")
    }


def _check_run(out: Path, said: str, metric: str) -> dict[str, Any]:
    """What every run of a benchmark on phantoms leaves, whichever it is."""
    found: dict[str, Any] = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))
    report = (out / "run" / "report.html").read_text(encoding="utf-8")
    assert found["phantom"] is True
    assert {"no_mixer", "z_filter", "federated_curves"} <= set(found["methods"])
    assert found["methods"]["no_mixer"][metric]["n"] == found["held_out"]
    # every output says what the volumes are, and that nobody's figures compare with theirs
    for text in (said, report, json.dumps(found), (out / "simulation.yaml").read_text()):
        assert "PHANTOM" in text
    for text in (said, report):
        assert "No published figure can be compared" in text.replace("\n", " ")
    for row in found["published"]["rows"]:
        assert row["source"]
        assert row["differs"].endswith(".")
        assert f"<bdi>{row['source']}</bdi>" in report
    # nobody is in two places
    persons = _persons(out)
    assert sum(map(len, persons.values())) == len(set().union(*persons.values()))
    assert len(persons["public"]) >= 2
    return found


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Benchmark], Path]:
    """Phantoms in an official layout, written once."""
    made: dict[Benchmark, Path] = {}

    def folder(benchmark: Benchmark) -> Path:
        if benchmark not in made:
            made[benchmark] = tmp_path_factory.mktemp("official") / "download"
            write_official(made[benchmark], benchmark, year="2025", persons=4, in_plane_mm=FOUR_MM)
        return made[benchmark]

    return folder


def test_brats_runs_from_the_official_folder_to_the_table_and_resumes(
    official: Callable[[Benchmark], Path], tmp_path: Path
) -> None:
    data, out = official("brats"), tmp_path / "out"
    settings = _settings(tmp_path / "tiny.yaml", sources=3, mask="nonzero")
    words = ("brats", "--data", data, "--settings", settings, "--output", out)
    done = run_here(public.PROGRAM, *words, "--missing", "t1c")
    assert done.code == 0, done
    found = _check_run(out, done.stdout, "psnr_crop_db")
    assert "keyed hash" in done.stderr
    assert "t1c missing" in found["title"]
    # two time points of one person: twelve examinations of eleven persons
    persons = _persons(out)
    assert sum(map(len, persons.values())) == 11
    assert any("BraTS-PHA-00000" in people for people in persons.values())
    before = bytes_under(out, without=("log.txt",))
    again = run_here(public.PROGRAM, *words, "--missing", "t1c")
    assert again.code == 0, again
    assert "already complete" in again.stderr
    assert bytes_under(out, without=("log.txt",)) == before
    # another task in the same folder would mix two results
    check_refusal(
        run_here(public.PROGRAM, *words, "--missing", "t2w"), 3, names=["cannot resume", "--output"]
    )
    assert bytes_under(out, without=("log.txt",)) == before


def test_synthrad_runs_from_the_official_folder_to_the_table(
    official: Callable[[Benchmark], Path], tmp_path: Path
) -> None:
    data, out = official("synthrad"), tmp_path / "out"
    assert sorted(path.name for path in (data / "Task1/HN/1HNA001").iterdir()) == [
        "ct.mha",
        "mask.mha",
        "mr.mha",
    ]
    settings = _settings(tmp_path / "tiny.yaml", sources=1, mask="file")
    done = run_here(
        public.PROGRAM, "synthrad", "--data", data, "--settings", settings, "--output", out
    )
    assert done.code == 0, done
    found = _check_run(out, done.stdout, "mae")
    assert "contributing centres" in done.stderr
    assert set(_persons(out)) == {"public", "site-A", "site-B", "site-C"}
    assert found["methods"]["no_mixer"]["mae"]["unit"] == "HU"
    for metric in ("mae_bone", "mae_soft", "bone_dice", "psnr_db", "ssim", "ms_ssim_ct"):
        assert metric in found["methods"]["z_filter"]


def test_a_folder_of_the_other_benchmark_is_explained_at_the_command_line(
    official: Callable[[Benchmark], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run_here(
        public.PROGRAM, "brats", "--data", official("synthrad"), "--quick", "--output", out
    )
    check_refusal(done, 3, names=["12 examinations of SynthRAD", "needed:", "make synthrad"])
    assert not (out / "benchmark.json").exists()
