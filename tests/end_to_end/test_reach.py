"""Quality against parameters on the tiny sites: rows, resume to the bit, order, figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

import lift_benchmarks.reach.__main__ as reach
from lift.config.simulation import SimulationConfig
from lift_benchmarks.reach.config import ReachConfig, list_entries
from lift_benchmarks.reach.figure import draw
from lift_benchmarks.reach.summary import Drawn, read_drawn
from tests.end_to_end.tiny_run import ENTRY_POINTS, TinyRun, bytes_under, check_refusal, run_here

SHIPPED = Path(reach.__file__).parent / "settings.yaml"
PRESETS = Path(__file__).parents[2] / "configs" / "presets"
GOOD, PLANTED, RIVAL = "zrefine-4-pooled", "zrefine-3-pooled", "unet-2-pooled"
MODELS = [
    {"kind": "zrefine", "width": 4, "learning_rate": 0.02, "most_steps": 12},
    # planted: at this rate every step makes it worse
    {"kind": "zrefine", "width": 3, "learning_rate": 3.0, "most_steps": 12},
    {"kind": "pyramid", "width": 2, "learning_rate": 0.02, "most_steps": 4},
    {
        "kind": "unet",
        "width": 2,
        "learning_rate": 0.01,
        "most_steps": 4,
        "window": [12, 32, 32],
    },
]


@pytest.fixture(scope="module")
def words(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The command's options without a folder."""
    data = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    data |= {
        "models": MODELS,
        "window": [6, 16, 16],
        "pooled_steps": 4,
        "local_steps": 2,
        "checkpoint_steps": 4,
        "data_sets": {"tiny": {"train": 0.5, "validation": 0.3}},
    }
    path = tmp_path_factory.mktemp("reach") / "small.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    ENTRY_POINTS[reach.PROGRAM] = reach.main
    return ["--config", tiny.settings("reach"), "--settings", path]


