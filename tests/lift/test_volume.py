from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lift.errors import AffineError, VolumeError
from lift.volumes.volume import Volume, check_same_grid, read_volume, write_volume

Array = NDArray[Any]
SHAPE = (3, 4, 5)
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def oblique() -> Array:
    """A RAS+ affine, turned by a few degrees about two axes, with three different spacings."""
    a, b = 0.10, -0.07
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn_x @ turn_z @ np.diag([0.9, 1.1, 5.0])
    affine[:3, 3] = (-40.25, 31.5, 12.125)
    return affine


def save(
    path: Path,
    voxels: Array,
    affine: Array | None = None,
    *,
    slope: float | None = None,
    inter: float = 0.0,
    kind: Any = nibabel.Nifti1Image,
    big_endian: bool = False,
) -> Path:
    header = kind.header_class(endianness=">") if big_endian else None
    image = kind(voxels, oblique() if affine is None else affine, header, dtype=voxels.dtype)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    image.to_filename(path)
    return path


def values(dtype: str, shape: tuple[int, ...] = SHAPE) -> Array:
    rng = np.random.default_rng(5)
    target = np.dtype(dtype)
    if target.kind == "f":
        return rng.normal(scale=300, size=shape).astype(target)
    limits = np.iinfo(target)
    raw = rng.integers(limits.min, limits.max, shape, dtype=target.newbyteorder("="), endpoint=True)
    raw.flat[:2] = limits.min, limits.max
    return raw.astype(target)


def copied(path: Path) -> tuple[Any, Any]:
    """A file as nibabel sees it, and what comes back when it is read and written."""
    volume = read_volume(path)
    back = path.with_name(f"back-{path.name}")
    write_volume(back, volume.voxels, volume)
    return nibabel.load(path), nibabel.load(back)


def check_equal_files(before: Any, after: Any) -> None:
    assert type(before) is type(after)
    assert before.get_data_dtype().newbyteorder("=") == after.get_data_dtype().newbyteorder("=")
    raw, raw_back = before.dataobj.get_unscaled(), after.dataobj.get_unscaled()
    np.testing.assert_array_equal(np.asarray(raw), np.asarray(raw_back))
    np.testing.assert_array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
    np.testing.assert_array_equal(before.affine, after.affine)
    assert before.header.get_zooms() == after.header.get_zooms()
    for field in ("qform_code", "sform_code", "xyzt_units", "quatern_b", "qoffset_x"):
        assert before.header[field] == after.header[field]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    [
        ("int16", None, 0),
        ("uint8", None, 0),
        ("uint16", None, 0),
        ("int32", None, 0),
        ("int64", None, 0),
        ("float32", None, 0),
        ("float64", None, 0),
        ("uint8", 13.895223617553711, 0),
        ("int16", 0.075, 3100.75),
        ("float32", 2.5, 5.0),
    ],
)
def test_what_is_read_is_written_back_bit_for_bit(
    tmp_path: Path, kind: Any, dtype: str, slope: float | None, inter: float
) -> None:
    path = save(tmp_path / "a.nii", values(dtype), slope=slope, inter=inter, kind=kind)
    check_equal_files(*copied(path))


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">f8"])
def test_a_big_endian_file_keeps_its_values_and_place(tmp_path: Path, dtype: str) -> None:
    before, after = copied(save(tmp_path / "a.nii.gz", values(dtype), big_endian=True))
    assert before.header.endianness == ">"
    check_equal_files(before, after)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_storage_orientation_is_read_as_ras_and_written_back(
    tmp_path: Path, order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    orientation = np.stack([order, signs], axis=1)
    ras = nibabel.Nifti1Image(values("int16"), oblique())
    stored = ras.as_reoriented(orientation)
    path = tmp_path / "a.nii"
    stored.to_filename(path)
    volume = read_volume(path)
    # nibabel's own canonical form is the independent answer
    oracle = nibabel.as_closest_canonical(nibabel.load(path))
    np.testing.assert_array_equal(volume.voxels, np.asarray(oracle.dataobj))
    np.testing.assert_allclose(volume.affine, oracle.affine, atol=1e-5)
    assert volume.voxels.shape == SHAPE
    assert volume.voxels.flags.writeable
    assert volume.voxels.flags.c_contiguous
    assert volume.spacing_mm == pytest.approx((0.9, 1.1, 5.0), abs=1e-5)
    check_equal_files(*copied(path))


def test_the_orientations_are_all_48() -> None:
    assert len({str(item) for item in ORIENTATIONS}) == 48


def test_a_written_volume_lies_where_another_reader_looks_for_it(tmp_path: Path) -> None:
    stored = nibabel.Nifti1Image(values("float32"), oblique()).as_reoriented(
        np.array([[1, -1], [2, 1], [0, -1]])
    )
    stored.to_filename(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    write_volume(tmp_path / "b.nii.gz", volume.voxels, volume, dtype=np.dtype(np.float32))
    image = SimpleITK.ReadImage(str(tmp_path / "b.nii.gz"))
    for index in [(0, 0, 0), (2, 1, 4), (1, 3, 2)]:
        x, y, z = (volume.affine @ [*index, 1])[:3]
        # ITK counts x and y to the left and to the back
        found = image.TransformPhysicalPointToIndex((-float(x), -float(y), float(z)))
        assert image.GetPixel(found) == volume.voxels[index]


@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-20, 1.0, 1e20]))
def test_float32_voxels_survive_writing_exactly(
    tmp_path_factory: pytest.TempPathFactory, seed: int, scale: float
) -> None:
    folder = tmp_path_factory.mktemp("exact")
    like = read_volume(save(folder / "like.nii", values("int16")))
    voxels = (np.random.default_rng(seed).normal(size=SHAPE) * scale).astype(np.float32)
    write_volume(folder / "a.nii.gz", voxels, like, dtype=np.dtype(np.float32))
    np.testing.assert_array_equal(read_volume(folder / "a.nii.gz").voxels, voxels)


