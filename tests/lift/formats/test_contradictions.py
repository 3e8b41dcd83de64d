"""Headers that contradict themselves: voxels inside the header, unread kinds named as they are."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lift.errors import VolumeError
from lift.volumes.volume import read_volume
from tests.lift.formats.cases import examples, meta_text, nrrd_text, stored, turned, voxels
from tests.lift.formats.dicom_cases import series, write

# vox_offset, datatype and the length of the fourth axis: place and form, by version
FIELDS = {1: (108, "f", 70, 40, "h"), 2: (168, "q", 12, 16, "q")}


def file_of(version: int, order: str = "<") -> bytearray:
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(voxels().astype(np.int16), turned())
    if order == ">":
        image = kind(voxels().astype(">i2"), turned(), image.header.as_byteswapped(">"))
    return bytearray(image.to_bytes())


def refused(path: Path, content: bytes, *, labels: bool = False) -> VolumeError:
    path.write_bytes(content)
    with pytest.raises(VolumeError) as caught:
        read_volume(path, root=path.parent, labels=labels)
    error = caught.value
    assert all((error.what, error.where, error.seen, error.remedy))
    return error


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("offset", [0, 1, 100, 347, -352])
def test_voxels_inside_their_own_header_are_refused_by_the_fields_name(
    tmp_path: Path, version: int, order: str, offset: int, packed: bool
) -> None:
    content = file_of(version, order)
    place, form, *_ = FIELDS[version]
    struct.pack_into(order + form, content, place, offset)
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    error = refused(path, gzip.compress(bytes(content)) if packed else bytes(content))
    assert "vox_offset" in error.seen
    assert str(offset) in error.seen


def test_voxels_at_a_part_of_a_byte_are_refused(tmp_path: Path) -> None:
    for offset in (352.5, float("nan"), float("inf")):
        content = file_of(1)
        struct.pack_into("<f", content, 108, offset)
        assert "vox_offset" in refused(tmp_path / "a.nii", bytes(content)).seen


@pytest.mark.parametrize("version", [1, 2])
def test_voxels_inside_a_header_extension_are_refused(tmp_path: Path, version: int) -> None:
    content = file_of(version)
    place, form, *_ = FIELDS[version]
    first = 352 if version == 1 else 544
    extension = struct.pack("<ii", 64, 6) + bytes(56)
    content[first - 4] = 1
    content[first:first] = extension
    for offset in (first + 8, first + 16, first + 48):
        struct.pack_into("<" + form, content, place, offset)
        error = refused(tmp_path / "a.nii", bytes(content))
        assert "vox_offset" in error.seen
        assert f"ends at {first + 64}" in error.seen
    struct.pack_into("<" + form, content, place, first + 64)
    (tmp_path / "a.nii").write_bytes(bytes(content))
    whole = read_volume(tmp_path / "a.nii").voxels
    (tmp_path / "b.nii").write_bytes(bytes(file_of(version)))
    assert np.array_equal(whole, read_volume(tmp_path / "b.nii").voxels)


def test_a_header_that_names_itself_for_its_voxels_is_refused(tmp_path: Path) -> None:
    raw = stored(voxels())
    nrrd = nrrd_text({"data file": "a.nhdr", "byte skip": "-1"})
    meta = meta_text({"ElementDataFile": "a.mhd", "HeaderSize": "-1"})
    for name, text in (("a.nhdr", nrrd), ("a.mhd", meta)):
        path = tmp_path / name
        assert "names itself" in refused(path, text + raw).seen
    # a pair of which one file is the other
    pair = examples(voxels())["pair"]
    path = pair.write(tmp_path)
    image = path.with_suffix(".img")
    header = path.with_suffix(".hdr")
    image.unlink()
    image.hardlink_to(header)
    assert "names itself" in refused(header, header.read_bytes() + raw).seen


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("code", "seen"),
    [
        (1536, "float128 (datatype 1536)"),
        (1, "single bits (datatype 1)"),
        (2048, "complex (datatype 2048)"),
        (2304, "colour (datatype 2304)"),
        (0, "not said (datatype 0)"),
        (77, "unknown (datatype 77)"),
    ],
)
def test_a_number_format_that_is_not_read_is_named(
    tmp_path: Path, version: int, code: int, seen: str
) -> None:
    content = file_of(version)
    struct.pack_into("<h", content, FIELDS[version][2], code)
    assert seen in refused(tmp_path / "a.nii", bytes(content) * 9).seen


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("axes", "lengths"), [(4, [0]), (5, [0, 0]), (7, [1, 0, 1, 0])])
def test_an_axis_after_the_third_without_a_length_has_one(
    tmp_path: Path, version: int, axes: int, lengths: list[int]
) -> None:
    content = file_of(version)
    _, _, _, place, form = FIELDS[version]
    shape = voxels().shape
    step = struct.calcsize(form)
    struct.pack_into("<" + form, content, place, axes)
    for index, length in enumerate(lengths, start=4):
        struct.pack_into("<" + form, content, place + index * step, length)
    (tmp_path / "a.nii").write_bytes(bytes(content))
    assert read_volume(tmp_path / "a.nii").voxels.shape == shape
    struct.pack_into("<" + form, content, place + 4 * step, 3)
    assert "axes longer than 1" in refused(tmp_path / "a.nii", bytes(content)).seen
    struct.pack_into("<" + form, content, place, 9)
    assert "field dim names no number of axes" in refused(tmp_path / "a.nii", bytes(content)).seen


@pytest.mark.parametrize("name", ["a.nii", "a.mgz"])
@pytest.mark.parametrize("value", [0, 1])
def test_labels_may_all_be_equal_and_an_image_may_not(
    tmp_path: Path, name: str, value: int
) -> None:
    kind: Any = nibabel.MGHImage if name.endswith("mgz") else nibabel.Nifti1Image
    kind(np.full((4, 5, 6), value, np.int16), turned()).to_filename(tmp_path / name)
    assert (read_volume(tmp_path / name, labels=True).voxels == value).all()
    with pytest.raises(VolumeError, match=f"every voxel is {value}"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        b"/annex/objects/SHA256E-s12--00.nii.gz\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha"])
def test_a_file_that_was_not_fetched_is_said_to_be_that(
    tmp_path: Path, name: str, content: bytes
) -> None:
    error = refused(tmp_path / name, content)
    assert "not fetched" in error.seen
    assert "git annex get" in error.remedy


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_voxels_of_a_pair_inside_a_header_of_their_own_file_are_refused(
    tmp_path: Path, version: int, packed: bool
) -> None:
    # the file of the voxels is a whole .nii, of which the header beside it knows nothing
    example = examples(voxels())["pair"]
    header, whole = example.files["a.hdr"], bytes(file_of(version))
    end = ".gz" if packed else ""
    image = tmp_path / f"a.img{end}"
    image.write_bytes(gzip.compress(whole) if packed else whole)
    error = refused(tmp_path / "a.hdr", header)
    assert "vox_offset" in error.seen
    assert f"'a.img{end}'" in error.what
    # negative control: past that header they are the voxels
    content = bytearray(header)
    struct.pack_into("<f", content, 108, {1: 352, 2: 544}[version])
    (tmp_path / "a.hdr").write_bytes(bytes(content))
    np.testing.assert_array_equal(
        np.sort(read_volume(tmp_path / "a.hdr").voxels, axis=None), np.sort(voxels(), axis=None)
    )


@pytest.mark.parametrize(("sform", "qform"), [(-3, 0), (0, 9), (0, 0)])
def test_the_codes_that_name_no_space_are_said(tmp_path: Path, sform: int, qform: int) -> None:
    content = file_of(1)
    struct.pack_into("<hh", content, 252, qform, sform)
    seen = refused(tmp_path / "a.nii", bytes(content)).seen
    assert f"sform_code is {sform}, qform_code is {qform}" in seen


def test_an_offset_beyond_any_file_is_refused_by_the_fields_name(tmp_path: Path) -> None:
    content = file_of(2)
    struct.pack_into("<q", content, 168, 1 << 50)
    assert "vox_offset" in refused(tmp_path / "a.nii", bytes(content)).seen


@pytest.mark.parametrize("name", ["pair", "pair-gz", "nhdr", "nhdr-gz", "mhd"])
def test_of_two_files_the_one_that_ends_early_is_named(tmp_path: Path, name: str) -> None:
    example = examples(voxels())[name]
    folder = tmp_path / "sub-1"
    folder.mkdir()
    path = example.write(folder)
    (other,) = set(example.files) - {example.header or example.path}
    (folder / other).write_bytes(example.files[other][:-9])
    with pytest.raises(VolumeError) as caught:
        read_volume(path, root=tmp_path)
    assert caught.value.what == f"cannot use volume 'sub-1/{other}'"


LINK = b"../../.git/annex/objects/Wx/2J/MD5E-s12--ab.nii.gz/MD5E-s12--ab.nii.gz"


@pytest.mark.parametrize(
    "pointer",
    [
        b"/annex/objects/MD5E-s12--ab.nii.gz\n",
        # what a disk without links has in place of one
        LINK,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
    ],
)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.dcm"])
def test_a_content_that_was_not_fetched_is_said_so(
    tmp_path: Path, name: str, pointer: bytes
) -> None:
    error = refused(tmp_path / name, pointer)
    assert "not fetched" in error.seen
    assert "git annex get" in error.remedy
    # as one file of a series, whatever the others are
    folder = tmp_path / "series"
    write(series(), folder)
    (folder / "IM9999").write_bytes(pointer)
    with pytest.raises(VolumeError, match="IM9999") as caught:
        read_volume(folder)
    assert "not fetched" in caught.value.seen
