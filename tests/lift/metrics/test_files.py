"""Folders of NIfTI files against each other: pairing, units, grids and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from lift.errors import AffineError, DataError, VolumeError
from lift.metrics.files import evaluate_folders
from lift.metrics.synthrad import CT_RANGE, Floats, mae_hu
from lift.metrics.table import UNITS, patient_metrics
from tests.lift.formats.cases import itk_image
from tests.lift.formats.dicom_cases import enhanced, series, write

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def save(path: Path, voxels_xyz: npt.NDArray[Any], affine: Floats = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels_xyz.astype(np.float32), affine), path)


def brain(seed: int) -> Floats:
    """An MR-like volume (x, y, z) in arbitrary units, 0 in the background."""
    shape = (18, 20, 14)
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in shape), indexing="ij")
    tissue = 400 + 300 * gaussian_filter(random.standard_normal(shape), 1)
    return np.where(x**2 + y**2 + z**2 < 1, np.clip(tissue, 50, None), 0.0)


def folders(tmp_path: Path, names: tuple[str, ...] = ("a.nii.gz", "deep/b.nii")) -> None:
    for seed, name in enumerate(names):
        target = brain(seed)
        noise = np.random.default_rng(seed + 9).normal(0, 30, target.shape)
        save(tmp_path / "target" / name, target)
        save(tmp_path / "predicted" / name, target + (target > 0) * noise)
        save(tmp_path / "mask" / name, target > 0)


def test_a_copy_is_perfect(tmp_path: Path) -> None:
    folders(tmp_path)
    found = evaluate_folders(tmp_path / "target", tmp_path / "target", mask=None, protocol="mr")
    assert found["volumes"] == 2
    assert set(found["metrics"]) == set(UNITS) - {
        "mae_bone",
        "mae_soft",
        "bone_dice",
        "ms_ssim_ct",
        "dice",
    }
    assert found["metrics"]["psnr_db"]["value"] == 100.0
    assert found["metrics"]["mae"]["value"] == 0.0
    assert list(found["per_volume"]) == ["a.nii.gz", "deep/b.nii"]
    json.dumps(found, allow_nan=False)


def test_ct_is_compared_in_hounsfield_units_inside_its_mask(tmp_path: Path) -> None:
    target = np.rint(brain(0) * 3 - 1000)
    prediction = target + 10.0
    prediction[0] = 3000.0  # outside the mask
    mask = np.zeros(target.shape)
    mask[4:14, 4:14, 2:12] = 1
    for folder, voxels in (("target", target), ("predicted", prediction), ("mask", mask)):
        save(tmp_path / folder / "ct.nii.gz", voxels)
    inside = evaluate_folders(
        tmp_path / "predicted", tmp_path / "target", mask=tmp_path / "mask", protocol="ct"
    )
    assert inside["metrics"]["mae"]["value"] == pytest.approx(10.0)
    assert inside["metrics"]["mae"]["unit"] == "HU"
    assert "psnr_crop_db" not in inside["metrics"]
    everywhere = evaluate_folders(
        tmp_path / "predicted", tmp_path / "target", mask=None, protocol="ct"
    )
    assert everywhere["metrics"]["mae"]["value"] == pytest.approx(
        mae_hu(prediction, target, np.ones(target.shape))
    )


def test_depth_is_the_axial_direction(tmp_path: Path) -> None:
    target = brain(0)
    prediction = target * (1 + 0.1 * (-1.0) ** np.arange(14))  # flickers from z to z
    save(tmp_path / "target" / "a.nii", target)
    save(tmp_path / "predicted" / "a.nii", prediction)
    found = evaluate_folders(tmp_path / "predicted", tmp_path / "target", mask=None, protocol="ct")
    expected = patient_metrics(
        np.transpose(prediction, (2, 1, 0)).astype(np.float32),
        np.transpose(target, (2, 1, 0)).astype(np.float32),
        np.ones((14, 20, 18)),
        range=CT_RANGE,
        spacing_mm=(2.0, 1.5, 1.0),
        protocol="ct",
    )
    assert found["per_volume"]["a.nii"] == pytest.approx(expected)
    assert expected["slice_gain"] > 3


def test_mr_is_compared_between_its_own_percentiles(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii",))
    found = evaluate_folders(
        tmp_path / "predicted", tmp_path / "target", mask=tmp_path / "mask", protocol="mr"
    )
    unit = []
    for folder in ("predicted", "target"):
        voxels = nibabel.load(tmp_path / folder / "a.nii").get_fdata().transpose(2, 1, 0)
        low, high = np.quantile(voxels, [0.001, 0.999])
        unit.append(np.clip((voxels - low) / (high - low), 0, 1))
    inside = (brain(0) > 0).transpose(2, 1, 0)
    squared = np.mean((unit[0] - unit[1])[inside] ** 2)
    row = found["per_volume"]["a.nii"]
    assert row["psnr_db"] == pytest.approx(-10 * np.log10(squared), rel=1e-5)
    assert row["mae"] == pytest.approx(np.abs(unit[0] - unit[1])[inside].mean(), rel=1e-5)
    assert found["metrics"]["mae"]["unit"] == "normalised"


@settings(max_examples=5)
@given(st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_an_mr_prediction_may_be_written_at_any_scale(
    tmp_path: Path, scale: float, offset: float
) -> None:
    folders(tmp_path, ("a.nii",))
    before = evaluate_folders(tmp_path / "predicted", tmp_path / "target", mask=None, protocol="mr")
    voxels = nibabel.load(tmp_path / "predicted" / "a.nii").get_fdata()
    save(tmp_path / "scaled" / "a.nii", scale * (voxels + offset))
    after = evaluate_folders(tmp_path / "scaled", tmp_path / "target", mask=None, protocol="mr")
    assert after["per_volume"]["a.nii"] == pytest.approx(before["per_volume"]["a.nii"], rel=1e-3)


def test_orientation_of_the_file_makes_no_difference(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii",))
    before = evaluate_folders(
        tmp_path / "predicted", tmp_path / "target", mask=tmp_path / "mask", protocol="mr"
    )
    voxels = nibabel.load(tmp_path / "predicted" / "a.nii").get_fdata()
    flipped = AFFINE @ np.array([[-1.0, 0, 0, 17], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    save(tmp_path / "flipped" / "a.nii", voxels[::-1], flipped)
    after = evaluate_folders(
        tmp_path / "flipped", tmp_path / "target", mask=tmp_path / "mask", protocol="mr"
    )
    assert after == before


def test_without_a_mask_the_targets_nonzero_voxels_count(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii",))
    masked, unmasked = (
        evaluate_folders(tmp_path / "predicted", tmp_path / "target", mask=mask, protocol="mr")
        for mask in (tmp_path / "mask", None)
    )
    assert masked == unmasked


def test_a_file_without_partner_is_refused_by_name(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "predicted" / "a.nii.gz").unlink()
    save(tmp_path / "predicted" / "extra.nii", brain(3))
    with pytest.raises(DataError) as refusal:
        evaluate_folders(tmp_path / "predicted", tmp_path / "target", mask=None, protocol="mr")
    text = str(refusal.value)
    assert "no prediction for 'a.nii.gz'" in text
    assert "no target for 'extra.nii'" in text
    assert "deep/b.nii" not in text
    assert refusal.value.remedy


def test_a_missing_mask_file_is_refused_by_name(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "mask" / "deep" / "b.nii").unlink()
    with pytest.raises(DataError, match=r"no mask for 'deep/b\.nii'"):
        evaluate_folders(
            tmp_path / "predicted", tmp_path / "target", mask=tmp_path / "mask", protocol="mr"
        )


def test_a_long_list_of_names_is_cut(tmp_path: Path) -> None:
    for k in range(8):
        save(tmp_path / "target" / f"{k}.nii", brain(0))
    save(tmp_path / "predicted" / "0.nii", brain(0))
    with pytest.raises(DataError, match=r"'5\.nii' and 2 more"):
        evaluate_folders(tmp_path / "predicted", tmp_path / "target", mask=None, protocol="mr")


def test_another_grid_is_refused(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii",))
    save(tmp_path / "predicted" / "a.nii", brain(0), np.diag([1.0, 1.5, 2.2, 1.0]))
    with pytest.raises(AffineError, match=r"a\.nii"):
        evaluate_folders(tmp_path / "predicted", tmp_path / "target", mask=None, protocol="mr")
    save(tmp_path / "predicted" / "a.nii", brain(0))
    save(tmp_path / "mask" / "a.nii", (brain(0) > 0)[:, :, 1:])
    with pytest.raises(AffineError, match=r"'mask a\.nii'"):
        evaluate_folders(
            tmp_path / "predicted", tmp_path / "target", mask=tmp_path / "mask", protocol="mr"
        )


def test_folders_without_volumes_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii",))
    with pytest.raises(DataError, match="there is no such folder"):
        evaluate_folders(tmp_path / "absent", tmp_path / "target", mask=None, protocol="mr")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no volume")
    with pytest.raises(DataError, match="holds no file of a volume"):
        evaluate_folders(tmp_path / "predicted", tmp_path / "empty", mask=None, protocol="mr")


def test_a_mask_without_voxels_is_refused(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii",))
    nothing = np.zeros((18, 20, 14))
    nothing[0, 0, 0] = -1.0
    save(tmp_path / "mask" / "a.nii", nothing)
    with pytest.raises(VolumeError, match="mask holds no voxel"):
        evaluate_folders(
            tmp_path / "predicted", tmp_path / "target", mask=tmp_path / "mask", protocol="mr"
        )


def test_a_prediction_that_is_all_but_constant_is_refused(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii",))
    flat = np.zeros((18, 20, 14))
    flat[9, 9, 7] = 5.0
    save(tmp_path / "predicted" / "a.nii", flat)
    with pytest.raises(VolumeError, match=r"prediction's 0\.1 and 99\.9 percentiles are equal"):
        evaluate_folders(tmp_path / "predicted", tmp_path / "target", mask=None, protocol="mr")


def people(tmp_path: Path, *rows: str, head: str = "file,subject") -> Path:
    path = tmp_path / "people.csv"
    path.write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    return path


def test_files_of_one_person_are_one_value_of_the_table(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii", "b.nii", "c.nii"))
    pair = (tmp_path / "predicted", tmp_path / "target")
    table = people(tmp_path, "a.nii,one", "b.nii,one", "c.nii,two", "other.nii,three")
    found = evaluate_folders(*pair, mask=None, protocol="mr", subjects=table)
    assert (found["volumes"], found["persons"], found["note"]) == (3, 2, "")
    assert found["subjects"] == {"a.nii": "one", "b.nii": "one", "c.nii": "two"}
    psnr = {name: figures["psnr_db"] for name, figures in found["per_volume"].items()}
    entry = found["metrics"]["psnr_db"]
    assert entry["n"] == 2
    one = (psnr["a.nii"] + psnr["b.nii"]) / 2
    assert entry["value"] == pytest.approx((one + psnr["c.nii"]) / 2, abs=1e-12)
    alone = evaluate_folders(*pair, mask=None, protocol="mr")
    assert (alone["persons"], alone["metrics"]["psnr_db"]["n"]) == (3, 3)
    assert "each file is taken for a person" in alone["note"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("rows", "head", "seen"),
    [
        (["a.nii,one"], "file,subject", "no row for 'b.nii'"),
        (["a.nii,one", "b.nii,"], "file,subject", "line 3 has no file or no subject"),
        (["a.nii,one", "a.nii,two"], "file,subject", "line 3 is a second row of 'a.nii'"),
        (["a.nii,one", "b.nii,two"], "name,subject", "has no column 'file'"),
        ([], "file,subject", "no rows"),
    ],
)
def test_a_table_of_subjects_that_leaves_a_doubt_is_refused(
    tmp_path: Path, rows: list[str], head: str, seen: str
) -> None:
    folders(tmp_path, ("a.nii", "b.nii"))
    with pytest.raises(DataError) as caught:
        evaluate_folders(
            tmp_path / "predicted",
            tmp_path / "target",
            mask=None,
            protocol="mr",
            subjects=people(tmp_path, *rows, head=head),
        )
    assert seen in caught.value.seen


def in_every_format(folder: Path, name: str, voxels: npt.NDArray[Any], form: str) -> None:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    whole = voxels.astype(np.int16)
    if form == "series":
        write(series(whole, AFFINE), place)
    elif form == "dcm":
        place.with_name(place.name + ".dcm").write_bytes(enhanced(whole, AFFINE))
    elif form in {"mha", "nrrd", "mhd"}:
        SimpleITK.WriteImage(itk_image(whole, AFFINE), f"{place}.{form}")
    else:
        kind = nibabel.MGHImage if form == "mgz" else nibabel.Nifti1Image
        kind(whole, AFFINE).to_filename(f"{place}.{form}")


FORMS = ["nii", "nii.gz", "NII.GZ", "mgz", "mha", "mhd", "nrrd", "hdr", "dcm", "series"]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_is_read_and_paired_by_its_stem(tmp_path: Path, form: str) -> None:
    target = np.rint(brain(0))
    for name, add in (("1A.v2", 3), ("deep/1B", 7)):
        in_every_format(tmp_path / "target", name, target, "nii")
        if form == "hdr":
            pair = nibabel.Nifti1Pair((target + add).astype(np.int16), AFFINE)
            (tmp_path / "predicted" / name).parent.mkdir(parents=True, exist_ok=True)
            pair.to_filename(tmp_path / "predicted" / f"{name}.hdr")
        else:
            in_every_format(tmp_path / "predicted", name, target + add, form.lower())
        if form == "NII.GZ":
            made = tmp_path / "predicted" / f"{name}.nii.gz"
            made.rename(made.with_name(made.name.replace(".nii.gz", ".NII.GZ")))
        save(tmp_path / "masks" / f"{name}.nii.gz", np.ones_like(target))
    table = people(tmp_path, "1A.v2,one", "deep/1B.nii.gz,two")
    found = evaluate_folders(
        tmp_path / "predicted",
        tmp_path / "target",
        mask=tmp_path / "masks",
        protocol="ct",
        subjects=table,
    )
    assert {name: entry["mae"] for name, entry in found["per_volume"].items()} == {
        "1A.v2.nii": 3.0,
        "deep/1B.nii": 7.0,
    }
    assert found["subjects"] == {"1A.v2.nii": "one", "deep/1B.nii": "two"}


def test_two_volumes_of_one_stem_in_one_folder_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii",))
    save(tmp_path / "predicted" / "a.nii.gz", brain(0))
    with pytest.raises(DataError, match=r"two volumes have one name: a\.nii and a\.nii\.gz"):
        evaluate_folders(tmp_path / "predicted", tmp_path / "target", mask=None, protocol="mr")


def test_rows_of_one_stem_and_two_persons_name_nobody(tmp_path: Path) -> None:
    folders(tmp_path, ("a.nii",))
    table = people(tmp_path, "a.mha,one", "a.nii.gz,two")
    with pytest.raises(DataError, match=r"no row for 'a\.nii'"):
        evaluate_folders(
            tmp_path / "predicted", tmp_path / "target", mask=None, protocol="mr", subjects=table
        )
