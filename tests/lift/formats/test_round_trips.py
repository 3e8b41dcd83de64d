"""What SimpleITK and nibabel write is read as they read it: voxels exactly, places to a micron."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from lift.volumes.volume import check_same_grid, read_volume, write_volume
from tests.lift.formats.cases import (
    NAME,
    SHAPE,
    Array,
    check_places,
    decoded,
    examples,
    itk_answer,
    itk_image,
    meta_text,
    nifti,
    nrrd_text,
    stored,
    turned,
    voxels,
)

NUMBERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
NRRD_TYPES = {
    "u1": "uchar",
    "i1": "signed char",
    "u2": "ushort",
    "i2": "short",
    "u4": "uint",
    "i4": "int",
    "u8": "uint64",
    "i8": "long long int",
    "f4": "float",
    "f8": "double",
}
META_TYPES = {
    "u1": "UCHAR",
    "i1": "CHAR",
    "u2": "USHORT",
    "i2": "SHORT",
    "u4": "UINT",
    "i4": "INT",
    "u8": "ULONG_LONG",
    "i8": "LONG_LONG",
    "f4": "FLOAT",
    "f8": "DOUBLE",
}


def check_against_itk(path: Path) -> None:
    found = decoded(path)
    data, affine = itk_answer(path)
    assert found.data.dtype.newbyteorder("=") == data.dtype
    np.testing.assert_array_equal(found.data, data)
    check_places(found.affine, affine, data.shape, 1e-6)
    check_places(found.header.get_best_affine(), affine, data.shape, 1e-3)
    volume = read_volume(path)
    oracle = nibabel.as_closest_canonical(nibabel.Nifti1Image(data, affine, dtype=data.dtype))
    np.testing.assert_array_equal(volume.voxels, np.asarray(oracle.dataobj))
    check_places(volume.affine, oracle.affine, volume.voxels.shape, 1e-6)


@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd", "nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_what_itk_writes_is_read_as_itk_reads_it(
    tmp_path: Path, suffix: str, compressed: bool, dtype: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    SimpleITK.WriteImage(itk_image(voxels(dtype), turned()), str(path), compressed)
    check_against_itk(path)


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_storage_orientation_lies_where_itk_puts_it(
    tmp_path: Path, suffix: str, order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    image = nibabel.Nifti1Image(voxels(), turned())
    turned_image = image.as_reoriented(np.stack([order, signs], axis=1))
    path = tmp_path / f"a.{suffix}"
    data = np.asarray(turned_image.dataobj)
    SimpleITK.WriteImage(itk_image(data, turned_image.affine), str(path))
    check_against_itk(path)


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize(("order", "word", "msb"), [("<", "little", "0"), (">", "big", "True")])
def test_both_byte_orders_are_read(
    tmp_path: Path, dtype: str, order: str, word: str, msb: str
) -> None:
    data = voxels(order + dtype)
    text = nrrd_text({"type": NRRD_TYPES[dtype], "endian": word})
    (tmp_path / "a.nrrd").write_bytes(text + stored(data))
    meta = {"ElementType": f"MET_{META_TYPES[dtype]}", "BinaryDataByteOrderMSB": msb}
    (tmp_path / "a.mha").write_bytes(meta_text(meta) + stored(data))
    for name in ("a.nrrd", "a.mha"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).voxels, data)
        check_against_itk(tmp_path / name)


@pytest.mark.parametrize("space", ["RAS", "LAS", "LPS", "left-posterior-superior"])
def test_each_space_of_the_patient_is_turned_to_ras(tmp_path: Path, space: str) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd_text({"space": space}) + stored(voxels()))
    check_against_itk(path)


@pytest.mark.parametrize("suffix", ["mgh", "mgz"])
@pytest.mark.parametrize("dtype", [">u1", ">i2", ">i4", ">f4", ">u2"])
def test_what_nibabel_writes_as_mgh_is_read_as_it_reads_it(
    tmp_path: Path, suffix: str, dtype: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    content = nibabel.MGHImage(voxels(dtype), turned()).to_bytes()
    path.write_bytes(gzip.compress(content) if suffix == "mgz" else content)
    found, oracle = decoded(path), nibabel.MGHImage.from_bytes(content)
    np.testing.assert_array_equal(found.data, np.asarray(oracle.dataobj))
    check_places(found.affine, oracle.affine, SHAPE, 1e-6)
    check_places(found.affine, turned(), SHAPE, 1e-3)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("slope", [None, 0.5])
def test_a_nifti_pair_is_read_by_either_name(
    tmp_path: Path, kind: Any, packed: str, slope: float | None
) -> None:
    image = nifti(voxels(), turned(), kind)
    if slope is not None:
        image.header.set_slope_inter(slope, 3)
    image.to_filename(tmp_path / "a.img")
    if packed:
        for name in ("a.img", "a.hdr"):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
            (tmp_path / name).unlink()
    oracle = nibabel.as_closest_canonical(nibabel.load(tmp_path / f"a.img{packed}"))
    digests = set()
    for name in ("a.img", "a.hdr"):
        volume = read_volume(tmp_path / (name + packed))
        np.testing.assert_array_equal(volume.voxels, np.asarray(oracle.dataobj))
        np.testing.assert_allclose(volume.affine, oracle.affine, atol=1e-9)
        digests.add(volume.digest)
    assert len(digests) == 1
    # a pair comes back as one file
    write_volume(tmp_path / "b.nii", volume.voxels, volume)
    again = read_volume(tmp_path / "b.nii")
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    check_same_grid(volume, again, ("a", "b"))


@pytest.mark.parametrize("name", examples(voxels()))
def test_every_format_is_one_volume_and_is_written_as_nifti(tmp_path: Path, name: str) -> None:
    path = examples(voxels())[name].write(tmp_path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, voxels())
    np.testing.assert_allclose(volume.affine[:3, 3], (-7, 8, 9.5), atol=1e-4)
    assert volume.voxels.flags.writeable
    write_volume(tmp_path / "out.nii.gz", volume.voxels, volume)
    again = read_volume(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    assert again.voxels.dtype == volume.voxels.dtype
    check_same_grid(volume, again, ("a", "b"))
    assert NAME.encode() not in volume.grid.header.binaryblock
    if name == "nifti2":  # which ITK does not read
        return
    data, affine = itk_answer(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(data, again_stored(volume))
    check_places(volume.grid.affine, affine, SHAPE, 1e-3)


def again_stored(volume: Any) -> Array:
    """The voxels along the axes of the file behind them."""
    back = nibabel.orientations.ornt_transform(
        np.array([[0, 1], [1, 1], [2, 1]]), volume.grid.orientation
    )
    return np.asarray(nibabel.orientations.apply_orientation(volume.voxels, back))


@pytest.mark.parametrize("name", examples(voxels()))
def test_the_digest_covers_every_file_of_a_volume(tmp_path: Path, name: str) -> None:
    example = examples(voxels())[name]
    path = example.write(tmp_path)
    before = read_volume(path).digest
    data = voxels()
    data[1, 1, 1] ^= 1
    changed = examples(data)[name].write(tmp_path)
    assert read_volume(changed).digest != before


@given(seed=st.integers(0, 2**16), sheared=st.booleans())
def test_any_affine_survives_in_the_fresh_header(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sheared: bool
) -> None:
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    if sheared:
        turn = turn @ (np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1))
    spacing, origin = rng.uniform(0.3, 6, 3), rng.uniform(-500, 500, 3)
    directions = " ".join(
        "({!r},{!r},{!r})".format(*map(float, turn[:, axis] * spacing[axis])) for axis in range(3)
    )
    path = tmp_path_factory.mktemp("affine") / "a.nrrd"
    changes = {
        "space directions": directions,
        "space origin": "({!r},{!r},{!r})".format(*map(float, origin)),
    }
    path.write_bytes(nrrd_text(changes) + stored(voxels()))
    volume = read_volume(path)
    np.testing.assert_allclose(volume.grid.affine[:3, :3], turn * spacing, atol=1e-12)
    write_volume(path.with_name("b.nii"), volume.voxels, volume)
    check_same_grid(volume, read_volume(path.with_name("b.nii")), ("a", "b"))
    header = volume.grid.header
    assert header["sform_code"] == 1
    # a quaternion cannot hold sheared axes: better none than a wrong one
    assert header["qform_code"] == (0 if sheared else 1)


def test_trailing_axes_of_length_1_are_dropped(tmp_path: Path) -> None:
    nrrd = {
        "dimension": "4",
        "sizes": "4 5 6 1",
        "space directions": "(1,0,0) (0,1,0) (0,0,3) none",
        "kinds": "domain domain domain list",
    }
    (tmp_path / "a.nrrd").write_bytes(nrrd_text(nrrd) + stored(voxels()))
    meta = {
        "NDims": "4",
        "DimSize": "4 5 6 1",
        "ElementSpacing": "1 1 3 1",
        "Offset": "7 -8 9.5 0",
        "TransformMatrix": "-1 0 0 0 0 -1 0 0 0 0 1 0 0 0 0 1",
    }
    (tmp_path / "a.mha").write_bytes(meta_text(meta) + stored(voxels()))
    for name in ("a.nrrd", "a.mha"):
        assert decoded(tmp_path / name).data.shape == SHAPE


def test_what_a_header_says_to_skip_is_skipped(tmp_path: Path) -> None:
    raw, path = stored(voxels()), tmp_path / "a.nhdr"
    beside = tmp_path / "a.raw"
    for changes, content in [
        ({"byte skip": "5"}, b"12345" + raw),
        ({"byte skip": "-1"}, b"any header" + raw),
        ({"line skip": "2", "byteskip": "1"}, b"one\ntwo\n3" + raw),
        ({"encoding": "gzip", "byte skip": "3"}, gzip.compress(b"123" + raw)),
        ({"encoding": "gzip", "line skip": "1"}, b"one\n" + gzip.compress(raw)),
    ]:
        path.write_bytes(nrrd_text({**changes, "data file": "a.raw"}))
        beside.write_bytes(content)
        np.testing.assert_array_equal(decoded(path).data, voxels())
        if "byte skip" not in changes or changes.get("encoding") != "gzip":
            np.testing.assert_array_equal(itk_answer(path)[0], voxels())
    path = tmp_path / "a.mhd"
    for size in ("4", "-1"):
        path.write_bytes(meta_text({"HeaderSize": size, "ElementDataFile": "a.raw"}))
        beside.write_bytes(b"1234" + raw)
        np.testing.assert_array_equal(decoded(path).data, voxels())
        np.testing.assert_array_equal(itk_answer(path)[0], voxels())


def test_a_volume_longer_than_nifti1_counts_keeps_its_place(tmp_path: Path) -> None:
    shape = (40_000, 2, 2)
    text = nrrd_text({"sizes": "40000 2 2"})
    (tmp_path / "a.nrrd").write_bytes(text + stored(voxels("<i2", shape)))
    volume = read_volume(tmp_path / "a.nrrd")
    write_volume(tmp_path / "b.nii", volume.voxels, volume)
    check_same_grid(volume, read_volume(tmp_path / "b.nii"), ("a", "b"))


def test_line_ends_and_spellings_of_other_programs_are_read(tmp_path: Path) -> None:
    windows = nrrd_text().replace(b"\n", b"\r\n").replace(b"space directions", b"Space Directions")
    (tmp_path / "a.nrrd").write_bytes(windows + stored(voxels()))
    both = {"ElementByteOrderMSB": "False", "Position": "7 -8 9.5", "0010|0010": NAME}
    (tmp_path / "a.mha").write_bytes(meta_text(both) + stored(voxels()))
    for name in ("a.nrrd", "a.mha"):
        np.testing.assert_array_equal(decoded(tmp_path / name).data, voxels())
