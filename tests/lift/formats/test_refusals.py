"""Files of each format that must be refused, and what the operator reads then."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lift.errors import AffineError, VolumeError
from lift.volumes.volume import read_volume
from tests import wording
from tests.lift.formats.cases import (
    NAME,
    examples,
    meta_text,
    nifti,
    nrrd_text,
    stored,
    turned,
    voxels,
)

RAW = stored(voxels())
Changes = dict[str, str | None]


def refused(path: Path, *, file: str = "") -> VolumeError:
    """The refusal: all four parts, the file's name (or the other one's), no text of its header."""
    with pytest.raises(VolumeError) as caught:
        read_volume(path, root=path.parent)
    error = caught.value
    assert all((error.what, error.where, error.seen, error.remedy))
    assert error.what == f"cannot use volume '{file or path.name}'"
    assert NAME not in str(error)
    return error


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"encoding": "ascii"}, "encoding is ascii; raw and gzip"),
        ({"encoding": "bzip2"}, "encoding is bzip2"),
        ({"encoding": NAME}, "encoding is unknown"),
        ({"encoding": None}, "lacks the field 'encoding'"),
        ({"type": "block"}, wording.NUMBER_FORMAT),
        ({"type": "complex float"}, wording.NUMBER_FORMAT),
        ({"endian": None}, "lacks the field 'endian'"),
        ({"endian": "middle"}, "'endian'"),
        ({"dimension": "4", "sizes": "4 5 6 2"}, "4 axes longer than 1"),
        ({"dimension": "4", "sizes": "3 4 5 6"}, "4 axes longer than 1"),
        ({"dimension": "2", "sizes": "4 30"}, "2 axes longer than 1"),
        ({"sizes": "4 30 1"}, "at least 2 on each axis"),
        ({"sizes": "4 5 0"}, "at least 2 on each axis"),
        ({"sizes": "4 5 -6"}, "at least 2 on each axis"),
        ({"sizes": "4 5 six"}, "'sizes'"),
        ({"sizes": "4 5"}, "'dimension'"),
        ({"sizes": "1000 1000 100000"}, "at most 4 GiB"),
        ({"sizes": "9999999999999999 99999999999999 9999999999"}, "at most 4 GiB"),
        ({"kinds": "vector domain domain"}, "not in space"),
        ({"kinds": "domain domain list"}, "not in space"),
        ({"kinds": "domain domain RGB-color"}, "not in space"),
        ({"kinds": "domain domain"}, "'kinds'"),
        ({"sizes": "4 5 7"}, f"{wording.ENDS_EARLY}: 240 of 280 bytes"),
        ({"sizes": "4 5 5"}, f"more voxels than {wording.HEADER_CLAIMS}"),
        ({"byte skip": "-2"}, "'byte skip'"),
        ({"byte skip": "999999999999999999"}, wording.ENDS_EARLY),
        ({"line skip": "9999"}, "lines that its header skips"),
        ({"line skip": "999999999"}, "'line skip'"),
        ({"data file": "LIST"}, "several files"),
        ({"data file": "slice%03d.raw 1 9 1"}, "several files"),
        ({"data file": "missing.raw"}, "not beside its header"),
        ({"not a field": None, "sizes ": "4 5 6"}, "there twice"),
    ],
)
def test_an_nrrd_file_that_is_not_one_plain_volume_is_refused(
    tmp_path: Path, changes: Changes, seen: str
) -> None:
    (tmp_path / "a.nrrd").write_bytes(nrrd_text(changes) + RAW)
    (tmp_path / "b.raw").write_bytes(RAW)
    assert seen in refused(tmp_path / "a.nrrd").seen


@pytest.mark.parametrize(
    "changes",
    [
        {"space": None},
        {"space": "scanner-xyz"},
        {"space": "3D-right-handed"},
        {"space": None, "space dimension": "3"},
        {"space directions": None, "spacings": "1 1 3"},
        {"space origin": None},
        {"space units": '"cm" "cm" "cm"'},
        {"space directions": "(1,0,0) (0,0,0) (0,0,3)"},
        {"space directions": "(1,0,0) (2,0,0) (0,0,3)"},
        {"space directions": "(1e300,0,0) (0,1,0) (0,0,3)"},
        {"space directions": "(1e-60,0,0) (0,1,0) (0,0,3)"},
    ],
)
def test_an_nrrd_file_without_a_place_in_the_patient_is_refused(
    tmp_path: Path, changes: Changes
) -> None:
    (tmp_path / "a.nrrd").write_bytes(nrrd_text(changes) + RAW)
    assert isinstance(refused(tmp_path / "a.nrrd"), AffineError)


@pytest.mark.parametrize("word", ["nan", "inf", "1_0", "0x1", "1e999", "", "1" * 50, "٣"])
def test_only_finite_plain_numbers_are_numbers(tmp_path: Path, word: str) -> None:
    directions = f"({word},0,0) (0,1,0) (0,0,3)"
    (tmp_path / "a.nrrd").write_bytes(nrrd_text({"space directions": directions}) + RAW)
    assert "'space directions'" in refused(tmp_path / "a.nrrd").seen
    (tmp_path / "a.mha").write_bytes(meta_text({"Offset": f"{word} 0 x"}) + RAW)
    assert "'Offset'" in refused(tmp_path / "a.mha").seen


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"ElementNumberOfChannels": "3"}, "several channels"),
        ({"BinaryData": "False"}, "as text"),
        ({"BinaryData": "Perhaps"}, "'BinaryData'"),
        ({"ElementType": "MET_STRING"}, wording.NUMBER_FORMAT),
        ({"ElementType": NAME}, wording.NUMBER_FORMAT),
        ({"ElementType": "MET_FLOAT_ARRAY"}, wording.NUMBER_FORMAT),
        ({"BinaryDataByteOrderMSB": None}, "'ElementByteOrderMSB'"),
        ({"ElementByteOrderMSB": "True"}, "two things"),
        ({"ObjectType": "Tube"}, "not that of an image"),
        ({"NDims": "4", "DimSize": "4 5 6 2"}, "4 axes longer than 1"),
        ({"NDims": "2", "DimSize": "4 30"}, "2 axes longer than 1"),
        ({"NDims": "-1"}, "'DimSize'"),
        ({"NDims": "999"}, "not that of an image"),
        ({"DimSize": "4 30 1"}, "at least 2 on each axis"),
        ({"DimSize": "4 5 -6"}, "at least 2 on each axis"),
        ({"DimSize": "1000 1000 100000"}, "at most 4 GiB"),
        ({"DimSize": "4 5 7"}, f"{wording.ENDS_EARLY}: 240 of 280 bytes"),
        ({"DimSize": "4 5 5"}, f"more voxels than {wording.HEADER_CLAIMS}"),
        ({"HeaderSize": "-2"}, "'HeaderSize'"),
        ({"HeaderSize": "999999999999"}, wording.ENDS_EARLY),
        ({"CompressedData": "True"}, "damaged"),
        ({"CompressedData": "True", "CompressedDataSize": "99999"}, wording.ENDS_EARLY),
        ({"CompressedData": "True", "CompressedDataSize": "-1"}, "'CompressedDataSize'"),
        ({"CompressedData": "True", "HeaderSize": "4"}, "'HeaderSize'"),
        ({"ElementToIntensityFunctionSlope": "2"}, "scale factor"),
        ({"ElementDataFile": "LIST"}, "several files"),
        ({"ElementDataFile": "a%03d.raw 1 6 1"}, "several files"),
        ({"ElementDataFile": "missing.raw"}, "not beside its header"),
    ],
)
def test_a_metaimage_file_that_is_not_one_plain_volume_is_refused(
    tmp_path: Path, changes: Changes, seen: str
) -> None:
    (tmp_path / "a.mha").write_bytes(meta_text(changes) + RAW)
    assert seen in refused(tmp_path / "a.mha").seen


@pytest.mark.parametrize(
    "changes",
    [
        {"TransformMatrix": None},
        {"Offset": None},
        {"ElementSpacing": None},
        {"ElementSpacing": "1 1 0"},
        {"ElementSpacing": "1 1 -3"},
        {"ElementSpacing": "1 1 1e-60"},
        {"TransformMatrix": "1 0 0 1 0 0 0 0 1"},
        {"TransformMatrix": "0 0 0 0 0 0 0 0 0"},
        {"TransformMatrix": "1e300 0 0 0 1e300 0 0 0 1e300"},
        {"DistanceUnits": "um"},
    ],
)
def test_a_metaimage_file_without_a_place_in_the_patient_is_refused(
    tmp_path: Path, changes: Changes
) -> None:
    (tmp_path / "a.mha").write_bytes(meta_text(changes) + RAW)
    assert isinstance(refused(tmp_path / "a.mha"), AffineError)


def test_a_text_header_that_does_not_end_is_refused(tmp_path: Path) -> None:
    headers = {
        "a.mha": meta_text({"ElementDataFile": None}),
        "b.mha": meta_text({"ElementDataFile": None}) + b"no field\n",
        "c.mha": meta_text({"ElementDataFile": None}) + b"Comment = x\n" * 100_000,
        "a.nrrd": nrrd_text()[:-1] + b"#\n" * 600_000,
        "b.nrrd": nrrd_text()[:-1] + b"#" * 1_200_000,
        "a.mhd": b"Comment = \n" * 200_000 + meta_text({"ElementDataFile": "a.raw"}),
        "a.nhdr": nrrd_text({"data file": "a.raw"}) + bytes(1_200_000),
    }
    (tmp_path / "a.raw").write_bytes(RAW)
    for name, content in headers.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.raw",
        "sub/secret.raw",
        "./../secret.raw",
        "..",
        "",
        "{folder}/secret.raw",
        "..\\secret.raw",
        "C:secret.raw",
        "http://example.org/secret.raw",
        "file:secret.raw",
        "a\0b",
        "x" * 5000,
    ],
)
def test_no_header_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    for folder in (tmp_path, inside / "sub"):
        (folder / "secret.raw").write_bytes(RAW)
    name = name.format(folder=tmp_path)
    (inside / "a.nhdr").write_bytes(nrrd_text({"data file": name}))
    (inside / "a.mhd").write_bytes(meta_text({"ElementDataFile": name}))
    for path in (inside / "a.nhdr", inside / "a.mhd"):
        assert "secret" not in str(refused(path))


def test_a_pipe_beside_a_header_does_not_keep_us_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.raw")
    (tmp_path / "a.mhd").write_bytes(meta_text({"ElementDataFile": "a.raw"}))
    refused(tmp_path / "a.mhd")
    refused(tmp_path / "a.raw")


def test_voxels_without_their_header_are_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(RAW)
    assert ".mhd" in refused(tmp_path / "a.raw").remedy


def test_half_of_a_pair_is_refused(tmp_path: Path) -> None:
    pair = examples(voxels())["pair"]
    pair.write(tmp_path)
    (tmp_path / "a.img").unlink()
    assert "not beside it" in refused(tmp_path / "a.hdr").seen
    pair.write(tmp_path)
    (tmp_path / "a.hdr").write_bytes(pair.files["a.hdr"] + bytes(2 << 20))
    assert "far too long" in refused(tmp_path / "a.hdr").seen
    pair.write(tmp_path)
    (tmp_path / "a.img.gz").write_bytes(gzip.compress(RAW))
    assert "two files" in refused(tmp_path / "a.hdr").seen
    (tmp_path / "a.img.gz").unlink()
    (tmp_path / "a.hdr").unlink()
    assert "not an image" in refused(tmp_path / "a.img").seen


def test_analyze_is_refused_for_left_and_right_cannot_be_told_apart(tmp_path: Path) -> None:
    header = nibabel.AnalyzeHeader()
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(np.int16)
    (tmp_path / "a.hdr").write_bytes(header.binaryblock)
    for _ in range(2):
        error = refused(tmp_path / "a.hdr")
        assert isinstance(error, AffineError)
        assert wording.SIDES_UNKNOWN in error.seen
        # with its voxels too, by either name
        (tmp_path / "a.img").write_bytes(RAW)
    assert isinstance(refused(tmp_path / "a.img"), AffineError)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_nifti_file_without_an_orientation_is_refused(tmp_path: Path, kind: type) -> None:
    image = nifti(voxels(), turned(), kind)
    content = bytearray(image.to_bytes())
    header = image.header.copy()
    header["sform_code"] = 0
    header["vox_offset"] = header.single_vox_offset
    path = tmp_path / "a.nii"
    for code in (0, 1):
        header["qform_code"] = code
        content[: header.sizeof_hdr] = header.binaryblock
        path.write_bytes(content)
        if code:
            assert read_volume(path).voxels.shape == voxels().shape
        else:
            error = refused(path)
            assert isinstance(error, AffineError)
            assert f"{wording.SIDES_UNKNOWN} cannot be told apart" in error.seen


@pytest.mark.parametrize(
    ("unit", "is_read"), [("unknown", True), ("mm", True), (1, False), (3, False)]
)
def test_only_lengths_in_mm_are_lengths(tmp_path: Path, unit: str | int, is_read: bool) -> None:
    image = nifti(voxels(), turned())
    image.header.set_xyzt_units(unit, "sec")
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    if is_read:
        read_volume(tmp_path / "a.nii")
    else:
        assert "not in mm" in refused(tmp_path / "a.nii").seen


def test_reading_says_nothing_to_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(nifti(voxels(), turned()).to_bytes())
    # a spacing of 0 and an offset that other software does not like
    content[80:84] = bytes(4)
    content[108:112] = np.float32(353).tobytes()
    (tmp_path / "a.nii").write_bytes(content + b"\0")
    read_volume(tmp_path / "a.nii")
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_an_mgh_file_without_a_place_or_with_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mgh"
    content = bytearray(nibabel.MGHImage(voxels(">i2"), turned()).to_bytes())
    content[28:30] = b"\0\0"
    path.write_bytes(bytes(content))
    error = refused(path)
    assert isinstance(error, AffineError)
    assert wording.SIDES_UNKNOWN in error.seen
    frames = np.stack([voxels(">i2")] * 2, axis=-1)
    path.write_bytes(nibabel.MGHImage(frames, turned()).to_bytes())
    assert "4 axes" in refused(path).seen
    content[20:24] = b"\0\0\0\2"
    path.write_bytes(bytes(content))
    assert wording.NUMBER_FORMAT in refused(path).seen


def test_packed_voxels_of_another_length_are_refused(tmp_path: Path) -> None:
    for extra in (-1, 1, 100_000):
        content = RAW[:extra] if extra < 0 else RAW + bytes(extra)
        text = nrrd_text({"encoding": "gzip"})
        (tmp_path / "a.nrrd").write_bytes(text + gzip.compress(content))
        packed = zlib.compress(content)
        (tmp_path / "a.mha").write_bytes(meta_text({"CompressedData": "True"}) + packed)
        for name in ("a.nrrd", "a.mha"):
            seen = refused(tmp_path / name).seen
            assert (wording.ENDS_EARLY if extra < 0 else "more voxels") in seen


@pytest.mark.parametrize("name", ["nifti1-gz", "pair-gz", "mgz", "nrrd-gz", "nhdr-gz"])
def test_gzip_in_several_members_is_read_and_junk_after_it_is_not(
    tmp_path: Path, name: str
) -> None:
    example = examples(voxels())[name]
    for file, content in example.files.items():
        if not content.startswith(b"\x1f\x8b") and name != "nrrd-gz":
            (tmp_path / file).write_bytes(content)
            continue
        start = content.index(b"\x1f\x8b\x08")
        plain = gzip.decompress(content[start:])
        members = gzip.compress(plain[:100]) + gzip.compress(b"") + gzip.compress(plain[100:])
        (tmp_path / file).write_bytes(content[:start] + members + bytes(70_000))
    np.testing.assert_array_equal(read_volume(tmp_path / example.path).voxels, voxels())
    for junk in (b"junk", gzip.compress(b"") * 100, content[start : start + 30]):
        (tmp_path / file).write_bytes(content[:start] + members + junk)
        seen = refused(tmp_path / example.path, file=file).seen
        assert "damaged" in seen or "more voxels" in seen