def test_no_text_of_the_input_reaches_the_output(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values("int16"), oblique())
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = b"JANE DOE 1970"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"JANE DOE 1970"))
    image.to_filename(tmp_path / "a.nii")
    assert b"JANE DOE" in (tmp_path / "a.nii").read_bytes()
    copied(tmp_path / "a.nii")
    assert b"JANE" not in (tmp_path / "back-a.nii").read_bytes()


@pytest.mark.parametrize(("slope", "inter"), [(None, 0.0), (0.5, 3.0)])
def test_values_that_the_stored_type_cannot_hold_make_the_file_float32(
    tmp_path: Path, slope: float | None, inter: float
) -> None:
    like = read_volume(save(tmp_path / "a.nii", values("int16"), slope=slope, inter=inter))
    for change in (0.125, 1e6):
        write_volume(tmp_path / "b.nii", like.voxels + change, like)
        written = nibabel.load(tmp_path / "b.nii")
        assert written.get_data_dtype() == np.float32
        expected = (like.voxels + change).astype(np.float32)
        np.testing.assert_array_equal(read_volume(tmp_path / "b.nii").voxels, expected)


def test_an_asked_for_integer_type_rounds(tmp_path: Path) -> None:
    like = read_volume(save(tmp_path / "a.nii", values("float32"), slope=2.0))
    voxels = np.linspace(-1024.4, 3000.4, 60).reshape(SHAPE)
    write_volume(tmp_path / "b.nii", voxels, like, dtype=np.dtype(np.int16))
    written = nibabel.load(tmp_path / "b.nii")
    assert written.get_data_dtype() == np.int16
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.rint(voxels))


@pytest.mark.parametrize("bad", [40000.0, -32769.0, np.nan, np.inf])
def test_what_does_not_fit_is_refused_and_the_old_file_stays(tmp_path: Path, bad: float) -> None:
    like = read_volume(save(tmp_path / "a.nii", values("int16")))
    before = (tmp_path / "a.nii").read_bytes()
    voxels = np.zeros(SHAPE)
    voxels[1, 1, 1] = bad
    with pytest.raises(VolumeError, match=r"cannot write volume 'a\.nii'"):
        write_volume(tmp_path / "a.nii", voxels, like, dtype=np.dtype(np.int16))
    assert (tmp_path / "a.nii").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    like = read_volume(save(tmp_path / "a.nii", values("int16")))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VolumeError, match="cannot write volume"):
        write_volume(tmp_path / "file" / "b.nii", like.voxels, like)
    with pytest.raises(VolumeError, match="does not end in"):
        write_volume(tmp_path / "b.mha", like.voxels, like)


def test_voxels_of_another_shape_are_a_fault_of_the_caller(tmp_path: Path) -> None:
    like = read_volume(save(tmp_path / "a.nii", values("int16")))
    with pytest.raises(ValueError, match="shape"):
        write_volume(tmp_path / "b.nii", like.voxels[1:], like)


def test_equal_volumes_give_equal_files(tmp_path: Path) -> None:
    like = read_volume(save(tmp_path / "a.nii.gz", values("int16")))
    for name in ("b.nii.gz", "c.nii.gz"):
        write_volume(tmp_path / name, like.voxels, like)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_the_digest_is_of_the_files_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", values("int16"))
    assert read_volume(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_trailing_axes_of_length_1_are_dropped(tmp_path: Path) -> None:
    voxels = values("int16")
    volume = read_volume(save(tmp_path / "a.nii", voxels[..., None, None]))
    np.testing.assert_array_equal(volume.voxels, voxels)


def moved(volume: Volume, by_mm: float) -> Volume:
    affine = volume.affine.copy()
    affine[1, 3] += by_mm
    return Volume(volume.voxels, affine, volume.grid, volume.digest)


def test_one_grid_stored_in_two_orientations_is_one_grid(tmp_path: Path) -> None:
    ras = nibabel.Nifti1Image(values("int16"), oblique())
    ras.to_filename(tmp_path / "a.nii")
    ras.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])).to_filename(tmp_path / "b.nii")
    first, second = (read_volume(tmp_path / name) for name in ("a.nii", "b.nii"))
    check_same_grid(first, second, ("a", "b"))
    check_same_grid(first, moved(second, 5e-4), ("a", "b"))
    with pytest.raises(AffineError, match=r"'a' and 'b'.*0\.050 mm"):
        check_same_grid(first, moved(second, 0.05), ("a", "b"))


def test_a_turned_or_smaller_grid_is_another_grid(tmp_path: Path) -> None:
    first = read_volume(save(tmp_path / "a.nii", values("int16")))
    wider = oblique()
    wider[:3, 2] *= 1.001
    with pytest.raises(AffineError):
        check_same_grid(
            first, read_volume(save(tmp_path / "b.nii", values("int16"), wider)), ("a", "b")
        )
    smaller = read_volume(save(tmp_path / "c.nii", values("int16", (3, 4, 4))))
    with pytest.raises(AffineError, match="voxels"):
        check_same_grid(first, smaller, ("a", "c"))
