"""Volumes larger than memory are read in parts where the format allows it, else refused."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lift.errors import VolumeError
from lift.volumes.formats.checks import TooLargeError
from lift.volumes.volume import read_volume
from tests import wording
from tests.lift.formats.cases import Array, check_places, examples, nifti, turned
from tests.lift.formats.dicom_cases import series, write

LIMIT = 1 << 19
SHAPE = (90, 80, 70)
COARSE_MM = (2.6, 2.0, 9.0)
TOGETHER = (2, 2, 3)
IN_PARTS = ("nifti1", "nifti1-big", "nifti2", "pair", "mgh", "nrrd", "nhdr", "mha", "mhd")
WHOLE_ONLY = ("nifti1-gz", "pair-gz", "mgz", "nrrd-gz", "nhdr-gz", "mha-zlib", "mhd-zlib")


def large() -> Array:
    return np.random.default_rng(5).integers(-500, 500, SHAPE, dtype=np.int16)


def means(data: Array) -> Array:
    x, y, z = (n // m for n, m in zip(SHAPE, TOGETHER, strict=True))
    cut = data[: 2 * x, : 2 * y, : 3 * z].astype(np.float64)
    found: Array = cut.reshape(x, 2, y, 2, z, 3).mean(axis=(1, 3, 5))
    return found


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lift.volumes.formats.checks.LARGEST_VOLUME_BYTES", LIMIT)
    assert np.prod(SHAPE) * 8 > 3 * LIMIT


@pytest.mark.parametrize("name", IN_PARTS)
def test_means_of_whole_voxels_take_their_place(tmp_path: Path, name: str) -> None:
    data = large()
    # spacing 1, 1 and 3 mm
    path = examples(data)[name].write(tmp_path)
    with pytest.raises(TooLargeError, match=wording.CANNOT_USE_VOLUME) as caught:
        read_volume(path)
    assert "preprocessing.grid" in caught.value.remedy
    tracemalloc.start()
    try:
        volume = read_volume(path, coarsest_mm=COARSE_MM)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(volume.voxels, means(data), rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(volume.spacing_mm, (2, 2, 9))
    # neither the file nor its voxels were ever in memory
    assert peak < 3 * volume.voxels.nbytes
    assert peak < data.nbytes


def test_the_means_lie_where_the_voxels_lay(tmp_path: Path) -> None:
    affine = turned()
    image = nifti(large(), affine)
    image.header.set_slope_inter(2.5, -1)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    volume = read_volume(tmp_path / "a.nii", coarsest_mm=(1.9, 2.5, 15.5))
    together = (2, 2, 3)
    np.testing.assert_allclose(volume.voxels, means(large()) * 2.5 - 1, rtol=1e-5, atol=1e-3)
    wanted = affine.copy()
    wanted[:3, :3] *= together
    wanted[:3, 3] = (affine @ [0.5, 0.5, 1.0, 1.0])[:3]
    check_places(volume.affine, wanted, volume.voxels.shape, 1e-3)


def test_of_labels_the_middle_voxel_is_taken_where_it_lay(tmp_path: Path) -> None:
    data, affine = np.abs(large()) % 7, turned()
    (tmp_path / "a.nii").write_bytes(nifti(data, affine).to_bytes())
    coarsest = (1.9, 3.4, 10.5)
    volume = read_volume(tmp_path / "a.nii", coarsest_mm=coarsest, labels=True)
    middle = [(many // 2, slice(many // 2, None, many)) for many in (2, 3, 2)]
    picked = data[tuple(places for _, places in middle)]
    x, y, z = volume.voxels.shape
    np.testing.assert_array_equal(volume.voxels, picked[:x, :y, :z])
    assert (x, y, z) == (45, 26, 35)
    wanted = affine.copy()
    wanted[:3, :3] *= (2, 3, 2)
    wanted[:3, 3] = (affine @ [*(place for place, _ in middle), 1.0])[:3]
    check_places(volume.affine, wanted, volume.voxels.shape, 1e-3)
    # a mean of labels is no label
    means = read_volume(tmp_path / "a.nii", coarsest_mm=coarsest)
    assert (means.voxels % 1 != 0).any()


def test_along_an_axis_that_keeps_its_spacing_no_voxels_become_one(tmp_path: Path) -> None:
    path = examples(large())["nifti1"].write(tmp_path)
    volume = read_volume(path, coarsest_mm=(None, 5.0, 9.0))
    assert volume.voxels.shape == (90, 16, 23)
    np.testing.assert_allclose(volume.spacing_mm, (1, 5, 9))


@pytest.mark.parametrize("name", WHOLE_ONLY)
def test_what_is_compressed_is_not_read_in_parts_and_says_so(tmp_path: Path, name: str) -> None:
    path = examples(large())[name].write(tmp_path)
    with pytest.raises(TooLargeError) as caught:
        read_volume(path, coarsest_mm=COARSE_MM)
    assert "compressed" in caught.value.seen
    assert "Unpack it" in caught.value.remedy


def test_a_series_is_not_read_in_parts_and_says_so(tmp_path: Path) -> None:
    folder = write(series(large()), tmp_path / "series")
    with pytest.raises(TooLargeError, match=wording.CANNOT_USE_VOLUME) as caught:
        read_volume(folder, coarsest_mm=COARSE_MM)
    assert "DICOM is not read in parts" in caught.value.seen
    assert ".nii" in caught.value.remedy


def test_a_plan_that_leaves_it_too_large_is_no_help(tmp_path: Path) -> None:
    path = examples(large())["nifti1"].write(tmp_path)
    with pytest.raises(TooLargeError) as caught:
        read_volume(path, coarsest_mm=(1.5, 1.5, 3.0))
    assert "leaves it so" in caught.value.seen


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_none_is_found_in_parts_too(tmp_path: Path, value: float) -> None:
    data = large().astype(np.float32)
    data[40, 40, 40] = value
    nibabel.Nifti1Image(data, np.diag([1.0, 1, 3, 1])).to_filename(tmp_path / "a.nii")
    with pytest.raises(VolumeError, match=wording.CANNOT_USE_VOLUME) as caught:
        read_volume(tmp_path / "a.nii", coarsest_mm=COARSE_MM)
    assert wording.NOT_FINITE in caught.value.seen


def test_damage_is_found_in_parts_too(tmp_path: Path) -> None:
    path = examples(large())["nifti1"].write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(VolumeError, match=wording.CANNOT_USE_VOLUME) as caught:
        read_volume(path, coarsest_mm=COARSE_MM)
    assert wording.ENDS_EARLY in caught.value.seen
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(whole)[:-100])
    with pytest.raises(VolumeError, match=wording.CANNOT_USE_VOLUME):
        read_volume(packed, coarsest_mm=COARSE_MM)


@pytest.mark.skipif(
    not os.environ.get("LIFT_LARGE_VOLUMES"), reason="LIFT_LARGE_VOLUMES is not set: 16 GB"
)
def test_sixteen_gigabytes_fit_into_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((2048, 2048, 2000))
    header.set_sform(np.diag([0.15, 0.15, 0.15, 1.0]), code=1)
    header["pixdim"][1:4] = 0.15
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / "large.nii"
    plane = np.arange(2048 * 2048, dtype=np.int16)
    with path.open("wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        # sparse: only one plane of many is stored
        for z in range(0, 2000, 50):
            stream.seek(352 + z * plane.nbytes)
            stream.write(plane.tobytes())
        stream.truncate(352 + 2000 * plane.nbytes)
    tracemalloc.start()
    try:
        volume = read_volume(path, coarsest_mm=(1.0, 1.0, 1.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert volume.voxels.shape == (341, 341, 333)
    assert peak < 1 << 30