@pytest.fixture(scope="module")
def out(words: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished result."""
    folder = tmp_path_factory.mktemp("reached")
    done = run_here(reach.PROGRAM, *words, "--output", folder)
    assert done.code == 0, done
    for word in ("no_mixer", "curves_z_filter", GOOD, "pyramid-2-fedavg", "budget"):
        assert word in done.stdout, done.stdout
    return folder


def _summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "reach.json").read_text(encoding="utf-8"))
    return found


def test_every_row_is_measured_and_compared(out: Path) -> None:
    data = _summary(out)
    assert [model["name"] for model in data["models"]] == [
        f"{model['kind']}-{model['width']}-{mode}"
        for mode in ("pooled", "fedavg")
        for model in MODELS
    ]
    assert len(data["pooled"]) == 4 + 2 * len(MODELS)
    for model in data["models"]:
        assert model["update_bytes"]["float16"] == 2 * model["parameters"]
        assert model["curve_of"] == "validation"
        for curve, steps, kept in zip(model["curves"], model["steps"], model["kept"], strict=True):
            best = max(curve, key=lambda point: point["psnr_db"])
            assert (curve[-1]["steps"], best["steps"]) == (steps, kept)
    for row, figures in data["pooled"].items():
        assert figures["psnr_db"]["n"] == data["held_out"]
        for other in {"no_mixer", RIVAL} - {row}:
            gain = data["comparisons"][f"{row} - {other}"]["psnr_db"]["value"]
            direct = figures["psnr_db"]["value"] - data["pooled"][other]["psnr_db"]["value"]
            assert gain == pytest.approx(direct)
    # no patient is named
    assert "BraTS-TST" not in (out / "reach.json").read_text(encoding="utf-8")


def test_a_planted_worse_model_ranks_below(out: Path) -> None:
    data = _summary(out)
    psnr_db = {row: figures["psnr_db"]["value"] for row, figures in data["pooled"].items()}
    assert psnr_db[PLANTED] < psnr_db[GOOD] - 1
    drawn = read_drawn(out)
    by_size = {point[0]: point[1] for point in drawn.points["zrefine", "pooled"]}
    assert by_size[min(by_size)] == psnr_db[PLANTED]
    assert by_size[max(by_size)] == psnr_db[GOOD]


def test_the_same_command_resumes_to_the_same_bits(words: list[str | Path], out: Path) -> None:
    def kept(folder: Path) -> dict[str, str]:
        return {
            name: digest
            for name, digest in bytes_under(folder / "fold-0").items()
            if name.endswith(".safetensors") or name == "plain-rows.json"
        }

    before, figures = kept(out), _without_seconds(out)
    lost = out / "fold-0" / "models" / "pyramid-2-fedavg.json"
    lost.unlink()
    again = run_here(reach.PROGRAM, *words, "--output", out)
    assert again.code == 0, again
    assert again.stderr.count("kept\n") == 2 * len(MODELS) - 1
    assert kept(out) == before
    assert _without_seconds(out) == figures


def _without_seconds(out: Path) -> dict[str, Any]:
    data = _summary(out)
    for model in data["models"]:
        del model["core_s"]
    return data


def test_other_settings_are_no_resume(words: list[str | Path], out: Path, tmp_path: Path) -> None:
    """One model's new rate trains that one again, and the others stay."""
    settings = yaml.safe_load(Path(words[3]).read_text(encoding="utf-8"))
    settings["models"][2]["learning_rate"] = 0.01
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = run_here(reach.PROGRAM, *words[:3], path, "--output", out, "--model", "zrefine-4-pooled")
    assert done.code == 0, done
    assert done.stderr.count("kept\n") == 1
    names = [model["name"] for model in _summary(out)["models"]]
    assert len(names) == 2 * len(MODELS) - 2
    assert not any(name.startswith("pyramid") for name in names)
    # back again: nothing was lost
    assert run_here(reach.PROGRAM, *words, "--output", out).code == 0
    assert len(_summary(out)["models"]) == 2 * len(MODELS)


def test_folds_hold_everybody_out_once(
    words: list[str | Path], tiny: TinyRun, tmp_path: Path
) -> None:
    settings = yaml.safe_load(Path(words[3]).read_text(encoding="utf-8"))
    settings["models"] = [MODELS[3] | {"most_steps": 2}]
    settings["data_sets"] = {"tiny": {"folds": 2}}
    path = tmp_path / "folds.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    config = tiny.settings("reach-folds", plan__split={"train": 1.0, "validation": 0.0})
    out = tmp_path / "out"
    options = ("--settings", path, "--model", RIVAL, "--output", out)
    done = run_here(reach.PROGRAM, "--config", config, *options)
    assert done.code == 0, done
    data = _summary(out)
    assert data["held_out"] == sum(data["patients"]["test"]) == 11
    assert data["pooled"][RIVAL]["psnr_db"]["n"] == 11
    assert data["models"][0]["curve_of"] == "training"
    assert len(data["models"][0]["curves"]) == 2


def test_the_figure_is_whole_for_any_number_of_data_sets(out: Path, tmp_path: Path) -> None:
    real = read_drawn(out)
    empty = Drawn("empty", True, 1, None, {"no_mixer": 20.0}, {})
    alone = Drawn(
        "alone",
        True,
        1,
        20.3,
        {"z_filter": 20.0},
        {("pyramid", "pooled"): [(5000, 20.5, None, None)]},
    )
    assert (out / "reach.png").stat().st_size > 10_000
    for data_sets in ([real], [empty], [real, alone, empty]):
        path = tmp_path / "figure.png"
        draw(data_sets, path)
        picture = imread(path)[..., :3]
        assert np.ptp(picture) == 1
        for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
            assert edge.min() == 1


def test_figure_alone_and_refusals(
    words: list[str | Path], out: Path, tiny: TinyRun, tmp_path: Path
) -> None:
    done = run_here(reach.PROGRAM, "--output", tmp_path, "--beside", out, "--beside", out)
    assert done.code == 0, done
    assert (tmp_path / "reach.png").is_file()
    nothing = run_here(reach.PROGRAM, "--output", tmp_path, "--beside", tmp_path)
    check_refusal(nothing, 2, names=("reach.json",))
    unknown = run_here(reach.PROGRAM, *words, "--output", out, "--model", "zrefine-9-pooled")
    check_refusal(unknown, 2, names=("zrefine-9-pooled", GOOD))
    secret = {"mode": "site", "delta": 1e-5, "clip_norm": 1.0, "noise_multiplier": 1.0}
    config = tiny.settings("reach-private", plan__privacy=secret)
    private = run_here(reach.PROGRAM, "--config", config, "--output", tmp_path / "private")
    check_refusal(private, 2, names=("privacy site",))


def test_the_shipped_settings_fit_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFT_TEST_DATA", "data")
    config = ReachConfig.from_yaml(SHIPPED)
    assert len(list_entries(config)) == 12
    for name in config.data_sets:
        preset = SimulationConfig.from_yaml(PRESETS / f"{name}.yaml")
        assert preset.name == name
        # a fixed split or folds: never the federation's own folds
        assert preset.in_folds


def _two_rivals(data: dict[str, Any]) -> None:
    data["models"] = [MODELS[3], MODELS[3] | {"width": 3}]


def _no_rival(data: dict[str, Any]) -> None:
    data["models"] = MODELS[:2]


def _twice(data: dict[str, Any]) -> None:
    data["models"] = [MODELS[0], MODELS[0], MODELS[3]]


def _one_bottleneck_voxel(data: dict[str, Any]) -> None:
    data["models"] = [MODELS[3] | {"window": [16, 16, 16]}]


def _half_a_split(data: dict[str, Any]) -> None:
    data["data_sets"] = {"tiny": {"train": 0.5}}


def _split_and_folds(data: dict[str, Any]) -> None:
    data["data_sets"] = {"tiny": {"train": 0.5, "validation": 0.2, "folds": 2}}


@pytest.mark.parametrize(
    "spoil",
    [_two_rivals, _no_rival, _twice, _one_bottleneck_voxel, _half_a_split, _split_and_folds],
)
def test_settings_that_mean_nothing_are_refused(
    spoil: Callable[[dict[str, Any]], None], tiny: TinyRun, tmp_path: Path
) -> None:
    data = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    spoil(data)
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    ENTRY_POINTS[reach.PROGRAM] = reach.main
    config = tiny.settings("reach-refused")
    refused = run_here(
        reach.PROGRAM, "--config", config, "--settings", path, "--output", tmp_path / "out"
    )
    check_refusal(refused, 2)
    assert not (tmp_path / "out").exists()
