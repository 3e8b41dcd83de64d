"""DICOM series and multi-frame files: order and geometry as ITK has them, and what is refused."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from lift.errors import AffineError, VolumeError
from lift.volumes.volume import read_volume, write_volume
from tests import wording
from tests.lift.formats.cases import (
    NAME,
    Array,
    check_places,
    decoded,
    itk_answer,
    placed,
    turned,
    voxels,
)
from tests.lift.formats.dicom_cases import enhanced, header, series, to_bytes, write

AXES = {
    "axial": np.eye(3),
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "flipped": np.diag([-1, -1, 1]),
}


def affine_of(name: str) -> Array:
    if name == "oblique":
        return turned()
    affine = np.eye(4)
    affine[:3, :3] = AXES[name] @ np.diag([0.8, 1.2, 4.5])
    affine[:3, 3] = (12.5, -30.25, 7.0)
    return affine


def itk_series(folder: Path) -> tuple[Array, Array]:
    """Voxels and RAS+ affine of a series, as ITK reads it."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return placed(reader.Execute())


def values(path: Path) -> Array:
    found = decoded(path)
    return found.data * found.slope + found.inter


@pytest.mark.parametrize("name", [*AXES, "oblique"])
def test_a_series_lies_where_itk_has_it(tmp_path: Path, name: str) -> None:
    data, affine = voxels(), affine_of(name)
    folder = write(series(data, affine), tmp_path / "series")
    found = decoded(folder)
    # the order of the slices may be that of the other end: the same places, the same voxels
    other, place = itk_series(folder)
    if np.abs(found.affine - place).max() > 1e-3:
        other = other[:, :, ::-1]
        place = place @ np.array(
            [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, data.shape[2] - 1], [0, 0, 0, 1]]
        )
    np.testing.assert_array_equal(found.data, other)
    check_places(found.affine, place, data.shape, 1e-3)
    volume = read_volume(folder)
    again = nibabel.as_closest_canonical(nibabel.Nifti1Image(data, affine))
    np.testing.assert_array_equal(volume.voxels, np.asanyarray(again.dataobj))
    check_places(volume.affine, again.affine, volume.voxels.shape, 1e-3)


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
@pytest.mark.parametrize("dtype", ["<i2", "<u2", "<u1", "<i4", "<i1"])
def test_every_encoding_gives_the_same_voxels(tmp_path: Path, syntax: str, dtype: str) -> None:
    data = voxels(dtype)
    folder = write(series(data, syntax=syntax), tmp_path)
    if syntax == uid.ExplicitVRBigEndian and data.dtype.itemsize == 4:
        assert "readers take differently" in refused(folder).seen
        return
    np.testing.assert_array_equal(decoded(folder).data, data)
    assert decoded(folder).data.dtype == data.dtype.newbyteorder("=")


def test_rle_is_unpacked(tmp_path: Path) -> None:
    data = voxels("<u2")
    packed = []
    for content in series(data):
        dataset = pydicom.dcmread(BytesIO(content))
        dataset.compress(uid.RLELossless)
        stream = BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        packed.append(stream.getvalue())
    np.testing.assert_array_equal(decoded(write(packed, tmp_path)).data, data)


