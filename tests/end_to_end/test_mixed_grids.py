"""A site whose channels lie on grids of their own, through a whole run: the plan says how."""

from __future__ import annotations

import json
import shutil
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from lift.volumes.resampling import Grid, resample
from tests import wording
from tests.end_to_end.tiny_run import PATIENTS, SHAPE, SOURCES, SPACING_MM, TinyRun, run_here

OTHER = Grid((26, 30, 8), np.diag([2.5, 2.6, 5.0, 1.0]))


def place(image: Any) -> Grid:
    x, y, z = image.shape
    return Grid((x, y, z), np.asarray(image.affine, dtype=np.float64))


def second_source_in_thick_slices(tiny: TinyRun, site: str) -> None:
    """The site's second channel, as another sequence of the same exam would have it."""
    for index in range(PATIENTS[site]):
        path = tiny.file(site, index, SOURCES[1])
        image = nibabel.load(path)
        own = place(image)
        affine = OTHER.affine.copy()
        middles = [(np.array(grid.shape) - 1) / 2 for grid in (own, OTHER)]
        affine[:3, 3] = own.affine[:3] @ [*middles[0], 1.0] - affine[:3, :3] @ middles[1]
        thick: NDArray[Any] = resample(np.asarray(image.dataobj), own, Grid(OTHER.shape, affine))
        nibabel.Nifti1Image(thick.round().astype(np.int16), affine).to_filename(path)


@pytest.fixture(scope="module")
def mixed(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Both sites; at one of them the second channel has 5 mm slices."""
    folder = tmp_path_factory.mktemp("mixed")
    for part in ("data", "bundle"):
        shutil.copytree(tiny.folder / part, folder / part)
    changed = TinyRun(folder)
    second_source_in_thick_slices(changed, "west")
    return changed


def test_without_the_plans_word_the_site_refuses_and_says_what_would_help(mixed: TinyRun) -> None:
    done = mixed.simulate("own")
    assert done.code == 3, done
    assert wording.NOT_ON_ONE_GRID in done.stderr
    assert "preprocessing.grid" in done.stderr


@pytest.mark.parametrize(
    "grid",
    [{"kind": "first_source"}, {"kind": "spacing", "spacing_mm": [2.4, None, 2.5]}],
    ids=lambda grid: str(grid["kind"]),
)
def test_a_run_on_mixed_grids_ends_with_volumes_on_each_patients_own_grid(
    mixed: TinyRun, grid: dict[str, Any]
) -> None:
    out = mixed.folder / str(grid["kind"])
    done = mixed.simulate(out.name, plan__preprocessing__grid=grid)
    assert done.code == 0, done
    assert json.loads((out / "run.json").read_text())["plan"]["preprocessing"]["grid"] == grid
    last = json.loads((out / "rounds.jsonl").read_text().splitlines()[-1])
    assert set(last["counted"]) == set(PATIENTS)
    metrics = json.loads((out / "metrics.json").read_text())
    assert np.isfinite(metrics["pooled"]["federated_curves"]["psnr_db"]["value"])
    for site in PATIENTS:
        (folder,) = (out / "synthesis" / site).iterdir()
        first = nibabel.load(mixed.site(site) / folder.name / f"{folder.name}-{SOURCES[0]}.nii.gz")
        assert first.shape == SHAPE
        names = {path.name.removesuffix(".nii.gz") for path in folder.iterdir()}
        assert {
            "federated_curves",
            "target",
            "mask",
            *(f"source-{name}" for name in SOURCES),
        } <= names
        for name in names:
            image = nibabel.load(folder / f"{name}.nii.gz")
            assert image.shape == SHAPE
            np.testing.assert_allclose(image.affine, first.affine, atol=1e-4)
        mask = np.asarray(nibabel.load(folder / "mask.nii.gz").dataobj)
        assert set(np.unique(mask)) == {0, 1}
        # the channel of thick slices lies on the others: the same body
        shown = np.asarray(nibabel.load(folder / f"source-{SOURCES[1]}.nii.gz").dataobj)
        assert np.count_nonzero(shown[mask > 0]) > 0.95 * np.count_nonzero(mask)
    # and the mixer that the run made is used in the same way
    given = [f"{name}={mixed.file('west', 0, name)}" for name in SOURCES]
    made = out / "made.nii.gz"
    translated = run_here(
        "lift", "translate", *given, "-o", made, "--mixer", out, "--generator", mixed.bundle
    )
    assert translated.code == 0, translated
    image = nibabel.load(made)
    assert image.shape == SHAPE
    np.testing.assert_allclose(image.header.get_zooms(), SPACING_MM, rtol=1e-6)
    assert np.asarray(image.dataobj).max() > 0
