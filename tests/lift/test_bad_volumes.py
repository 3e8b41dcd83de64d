"""Files that must be refused, and what the operator reads then."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lift.errors import AffineError, VolumeError
from lift.volumes.volume import read_volume
from tests import wording

Array = NDArray[Any]
SPACING = np.diag([1.0, 1.0, 3.0, 1.0])


def voxels() -> Array:
    return np.random.default_rng(3).integers(-1000, 2000, (6, 7, 8)).astype(np.int16)


def save(path: Path, data: Array, affine: Array = SPACING) -> Path:
    path.parent.mkdir(exist_ok=True)
    nibabel.Nifti1Image(data, affine).to_filename(path)
    return path


def refused(path: Path, root: Path | None = None) -> VolumeError:
    """The refusal, which has all four parts and names the file as it should."""
    with pytest.raises(VolumeError) as caught:
        read_volume(path, root=root)
    error = caught.value
    assert all((error.what, error.where, error.seen, error.remedy))
    name = path.relative_to(root).as_posix() if root else path.name
    assert error.what == f"cannot use volume '{name}'"
    return error


@pytest.fixture(scope="module")
def good() -> bytes:
    image = nibabel.Nifti1Image(voxels(), SPACING)
    return gzip.compress(image.to_bytes(), mtime=0)


def test_a_compressed_file_cut_anywhere_is_refused(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(good)
    np.testing.assert_array_equal(read_volume(path).voxels, voxels())
    for length in [*range(0, len(good), 23), *range(len(good) - 12, len(good))]:
        path.write_bytes(good[:length])
        refused(path)


def test_a_plain_file_cut_anywhere_is_refused(tmp_path: Path, good: bytes) -> None:
    plain = gzip.decompress(good)
    path = tmp_path / "a.nii"
    for length in [*range(0, len(plain), 29), len(plain) - 1]:
        path.write_bytes(plain[:length])
        refused(path)


@given(place=st.integers(10, 10**6), bit=st.integers(0, 7))
def test_a_damaged_compressed_file_never_gives_other_voxels(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, place: int, bit: int
) -> None:
    damaged = bytearray(good)
    damaged[10 + place % (len(good) - 10)] ^= 1 << bit
    path = tmp_path_factory.mktemp("damaged") / "a.nii.gz"
    path.write_bytes(bytes(damaged))
    try:
        found = read_volume(path).voxels
    except VolumeError:
        return
    # a flipped bit that deflate does not care for may pass, with the right content
    np.testing.assert_array_equal(found, voxels())


@settings(max_examples=150)
@given(place=st.integers(0, 351), byte=st.integers(0, 255))
def test_no_header_byte_escapes_as_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, place: int, byte: int
) -> None:
    content = bytearray(gzip.decompress(good))
    content[place] = byte
    path = tmp_path_factory.mktemp("header") / "a.nii"
    path.write_bytes(bytes(content))
    try:
        volume = read_volume(path)
    except VolumeError:
        refused(path)
        return
    assert volume.voxels.ndim == 3
    assert np.isfinite(volume.affine).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_volume_with_a_voxel_that_is_no_number_is_refused(tmp_path: Path, bad: float) -> None:
    data = voxels().astype(np.float32)
    data[1, 2, 3] = bad
    assert wording.NOT_FINITE in refused(save(tmp_path / "a.nii.gz", data)).seen


def test_values_beyond_any_number_after_scaling_are_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(voxels().astype(np.float64) * 1e300, SPACING)
    image.header.set_slope_inter(1e300, 0)
    image.to_filename(tmp_path / "a.nii")
    assert wording.NOT_FINITE in refused(tmp_path / "a.nii").seen


def test_more_than_one_time_point_is_refused(tmp_path: Path) -> None:
    error = refused(save(tmp_path / "a.nii", np.stack([voxels(), voxels()], axis=-1)))
    assert "6 x 7 x 8 x 2" in error.seen


def test_colour_and_complex_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((6, 7, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colour" in refused(save(tmp_path / "a.nii", colour)).seen
    assert "complex" in refused(save(tmp_path / "b.nii", voxels().astype(np.complex64))).seen


def test_a_constant_volume_is_refused(tmp_path: Path) -> None:
    assert "every voxel is 7" in refused(save(tmp_path / "a.nii", voxels() * 0 + 7)).seen


@pytest.mark.parametrize("shape", [(6, 7, 1), (6, 7), (1, 7, 8)])
def test_a_single_slice_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    refused(save(tmp_path / "a.nii", data))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("row", ["srow_x", "srow_z"])
def test_an_affine_that_places_no_voxel_is_refused(tmp_path: Path, value: float, row: str) -> None:
    image = nibabel.Nifti1Image(voxels(), SPACING)
    content = bytearray(image.to_bytes())
    start = {"srow_x": 280, "srow_z": 312}[row]
    content[start : start + 16] = np.full(4, value, dtype="<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(bytes(content))
    assert isinstance(refused(tmp_path / "a.nii"), AffineError)


def test_nearly_parallel_axes_are_refused_at_any_spacing(tmp_path: Path) -> None:
    for size in (0.01, 1.0, 100.0):
        flat = np.diag([size, size * 1e-4, size, 1.0])
        flat[0, 1] = size
        image = nibabel.Nifti1Image(voxels(), None)
        image.header.set_sform(flat, code=2)
        (tmp_path / "a.nii").write_bytes(image.to_bytes())
        assert isinstance(refused(tmp_path / "a.nii"), AffineError)
        save(tmp_path / "b.nii", voxels(), np.diag([size, size, size, 1.0]))
        assert read_volume(tmp_path / "b.nii").spacing_mm == pytest.approx((size, size, size))


def test_a_header_that_claims_a_huge_volume_is_refused_before_memory_is_asked_for(
    tmp_path: Path, good: bytes
) -> None:
    content = bytearray(gzip.decompress(good))
    content[42:48] = np.array([32000, 32000, 32000], dtype="<i2").tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert "GiB" in refused(tmp_path / "a.nii.gz").seen


def test_other_content_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing.nii")
    (tmp_path / "folder.nii").mkdir()
    refused(tmp_path / "folder.nii")
    for name, content in [
        ("empty.nii.gz", b""),
        ("text.nii.gz", b"not an image\n" * 99),
        ("text.nii", b"not an image\n" * 99),
        ("text.mha", b"not an image\n" * 99),
    ]:
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)
    assert "NIfTI" in refused(tmp_path / "text.mha").remedy


@pytest.mark.parametrize("name", ["packed.nii", "plain.nii.gz", "a.mha", "a.img", "no suffix"])
def test_the_content_says_what_a_file_is_not_its_name(
    tmp_path: Path, good: bytes, name: str
) -> None:
    content = gzip.decompress(good) if name == "plain.nii.gz" else good
    (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(read_volume(tmp_path / name).voxels, voxels())


def test_messages_name_the_file_in_its_folder_and_quote_no_header_text(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels() * 0, SPACING)
    for field in ("descrip", "aux_file", "intent_name"):
        image.header[field] = b"JANE DOE"
    (tmp_path / "sub-1").mkdir()
    image.to_filename(tmp_path / "sub-1" / "t1.nii.gz")
    error = refused(tmp_path / "sub-1" / "t1.nii.gz", root=tmp_path)
    assert "'sub-1/t1.nii.gz'" in str(error)
    assert "JANE" not in str(error)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("EMPTY.nii.gz", "empty"),
        ("NOTGZIP_text.nii.gz", "damaged"),
        ("TRUNCATED_half.nii.gz", wording.ENDS_EARLY),
        ("mr_4d_pcasl.nii.gz", "4 axes"),
        ("nibabel_functional.nii", "4 axes"),
        ("nibabel_example_nifti2.nii.gz", "4 axes"),
        ("nibabel_test.mgz", "4 axes"),
        ("nibabel_analyze.hdr", "Analyze"),
    ],
)
def test_real_files_that_cannot_be_used_are_refused(real_data: Path, name: str, seen: str) -> None:
    folder = real_data / "format_robustness"
    assert seen in refused(folder / name, root=folder).seen


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    [
        "format_robustness/bigendian_scwhite.nii",
        "format_robustness/nibabel_anatomical.nii",
        "format_robustness/ct_hu_3mm_small_int16.nii.gz",
        "format_robustness/mr_abdomen_3mm.nii.gz",
        # a header extension, a scale factor and unusual axes
        "ixi_hh_t1_2mm/IXI012-HH-1211-T1_ds.nii.gz",
        "brain_tumor_progression_4contrast/study1_t2.nii.gz",
    ],
)
def test_real_odd_files_read_as_nibabel_reads_them(real_data: Path, name: str) -> None:
    volume = read_volume(real_data / name)
    oracle = nibabel.as_closest_canonical(nibabel.load(real_data / name))
    np.testing.assert_array_equal(volume.voxels, np.asarray(oracle.dataobj))
    np.testing.assert_allclose(volume.affine, oracle.affine, atol=1e-9)
