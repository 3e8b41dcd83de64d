"""A segmenter of real targets judges predicted ones, and controls are measured beside them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lift.config.segmentation import SegmenterSettings
from lift.metrics.table import UNITS
from lift_simulation.segmenter import (
    Source,
    dice,
    predict,
    stack_of,
    train_segmenter,
)
from tests.end_to_end.labels import write_labels
from tests.end_to_end.tiny_run import TinyRun

SEGMENTER = {"width": 8, "steps": 60, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def labelled(tiny: TinyRun) -> str:
    """Labels of all patients: the brightest fifth of the target."""
    return write_labels(tiny, "labels", brightest=20.0)


def run(tiny: TinyRun, out: str, labels: str, **changes: object) -> Any:
    done = tiny.simulate(
        out,
        compare=["controls"],
        segmentation={"labels": labels, "segmenter": SEGMENTER},
        **changes,
    )
    assert done.code == 0, done
    return json.loads((tiny.folder / out / "metrics.json").read_text())


def test_rows_and_their_controls(tiny: TinyRun, labelled: str) -> None:
    pooled = run(tiny, "judged", labelled)["pooled"]
    assert {"no_mixer", "federated_curves", "real", "real_smoothed", "other_patient"} <= set(pooled)
    assert set(pooled["real"]) == {"dice"}
    assert set(pooled["no_mixer"]) <= set(UNITS)
    assert set(pooled["no_mixer"]) >= {"psnr_db", "perceptual", "dice"}
    dice = {row: table["dice"]["value"] for row, table in pooled.items()}
    # the segmenter has learned something, and does not find it where it is not
    assert dice["real"] > 0.6
    assert dice["other_patient"] < dice["real"] - 0.1
    perceptual = {row: pooled[row]["perceptual"]["value"] for row in pooled if row != "real"}
    assert perceptual["other_patient"] > perceptual["real_smoothed"]
    page = (tiny.folder / "judged" / "report.html").read_text()
    assert "Dice" in page
    assert "another patient" in page


def test_a_trained_segmenter_is_kept(tiny: TinyRun, labelled: str) -> None:
    first = run(tiny, "kept", labelled)
    file = tiny.folder / "kept" / "baselines" / "segmenter.safetensors"
    before = file.read_bytes(), file.stat().st_mtime_ns
    # as after a kill in the evaluation
    (tiny.folder / "kept" / "run.json").unlink()
    (tiny.folder / "kept" / "metrics.json").unlink()
    again = run(tiny, "kept", labelled)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert again["pooled"] == first["pooled"]


def test_a_segmenter_that_finds_nothing_judges_nothing(tiny: TinyRun) -> None:
    rare = write_labels(tiny, "rare", brightest=0.2)
    settings = {"labels": rare, "segmenter": SEGMENTER | {"steps": 1, "learning_rate": 1e-9}}
    done = tiny.simulate("blind", compare=["controls"], segmentation=settings)
    assert done.code == 0, done
    pooled = json.loads((tiny.folder / "blind" / "metrics.json").read_text())["pooled"]
    assert "real" not in pooled
    assert not any("dice" in figures for figures in pooled.values())
    assert "it has not learned the label, so there is no column dice" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"labels": "seg.nii.gz"}, "must hold {patient}"),
        ({"labels": "{patient}", "tissue": "wm"}, "give labels, or for phantoms tissue"),
        ({}, "give labels, or for phantoms tissue"),
        ({"tissue": "wm"}, "no phantoms: east, west"),
        ({"labels": "nowhere/{site}/{patient}.nii.gz"}, "nowhere"),
    ],
)
def test_settings_that_do_not_fit(tiny: TinyRun, settings: dict[str, Any], seen: str) -> None:
    done = tiny.simulate(f"refused-{len(str(settings))}", segmentation=settings)
    assert done.code not in (0, 1), done
    assert seen in done.stderr + done.stdout


def test_volumes_of_several_sizes_are_trained_on_together() -> None:
    rng = torch.Generator().manual_seed(0)
    stacks = []
    for shape in ((6, 20, 22), (4, 24, 17), (5, 16, 16)):
        label = torch.zeros(shape)
        label[:, 4:12, 5:13] = 1
        inside = torch.zeros(shape)
        inside[:, 1:15, 1:15] = 1
        noise = 0.1 * torch.rand(shape, generator=rng)
        stacks.append(stack_of(0.3 * inside + label + noise, label, inside))
    settings = SegmenterSettings(width=4, steps=80, volumes_per_step=3)
    network = train_segmenter(
        [Source(stacks, 1.0)], settings, seed=1, augmented=False, device=torch.device("cpu")
    )
    assert all(dice(predict(network, stack), stack.label) > 0.8 for stack in stacks)


def test_how_much_of_a_volume_lies_outside_does_not_matter() -> None:
    rng = torch.Generator().manual_seed(0)
    voxels, inside = torch.rand((4, 8, 8), generator=rng), torch.zeros(4, 8, 8)
    inside[:, 2:6, 2:6] = 1
    own = stack_of(voxels, inside, inside)
    wider = stack_of(
        *(torch.nn.functional.pad(part, (0, 8, 0, 8)) for part in (voxels, inside, inside))
    )
    torch.testing.assert_close(wider.slices[:, :8, :8], own.slices)
    assert not bool(wider.slices[:, 8:].any())