def test_hounsfield_units_come_from_slope_and_intercept(tmp_path: Path) -> None:
    data = voxels("<i2") // 16
    folder = write(series(data, modality="CT"), tmp_path)
    np.testing.assert_array_equal(values(folder), data - 1024.0)

    def own_scale(index: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + index, -10 * index

    folder = write(series(data, modality="CT", change=own_scale), tmp_path / "each")
    scale = np.arange(data.shape[2])
    np.testing.assert_array_equal(values(folder), data * (1.0 + scale) - 10.0 * scale)


def test_bits_above_the_stored_ones_are_left_out(tmp_path: Path) -> None:
    for name, data in (("u", voxels("<u2") // 16), ("i", voxels("<i2") // 16)):

        def overlaid(_: int, dataset: Dataset) -> None:
            dataset.BitsStored, dataset.HighBit = 12, 11
            pixels = np.frombuffer(dataset.PixelData, "<u2")
            dataset.PixelData = ((pixels & 0x0FFF) | 0x5000).astype("<u2").tobytes()

        folder = write(series(data, change=overlaid), tmp_path / name)
        np.testing.assert_array_equal(decoded(folder).data, data)


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_a_multi_frame_file_is_the_same_volume_whatever_its_order(
    tmp_path: Path, modality: str
) -> None:
    data, affine = voxels() // 16, turned()
    (tmp_path / "a.dcm").write_bytes(
        enhanced(data, affine, modality=modality, order=[3, 0, 5, 1, 4, 2])
    )
    found = decoded(tmp_path / "a.dcm")
    check_places(found.affine, affine, data.shape, 1e-3)
    np.testing.assert_array_equal(found.data, data)
    assert found.inter == (-1024 if modality == "CT" else 0)
    in_order = tmp_path / "b.dcm"
    in_order.write_bytes(enhanced(data, affine, modality=modality))
    theirs, place = itk_answer(in_order)
    np.testing.assert_array_equal(values(in_order), theirs)
    check_places(found.affine, place, data.shape, 1e-3)
    # and in a folder of its own
    folder = tmp_path / "only"
    folder.mkdir()
    in_order.rename(folder / "c")
    np.testing.assert_array_equal(decoded(folder).data, data)


def test_names_of_files_change_nothing(tmp_path: Path) -> None:
    files = series()
    one = write(files, tmp_path / "one", seed=1)
    two = write(files[::-1], tmp_path / "two", seed=2)
    (two / "DICOMDIR").write_bytes(directory())
    (two / "README.txt").write_text("nothing")
    (two / ".hidden").write_text("nothing")
    (two / "more").mkdir()
    first, second = read_volume(one), read_volume(two)
    np.testing.assert_array_equal(first.voxels, second.voxels)
    assert first.digest == second.digest
    other = write(series(voxels() // 2), tmp_path / "three")
    assert read_volume(other).digest != first.digest


def directory() -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID = uid.MediaStorageDirectoryStorage
    return to_bytes(dataset)


def test_a_tilted_gantry_keeps_the_true_places(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[1, 2] = 5.0 * np.tan(np.deg2rad(20))
    data = voxels()
    found = decoded(write(series(data, affine, modality="CT"), tmp_path))
    np.testing.assert_array_equal(found.data, data)
    check_places(found.affine, affine, data.shape, 1e-3)


def test_a_series_is_written_as_nifti_where_it_lay(tmp_path: Path) -> None:
    volume = read_volume(write(series(), tmp_path / "series"))
    write_volume(tmp_path / "a.nii.gz", volume.voxels, volume)
    again = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    check_places(again.affine, volume.affine, volume.voxels.shape, 1e-3)
    data, affine = itk_answer(tmp_path / "a.nii.gz")
    check_places(affine, turned(), voxels().shape, 1e-3)
    np.testing.assert_array_equal(data, voxels())


def refused(path: Path) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_volume(path, root=path.parent)
    error = caught.value
    assert all((error.what, error.where, error.seen, error.remedy))
    assert NAME not in str(error)
    assert "1948" not in str(error)
    return error


def set_at(number: int | None, **fields: Any) -> Any:
    """A change of one slice, or of all: `None` as a value takes the field away."""

    def change(index: int, dataset: Dataset) -> None:
        if number is None or index == number:
            for name, value in fields.items():
                if value is None:
                    delattr(dataset, name)
                else:
                    setattr(dataset, name, value)

    return change


def moved(number: int, by_mm: tuple[float, float, float]) -> Any:
    def change(index: int, dataset: Dataset) -> None:
        if index == number:
            place = np.array(dataset.ImagePositionPatient, dtype=float) + by_mm
            dataset.ImagePositionPatient = place.tolist()

    return change


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (set_at(2, SeriesInstanceUID="1.2.3"), "files of 2 series lie in one folder (5, 1 each)"),
        (set_at(2, FrameOfReferenceUID="1.2.3"), "frames of reference"),
        (set_at(2, EchoTime="90"), "several echo times"),
        (set_at(2, ImageType=["ORIGINAL", "PRIMARY", "P"]), "magnitude and phase"),
        (set_at(None, ModalityLUTSequence=Items([Dataset()])), "Modality LUT"),
        (set_at(2, Rows=4, PixelData=bytes(32)), "several sizes: 4 x 4, 4 x 5 pixels"),
        (set_at(2, PixelSpacing=[2, 2]), "several pixel spacings"),
        (set_at(2, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "several directions"),
        (set_at(2, PixelRepresentation=0), "several number formats"),
        (set_at(None, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localiser"),
        (set_at(None, SOPClassUID=uid.PositronEmissionTomographyImageStorage), "Positron"),
        (set_at(None, SOPClassUID=uid.SecondaryCaptureImageStorage), "Secondary Capture"),
        (set_at(1, SOPClassUID=uid.RTDoseStorage), "RT Dose"),
        (set_at(1, SOPClassUID=uid.SegmentationStorage), "Segmentation"),
        (set_at(1, SOPClassUID="1.2.3.4"), "its kind is unknown"),
        (set_at(None, SamplesPerPixel=3), "colour"),
        (set_at(None, PhotometricInterpretation="MONOCHROME1"), "inverted"),
        (set_at(None, PhotometricInterpretation="PALETTE COLOR"), "not MONOCHROME2"),
        (set_at(None, LossyImageCompression="01"), "compressed with loss"),
        (set_at(None, BitsAllocated=12), wording.NUMBER_FORMAT),
        (set_at(None, HighBit=11), wording.NUMBER_FORMAT),
        (set_at(None, BitsStored=None), "BitsStored is missing"),
        (set_at(None, NumberOfFrames=3), "says that it has more"),
        (set_at(3, PixelData=bytes(38)), f"38 bytes of pixels; {wording.HEADER_CLAIMS} 40"),
        (set_at(3, PixelData=None), "holds no pixels"),
        (set_at(None, Rows=0), "Rows is missing or does not hold"),
        (set_at(None, RescaleSlope=0), "zero or not finite"),
        (set_at(3, ImagePositionPatient=None), "lacks ImagePositionPatient"),
        (set_at(3, ImagePositionPatient=[1, 2]), "ImagePositionPatient does not hold"),
        (set_at(3, PixelSpacing=None), "lacks PixelSpacing"),
        (set_at(None, PixelSpacing=[1, 0]), "not positive"),
        (set_at(None, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "right angles"),
        (moved(3, (0.0, 6.0, 0.0)), "one above the other"),
        (moved(3, (0.0, 0.0, 1.5)), "unevenly spaced"),
        (moved(3, (0.0, 0.0, 5.0)), "1 places have several images"),
    ],
)
def test_a_series_that_is_not_one_plain_stack_is_refused(
    tmp_path: Path, change: Any, seen: str
) -> None:
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    error = refused(write(series(affine=affine, change=change), tmp_path / "series"))
    assert seen in error.seen
    no_place = ("lacks", "ImagePositionPatient", "positive", "right angles")
    assert isinstance(error, AffineError) == any(word in error.seen for word in no_place)


def test_missing_slices_are_counted_and_named(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    files = series(voxels(shape=(4, 5, 12)), affine)
    kept = [content for index, content in enumerate(files) if index not in {3, 7, 8}]
    error = refused(write(kept, tmp_path / "three"))
    assert "3 slices are missing: there are 9, 5.00 mm apart, and none at 15.0, 35.0, 40.0 mm" in (
        error.seen
    )
    # every other one: only the header's word tells
    said = series(voxels(shape=(4, 5, 12)), affine, change=set_at(None, SpacingBetweenSlices="5"))
    error = refused(write(said[::2], tmp_path / "half"))
    assert "perhaps missing between all others: they lie 10.00 mm apart" in error.seen
    assert "5.00 mm (Spacing Between Slices)" in error.seen


@pytest.mark.parametrize(
    ("thickness", "said"),
    [("4", "1"), ("5", "5"), ("3", "5"), ("8", "5"), ("5", "4.9"), ("1", "9")],
)
def test_gaps_and_overlaps_that_the_scanner_meant_are_read(
    tmp_path: Path, thickness: str, said: str
) -> None:
    change = set_at(None, SliceThickness=thickness, SpacingBetweenSlices=said)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    found = decoded(write(series(affine=affine, change=change), tmp_path))
    check_places(found.affine, affine, voxels().shape, 1e-3)


@pytest.mark.parametrize("step", [0.625, 1.25, 3.3])
def test_positions_that_were_rounded_are_read(tmp_path: Path, step: float) -> None:
    def rounded(_: int, dataset: Dataset) -> None:
        place = [round(float(value), 1) for value in dataset.ImagePositionPatient]
        dataset.ImagePositionPatient = place

    affine = np.diag([1.0, 1.0, step, 1.0])
    found = decoded(write(series(voxels(shape=(4, 5, 40)), affine, change=rounded), tmp_path))
    check_places(found.affine, affine, (4, 5, 40), 0.11)


@pytest.mark.parametrize("name", ["1.2.826.105", "SLICE.0007", "last", "last.dcm", "last.img"])
@pytest.mark.parametrize("content", [b"", b"damaged", bytes(4000)])
def test_a_damaged_slice_at_an_end_is_never_passed_over(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = write(series()[:-1], tmp_path / "s")
    (folder / name).write_bytes(content)
    assert "no DICOM file" in refused(folder).seen


def test_several_images_at_each_place_are_refused_as_4d(tmp_path: Path) -> None:
    echoes = series() + series(change=set_at(None, EchoTime="90"))
    assert "each of its 6 places has 2 images" in refused(write(echoes, tmp_path / "e")).seen
    doubled = [*series(), series()[2]]
    assert "1 places have several images" in refused(write(doubled, tmp_path / "d")).seen


def test_ct_without_its_scale_is_refused(tmp_path: Path) -> None:
    change = set_at(None, RescaleIntercept=None)
    error = refused(write(series(modality="CT", change=change), tmp_path / "ct"))
    assert "Hounsfield" in error.seen


@pytest.mark.parametrize(
    "syntax",
    [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.HTJ2KLossless, uid.MPEG2MPML],
)
def test_a_packing_that_is_not_read_is_named(tmp_path: Path, syntax: uid.UID) -> None:
    plain = series()[0]
    old, new = (str(u).encode() for u in (uid.ExplicitVRLittleEndian, syntax))
    length = len(old) + len(old) % 2
    place = plain.index(old)
    new += bytes(len(new) % 2)
    stored = plain[: place - 2] + len(new).to_bytes(2, "little") + new + plain[place + length :]
    stored = stored.replace(  # the group's length grows too
        plain[128 + 4 : 128 + 16],
        plain[128 + 4 : 128 + 12]
        + (int.from_bytes(plain[140:144], "little") + len(new) - length).to_bytes(4, "little"),
    )
    error = refused(write([stored, stored], tmp_path / "s"))
    assert syntax.name in error.seen
    assert "gdcmconv" in error.remedy


def test_a_deflated_file_is_not_unpacked(tmp_path: Path) -> None:
    error = refused(write([to_bytes_deflated()], tmp_path / "s"))
    assert "deflated" in error.seen


def to_bytes_deflated() -> bytes:
    dataset = header(voxels(), "MR")
    return to_bytes(dataset, uid.DeflatedExplicitVRLittleEndian)


def test_a_uid_anywhere_else_does_not_make_a_file_deflated(tmp_path: Path) -> None:
    deflated = str(uid.DeflatedExplicitVRLittleEndian)

    def mentioned(index: int, dataset: Dataset) -> None:
        dataset.add_new(0x00090010, "LO", "ARCHIVE")
        dataset.add_new(0x00091001, "UI", deflated)
        dataset.ImageComments = f"was {deflated}"

    folder = write(series(change=mentioned), tmp_path / "s")
    assert decoded(folder).data.shape == voxels().shape
    # in the pixels
    data = voxels("<u2")
    raw = deflated.encode().ljust(24, b"\0")
    data.flat[:12] = np.frombuffer(raw, "<u2")
    stored = write(series(np.asfortranarray(data.reshape(data.shape, order="F"))), tmp_path / "p")
    assert decoded(stored).data.shape == data.shape


def test_folders_that_hold_no_series_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no DICOM image" in refused(empty).seen
    (empty / "DICOMDIR").write_bytes(directory())
    assert "no DICOM image" in refused(empty).seen
    foreign = write(series(), tmp_path / "foreign")
    (foreign / "IM9999").write_bytes(b"not DICOM")
    assert "no DICOM file" in refused(foreign).seen
    one = write(series()[:1], tmp_path / "one")
    assert "one slice" in refused(one).seen
    (tmp_path / "a.dcm").write_bytes(series()[0])
    assert "one slice" in refused(tmp_path / "a.dcm").seen
    two = write([enhanced(), enhanced()], tmp_path / "two")
    assert "beside other images" in refused(two).seen


def test_a_pipe_in_a_folder_does_not_keep_us_waiting(tmp_path: Path) -> None:
    folder = write(series(), tmp_path / "s")
    os.mkfifo(folder / "IM7777")
    assert refused(folder)


def test_a_series_too_large_is_refused_before_its_pixels_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(series(change=set_at(None, Rows=60_000, Columns=60_000)), tmp_path / "s")
    assert "GiB" in refused(folder).seen
    monkeypatch.setattr("lift.volumes.formats.checks.LARGEST_VOLUME_BYTES", 1000)
    assert "larger than" in refused(write(series(), tmp_path / "t")).seen
    monkeypatch.setattr("lift.volumes.formats.dicom.MOST_FILES", 5)
    assert "at most 5" in refused(tmp_path / "t").seen


def named(path: Path) -> str:
    return str(refused(path))


@pytest.mark.parametrize("style", ["{:g}", "{:.1f}", "{:.2f}", "{:.3e}", " {:g} ", "{:+.0f}"])
def test_echo_times_are_compared_as_numbers(tmp_path: Path, style: str) -> None:
    def written(index: int, dataset: Dataset) -> None:
        dataset.EchoTime = (style if index % 2 else "{:g}").format(3.0)

    decoded(write(series(change=written), tmp_path / "s"))
    # as two programs round it
    rounded = write(
        series(change=lambda k, d: setattr(d, "EchoTime", "2.46" if k % 2 else "2.4600000381")),
        tmp_path / "r",
    )
    decoded(rounded)
    two = write(series(change=lambda k, d: setattr(d, "EchoTime", str(3 + k % 2))), tmp_path / "t")
    assert "several echo times: 3, 4 ms" in refused(two).seen


def test_a_frame_of_reference_for_each_file_says_nothing(tmp_path: Path) -> None:
    def own(index: int, dataset: Dataset) -> None:
        dataset.FrameOfReferenceUID = f"1.2.3.{index}"

    decoded(write(series(change=own), tmp_path / "own"))
    decoded(write(series(change=set_at(2, FrameOfReferenceUID=None)), tmp_path / "none at one"))
    decoded(write(series(change=set_at(None, FrameOfReferenceUID="")), tmp_path / "none"))
    halves = write(
        series(change=lambda k, d: setattr(d, "FrameOfReferenceUID", f"1.2.{k // 3}")),
        tmp_path / "two",
    )
    seen = refused(halves).seen
    assert "2 frames of reference" in seen
    assert "moved" not in seen


def test_a_series_uid_for_each_file_is_said_as_that(tmp_path: Path) -> None:
    folder = write(
        series(change=lambda k, d: setattr(d, "SeriesInstanceUID", f"1.2.3.{k}")), tmp_path / "s"
    )
    assert "a series of its own (Series Instance UID)" in refused(folder).seen


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
def test_files_without_a_preamble_are_read(tmp_path: Path, syntax: uid.UID) -> None:
    whole = series(syntax=syntax)
    with_meta = [content[132:] for content in whole]
    first_tag = b"\0\x08\0\x08" if syntax == uid.ExplicitVRBigEndian else b"\x08\0\x08\0"
    bare = [one[one.index(first_tag) :] for one in with_meta]
    folders = [write(files, tmp_path / str(k)) for k, files in enumerate((whole, with_meta, bare))]
    first, *others = [decoded(folder) for folder in folders]
    for other in others:
        np.testing.assert_array_equal(other.data, first.data)
        np.testing.assert_array_equal(other.affine, first.affine)


@pytest.mark.parametrize("at", [0, 3, 5])
@pytest.mark.parametrize(
    ("change", "after"),
    [
        (None, lambda content: content[:-30]),
        (None, lambda content: content[:200]),
        (None, lambda content: b""),
        (None, lambda content: b"damaged"),
        ({"ImagePositionPatient": None}, None),
        ({"PixelSpacing": [3, 3]}, None),
        ({"Rows": 4, "PixelData": bytes(32)}, None),
        ({"SeriesInstanceUID": "1.2.3"}, None),
        ({"FrameOfReferenceUID": "1.2.3"}, None),
        ({"EchoTime": "90"}, None),
        ({"PixelRepresentation": 0}, None),
        ({"SOPClassUID": uid.RTDoseStorage}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, None),
        ({"PixelData": bytes(38)}, None),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, None),
    ],
)
def test_one_bad_file_of_many_is_named(
    tmp_path: Path, at: int, change: dict[str, Any] | None, after: Any
) -> None:
    files = series(change=set_at(at, **change) if change else None)
    if after:
        files[at] = after(files[at])
    folder = tmp_path / "s"
    folder.mkdir()
    for index, content in enumerate(files):
        (folder / f"slice{index:03d}.dcm").write_bytes(content)
    assert f"slice{at:03d}.dcm" in named(folder)


def test_doubled_and_shifted_slices_are_named_by_file(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    for name, change in (("d", moved(3, (0.0, 0.0, 5.0))), ("o", moved(3, (0.0, 6.0, 0.0)))):
        folder = tmp_path / name
        folder.mkdir()
        for index, content in enumerate(series(affine=affine, change=change)):
            (folder / f"slice{index:03d}.dcm").write_bytes(content)
        assert "slice003.dcm" in named(folder)


SIEMENS = "SIEMENS MR HEADER"
TILES: dict[str, list[tuple[int, str, Any]]] = {
    "siemens": [(0x00190010, "LO", SIEMENS), (0x0019100A, "US", 25)],
    "another block": [
        (0x00190010, "LO", "OF ANOTHER MAKER"),
        (0x00190012, "LO", SIEMENS),
        (0x0019120A, "US", 25),
    ],
    "name taken out": [(0x0019100A, "US", 25)],
    "united imaging": [(0x00650010, "LO", "Image Private Header"), (0x00651050, "DS", "25")],
}


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("how", ["type", "first", *TILES])
def test_a_mosaic_is_no_stack_of_slices(tmp_path: Path, how: str, count: int) -> None:
    def tiles(index: int, dataset: Dataset) -> None:
        if how in TILES:
            for tag, vr, value in TILES[how]:
                dataset.add_new(tag, vr, value)
        else:
            words = {"type": ["M", "ND", "MOSAIC"], "first": ["MOSAIC", "M"]}
            dataset.ImageType = ["ORIGINAL", "PRIMARY", *words[how]]

    assert "mosaic" in refused(write(series(change=tiles)[:count], tmp_path / "m")).seen
    (tmp_path / "one.dcm").write_bytes(series(change=tiles)[0])
    assert "mosaic" in refused(tmp_path / "one.dcm").seen


def test_a_number_of_another_makers_field_is_no_mosaic(tmp_path: Path) -> None:
    def other(index: int, dataset: Dataset) -> None:
        dataset.add_new(0x00190010, "LO", "OF ANOTHER MAKER")
        dataset.add_new(0x0019100A, "US", 25)

    decoded(write(series(change=other), tmp_path / "s"))


def at_places(places: list[float], **fields: Any) -> list[bytes]:
    """A CT series with slices at these places; fields by slice."""

    def change(index: int, dataset: Dataset) -> None:
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, places[index]]
        del dataset.SliceThickness
        for name, values in fields.items():
            setattr(dataset, name, values[index])

    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    return series(voxels(shape=(4, 5, len(places))), affine, modality="CT", change=change)


THIN = [2.5 * k for k in range(7)]


@pytest.mark.parametrize(
    ("places", "thickness"),
    [
        ([*THIN, *(15 + 5.0 * k for k in range(1, 6))], [2.5] * 7 + [5] * 5),
        ([*THIN, *(15 + 5.0 * k for k in range(1, 6))], None),
        ([*THIN, *(15 + 5.0 * k for k in range(1, 6))], [2.5] * 12),
        # thick at the base, three times as thick, overlapping, on one place, apart
        ([*(-5.0 * k for k in range(5, 0, -1)), *THIN], [5] * 5 + [2.5] * 7),
        ([*THIN, *(15 + 7.5 * k for k in range(1, 6))], [2.5] * 7 + [7.5] * 5),
        ([*THIN, *(16 + 5.0 * k for k in range(5))], [2.5] * 7 + [5] * 5),
        ([*THIN, *(16 + 5.0 * k for k in range(5))], None),
        ([*THIN, *(15 + 5.0 * k for k in range(5))], [2.5] * 7 + [5] * 5),
        ([*THIN, *(30 + 5.0 * k for k in range(5))], [2.5] * 7 + [5] * 5),
        # three, four
        ([*(-5.0 * k for k in range(5, 0, -1)), *THIN, *(15 + 5.0 * k for k in range(1, 6))], None),
        (
            [*THIN, *(15 + 5.0 * k for k in range(1, 5)), *(35 + 10.0 * k for k in range(1, 5))],
            None,
        ),
        (
            [
                *(*THIN, 20, 25, 30, 35),
                *(35 + 2.5 * k for k in range(1, 5)),
                *(45 + 5.0 * k for k in range(1, 5)),
            ],
            None,
        ),
    ],
)
def test_slabs_are_said_to_be_slabs(
    tmp_path: Path, places: list[float], thickness: list[float] | None
) -> None:
    fields = {} if thickness is None else {"SliceThickness": thickness}
    seen = refused(write(at_places(places, **fields), tmp_path / "s")).seen
    assert "unevenly spaced" in seen
    assert "slabs" in seen
    assert "missing" not in seen
    # the same places in one distance are read, whatever the thickness
    even = [2.5 * k for k in range(len(places))]
    decoded(write(at_places(even, **fields), tmp_path / "even"))


@pytest.mark.parametrize("thickness", [["3"], ["3", "3.0"], ["3", "3.01"], ["3", "3.05", "3.1"]])
def test_a_lost_slice_is_not_called_a_slab_for_a_thickness_of_other_digits(
    tmp_path: Path, thickness: list[str]
) -> None:
    places = [3.0 * k for k in range(12) if k not in {5, 6}]
    said = [thickness[k % len(thickness)] for k in range(len(places))]
    seen = refused(write(at_places(places, SliceThickness=said), tmp_path / "s")).seen
    assert "2 slices are missing" in seen
    assert "slab" not in seen


def test_where_most_slices_would_be_missing_both_distances_are_said(tmp_path: Path) -> None:
    for places in ([0, 2.5, 5, *(5 + 5.0 * k for k in range(1, 9))], [0, 1, *range(6, 60, 5)]):
        seen = refused(
            write(at_places([float(z) for z in places]), tmp_path / str(len(places)))
        ).seen
        assert "unevenly spaced" in seen
        assert "usually 5.00 mm" in seen
        # where the slices are as thin as the smallest step, the others are gaps
        thin = [str(places[1] - places[0])] * len(places)
        said = at_places([float(z) for z in places], SliceThickness=thin)
        assert "slices are missing" in refused(write(said, tmp_path / f"t{len(places)}")).seen


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ImagesInAcquisition", 9),
        ("ImagesInSeries", 9),
        ("NumberOfSeriesRelatedInstances", 9),
        ("NumberOfSlices", 9),
        ((0x2001, "Philips Imaging DD 001", 0x18, "SL"), 9),
        ((0x0021, "GEMS_RELA_01", 0x4F, "SS"), 9),
        # not the first block of the group
        ((0x2001, "Philips Imaging DD 001", 0x18, "SL", "OTHER"), 9),
        ((0x0021, "GEMS_RELA_01", 0x4F, "SS", "OTHER"), 9),
    ],
)
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_lost_ends_are_known_by_the_number_that_a_series_says(
    tmp_path: Path, field: Any, value: int, syntax: uid.UID
) -> None:
    def said(index: int, dataset: Dataset) -> None:
        if isinstance(field, str):
            setattr(dataset, field, value)
        else:
            group, creator, element, vr, *others = field
            for other in others:
                dataset.private_block(group, other, create=True)
            dataset.private_block(group, creator, create=True).add_new(element, vr, value)

    files = series(voxels(shape=(4, 5, 9)), change=said, syntax=syntax)
    decoded(write(files, tmp_path / "whole"))
    for kept in (files[:6], files[3:]):
        folder = tmp_path / f"{len(kept)}-{kept[0] == files[0]}"
        assert f"{len(kept)} of 9 images are there" in refused(write(kept, folder)).seen


@pytest.mark.parametrize("field", ["EchoNumbers", "NumberOfTemporalPositions"])
def test_a_number_that_counts_other_echoes_too_is_no_loss(tmp_path: Path, field: str) -> None:
    def said(index: int, dataset: Dataset) -> None:
        dataset.ImagesInAcquisition = 12
        setattr(dataset, field, 2)

    decoded(write(series(change=said), tmp_path / "s"))
    assert "4 of 6 images" in refused(write(series(change=said)[:4], tmp_path / "t")).seen


def test_one_file_of_a_concatenation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(enhanced(change=lambda d: setattr(d, "InConcatenationTotalNumber", 2)))
    assert "one of 2 files" in refused(path).seen


@pytest.mark.parametrize("name", ["EchoTime", "SliceThickness", "RescaleSlope", "PixelSpacing"])
def test_a_field_that_is_no_number_is_named(tmp_path: Path, name: str) -> None:
    value: Any = ["3.25", "3.25"] if name == "PixelSpacing" else "3.25"
    files = series(change=set_at(None, **{name: value}))
    assert files[2].count(b"3.25") == 1 + (name == "PixelSpacing")
    files[2] = files[2].replace(b"3.25", b"3,2x")
    assert name in refused(write(files, tmp_path / "s")).seen


def test_what_a_number_format_says_is_shown(tmp_path: Path) -> None:
    for fields in ({"BitsStored": 12}, {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}):
        folder = write(series(change=set_at(None, **fields)), tmp_path / str(len(fields)))
        seen = refused(folder).seen
        assert all(f"{name} {value}" in seen for name, value in fields.items())


def test_a_file_that_ends_in_its_header_is_not_called_another_kind(tmp_path: Path) -> None:
    files = series()
    folder = write([*files[:3], files[3][:160], *files[4:]], tmp_path / "s")
    assert "it may be cut off" in refused(folder).seen


def test_a_slice_that_is_a_link_to_nothing_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = write(series(), tmp_path / "s")
    (folder / "IM0007").symlink_to("../.git/annex/objects/ab")
    error = refused(folder)
    assert "IM0007" in error.what
    assert "link to a file that is not there" in error.seen
    assert "git annex get" in error.remedy
