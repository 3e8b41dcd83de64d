"""A CT in a report: bone is to be seen, in the bone window, and published figures beside it."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from numpy.typing import NDArray

from lift.records.published import Published, PublishedRow
from lift.report.mosaics import mosaic
from lift.report.published import published_section
from lift.report.read import PatientFolder, PatientVolumes, read_run
from lift.viewer.volumes import BONE_WINDOW
from tests.lift.report.example_run import write_example_run

SHAPE = (48, 48, 24)
Floats = NDArray[np.float32]


def _head(bone_hu: float) -> PatientVolumes:
    """A ball of soft tissue in a shell of bone, in air."""
    places = np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2
    radius = np.sqrt(((places / np.array([20, 20, 10])[:, None, None, None]) ** 2).sum(0))
    ct = np.where(radius < 1.0, bone_hu, -1000.0)
    ct = np.where(radius < 0.85, 40.0, ct).astype(np.float32)
    mr = np.where(radius < 0.85, 600.0, 0.0).astype(np.float32)
    predictions = {"no_mixer": ct - 20, "federated": ct + 10}
    return PatientVolumes({"mr": mr}, ct, predictions, radius < 1.0, (2.0, 2.0, 4.0))


def _drawn(volumes: PatientVolumes, folder: Path) -> tuple[Floats, str]:
    """The picture's grey values, and what is written below it."""
    run = read_run(write_example_run(folder))
    picture = mosaic(run, PatientFolder("north", "1PA001", folder, ()), volumes)
    grey: Floats = imread(io.BytesIO(picture.content))[..., :3].mean(-1)
    return grey, picture.caption


def test_bone_is_white_and_a_prediction_without_bone_is_seen_as_such(tmp_path: Path) -> None:
    head = _head(1300.0)
    low, high = BONE_WINDOW
    shown = []
    # what is predicted, and what a prediction without bone looks like
    for name, predictions in (("a", head.predictions), ("b", _head(40.0).predictions)):
        grey, caption = _drawn(replace(head, predictions=predictions), tmp_path / name)
        assert "bone window, -500 to 1500 HU" in caption
        shown.append(float((np.abs(grey - (1300.0 - low) / (high - low)) < 0.02).mean()))
    # the target alone has bone then, one of three columns
    assert shown[0] > 2 * shown[1] > 0.005


def test_an_mr_keeps_its_own_grey_scale(tmp_path: Path) -> None:
    head = _head(1300.0)
    unit = {name: ((v + 1000) / 2300).astype(np.float32) for name, v in head.predictions.items()}
    target = ((head.target + 1000) / 2300).astype(np.float32)
    _, caption = _drawn(replace(head, target=target, predictions=unit), tmp_path)
    assert "HU" not in caption


def test_a_published_figure_stands_with_source_difference_and_place() -> None:
    row = PublishedRow(
        method="their <method>",
        metric="MAE, HU",
        low=64.8,
        high=67.2,
        source="arXiv 0000.00000",
        differs="Other patients.",
    )
    section = published_section(Published(title="T", statement="Not comparable.", rows=(row,)))
    page = "".join(section.content)
    assert "their &lt;method&gt;" in page
    assert "Not comparable." in page
    assert 'data-key="published.json#/rows/0/low" data-value="64.8"' in page
    assert re.search(r">64\.8</span> to <span[^>]*>67\.2<", page)
    assert "Other patients." in page
