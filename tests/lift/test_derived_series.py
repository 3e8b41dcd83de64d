"""A derived series: read by others as it was meant, new by its UIDs, the source's by its place."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from lift.errors import VolumeError
from lift.volumes.derived_series import (
    SourceSeries,
    check_new_folder,
    read_source_series,
    write_derived_series,
)
from lift.volumes.synthetic import Synthesis
from lift.volumes.volume import read_volume
from tests.lift.formats.cases import NAME, check_places, placed, turned, voxels
from tests.lift.formats.dicom_cases import enhanced, series, write
from tests.lift.small_world import assert_four_parts

Array = NDArray[Any]
PLACE = "1.2.826.0.1.3680043.2.7.9"
MADE = {
    unit: Synthesis(
        target="ct" if unit == "HU" else "t2f",
        sources=("t1n", "t2w"),
        unit=unit,
        method="mixer",
        mixer="a" * 64,
        site_mixer=None,
        generator="b" * 64,
        plan="c" * 64,
        concern="its slice spacing is 9 mm; the mixer helped at 1 to 2 mm",
        phantom=True,
    )
    for unit in ("arbitrary", "HU")
}
UNKNOWN_TO_DCIODVFY = "(0x0008,0x001c)"
"""Synthetic Data: newer than the release of 2022, which has no other complaint."""


def there(_: int, dataset: Dataset) -> None:
    """What every source needs."""
    dataset.FrameOfReferenceUID = PLACE


def also(*changes: Callable[[int, Dataset], None]) -> Callable[[int, Dataset], None]:
    def change(index: int, dataset: Dataset) -> None:
        there(index, dataset)
        for one in changes:
            one(index, dataset)

    return change


def tilted(index: int, dataset: Dataset) -> None:
    """Each slice a little farther in its own plane, as a tilted gantry leaves them."""
    shift = 1.7 * index * np.array(dataset.ImageOrientationPatient[3:], float)
    place = np.array(dataset.ImagePositionPatient, float) + shift
    dataset.ImagePositionPatient = [f"{mm:.9g}" for mm in place]


def straight() -> Array:
    affine = np.diag([0.7, 1.3, -4.5, 1.0])
    affine[:3, 3] = (12.5, -30.25, 7.0)
    return affine


def sagittal() -> Array:
    """Columns run to the back, rows downwards, slices to the left."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, -1], [-1, 0, 0], [0, -1, 0]]) @ np.diag([0.7, 1.3, 4.5])
    affine[:3, 3] = (12.5, 30.25, 7.0)
    return affine


def multi_frame(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "one.dcm"
    order = [3, 0, 5, 1, 4, 2]
    path.write_bytes(
        enhanced(order=order, change=lambda one: setattr(one, "FrameOfReferenceUID", PLACE))
    )
    return path


def of_a_scanner(name: str) -> Callable[[Path], Path]:
    """A series with a real scanner's header, private tags included."""

    def build(folder: Path) -> Path:
        folder.mkdir()
        for index in range(5):
            one = pydicom.dcmread(str(get_testdata_file(name)))
            x, y, z = one.ImagePositionPatient
            one.ImagePositionPatient = [x, y, float(z) + 2.5 * index]
            one.SpacingBetweenSlices = 2.5
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = uid.UID(
                f"{PLACE}.{index}"
            )
            one.save_as(folder / f"x{9 - index}")
        return folder

    return build


SOURCES: dict[str, Callable[[Path], Path]] = {
    "oblique MR": lambda folder: write(series(change=there), folder),
    "straight MR": lambda folder: write(series(affine=straight(), change=there), folder),
    "sagittal MR": lambda folder: write(series(affine=sagittal(), change=there), folder),
    "CT": lambda folder: write(series(voxels() // 16, modality="CT", change=there), folder),
    "tilted CT": lambda folder: write(
        series(voxels() // 16, straight(), modality="CT", change=also(tilted)), folder
    ),
    "multi-frame": multi_frame,
    "scanner's CT": of_a_scanner("CT_small.dcm"),
    "scanner's MR": of_a_scanner("MR_small.dcm"),
}


@pytest.fixture(params=list(SOURCES))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> SourceSeries:
    return read_source_series(SOURCES[request.param](tmp_path / "source"))


@pytest.fixture
def plain(tmp_path: Path) -> SourceSeries:
    return read_source_series(SOURCES["oblique MR"](tmp_path / "source"))


def values_for(source: SourceSeries, unit: str) -> Array:
    rng, shape = np.random.default_rng(2), source.volume.voxels.shape
    if unit == "HU":
        return rng.integers(-1024, 3000, shape, endpoint=True).astype(np.int16)
    return np.where(rng.random(shape) < 0.3, 0, rng.uniform(0, 1000, shape)).astype(np.float32)


def header_of(source: SourceSeries) -> Dataset:
    return pydicom.dcmread(source.slices[0].path)


def is_sheared(source: SourceSeries) -> bool:
    x, y, z = (axis / np.linalg.norm(axis) for axis in source.volume.affine[:3, :3].T)
    return bool(max(abs(x @ z), abs(y @ z)) > 1e-3)


def files_of(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def canonical(data: Array, affine: Array) -> tuple[Array, Array]:
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(data.astype(np.float64), affine))
    return np.asanyarray(image.dataobj), image.affine


@pytest.mark.parametrize("unit", ["arbitrary", "HU"])
def test_readers_agree_on_its_values_and_on_its_place(
    source: SourceSeries, tmp_path: Path, unit: str
) -> None:
    wanted, folder = values_for(source, unit), tmp_path / "made" / "out"
    write_derived_series(folder, wanted, source, MADE[unit])
    # 16 bits of the range; HU are whole numbers
    within = 0.0 if unit == "HU" else 0.5001 * float(wanted.max()) / 65535
    again = read_volume(folder)
    np.testing.assert_allclose(again.voxels, wanted, rtol=0, atol=within)
    np.testing.assert_array_equal(again.affine, source.volume.affine)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    data, affine = canonical(*placed(reader.Execute()))
    np.testing.assert_allclose(data, wanted, rtol=0, atol=within)
    if not is_sheared(source):
        # of a tilted gantry ITK keeps the places of the files, and no shear of the volume
        check_places(affine, source.volume.affine, wanted.shape, 1e-3)
    for index, (one, given) in enumerate(zip(files_of(folder), source.slices, strict=True)):
        assert one.InstanceNumber == index + 1
        assert list(one.ImagePositionPatient) == list(given.frame.position)
        axes = [*given.frame.along_row, *given.frame.along_column]
        assert list(one.ImageOrientationPatient) == axes
        assert list(one.PixelSpacing) == [*reversed(given.frame.spacing_mm)]
        scaled = one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept)
        assert scaled.min() >= wanted.min() - within
        assert scaled.max() <= wanted.max() + within


@pytest.mark.parametrize("unit", ["arbitrary", "HU"])
@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
def test_dcm2niix_agrees(source: SourceSeries, tmp_path: Path, unit: str) -> None:
    wanted, folder, out = values_for(source, unit), tmp_path / "made", tmp_path / "converted"
    write_derived_series(folder, wanted, source, MADE[unit])
    out.mkdir()
    words = ["dcm2niix", "-b", "n", "-z", "n", "-f", "x", "-o", str(out), str(folder)]
    subprocess.run(words, capture_output=True, check=True)
    image = nibabel.load(out / "x.nii")
    data, affine = canonical(np.asanyarray(image.dataobj), image.affine)
    within = 1e-3 + (0.0 if unit == "HU" else 0.5 * float(wanted.max()) / 65535)
    np.testing.assert_allclose(data, wanted, rtol=0, atol=within)
    if unit == "HU" or not is_sheared(source):
        # it looks for a tilted gantry in CT alone
        check_places(affine, source.volume.affine, wanted.shape, 1e-3)


@pytest.mark.parametrize("unit", ["arbitrary", "HU"])
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed")
def test_dciodvfy_finds_no_error(source: SourceSeries, tmp_path: Path, unit: str) -> None:
    folder = tmp_path / "made"
    write_derived_series(folder, values_for(source, unit), source, MADE[unit])
    for path in folder.iterdir():
        assert errors_of(path) == []
    # negative control: it would find one
    dataset = pydicom.dcmread(path)
    del dataset.ImageType
    dataset.save_as(path)
    assert errors_of(path) != []


def errors_of(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if "Error" in line and UNKNOWN_TO_DCIODVFY not in line]


@pytest.mark.parametrize("unit", ["arbitrary", "HU"])
def test_it_says_what_it_is(source: SourceSeries, tmp_path: Path, unit: str) -> None:
    folder = tmp_path / "made"
    write_derived_series(folder, values_for(source, unit), source, MADE[unit])
    header = header_of(source)
    for one, given in zip(files_of(folder), source.slices, strict=True):
        assert one.SyntheticData == "YES"
        assert one.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert one.SeriesDescription.startswith("SYNTHETIC ")
        assert one.BurnedInAnnotation == "NO"
        assert one.LossyImageCompression == "00"
        kind = uid.CTImageStorage if unit == "HU" else uid.MRImageStorage
        assert (one.SOPClassUID, one.Modality) == (kind, "CT" if unit == "HU" else "MR")
        assert one.get("RescaleType") == ("HU" if unit == "HU" else None)
        (maker,) = one.ContributingEquipmentSequence
        assert maker.PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
        for digest in ("a" * 64, "b" * 64, "c" * 64):
            assert digest in maker.ContributionDescription
            assert digest in one.DerivationDescription
        for told in ("not acquired from the patient", "phantom data alone", "9 mm"):
            assert told in one.DerivationDescription
            assert told in one.ImageComments
        (item,) = one.SourceImageSequence
        assert item.ReferencedSOPInstanceUID == given.image.instance
        assert item.ReferencedSOPClassUID == given.image.kind
        number = given.number if given.image.enhanced else None
        assert item.get("ReferencedFrameNumber") == number
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert one.StudyInstanceUID == given.image.study
        assert one.FrameOfReferenceUID == given.image.frame_of_reference
        assert one.PatientName == header.PatientName
        assert one.PatientID == header.PatientID


def test_two_runs_differ_in_what_is_new_and_agree_in_what_is_the_sources(
    plain: SourceSeries, tmp_path: Path
) -> None:
    wanted = values_for(plain, "arbitrary")
    runs = []
    for name in ("one", "two"):
        write_derived_series(tmp_path / name, wanted, plain, MADE["arbitrary"])
        runs.append(files_of(tmp_path / name))
    instances = {one.SOPInstanceUID for run in runs for one in run}
    assert len(instances) == 2 * len(plain.slices)
    assert not instances & {one.image.instance for one in plain.slices}
    of_series = [{one.SeriesInstanceUID for one in run} for run in runs]
    assert [len(found) for found in of_series] == [1, 1]
    assert len({*of_series[0], *of_series[1], plain.slices[0].image.series}) == 3
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({getattr(one, name) for run in runs for one in run}) == 1


# --- what is taken over of the source, and what is not


def with_name(dataset: Dataset) -> set[str]:
    """Keywords of all elements, nested ones too, that hold the name."""
    return {e.keyword or str(e.tag) for e in dataset.iterall() if NAME in str(e.value)}


def test_of_the_source_only_listed_attributes_are_taken_over(tmp_path: Path) -> None:
    def everything(_: int, dataset: Dataset) -> None:
        for keyword in (
            *("StudyID", "PatientAddress", "AdditionalPatientHistory", "DerivationDescription"),
            *("PerformedProcedureStepDescription", "InstitutionAddress", "DeviceSerialNumber"),
        ):
            setattr(dataset, keyword, NAME)
        dataset.PatientWeight, dataset.PatientAge = "71", "044Y"
        dataset.SeriesNumber = 4

    path = write(series(change=also(everything)), tmp_path / "source")
    source = read_source_series(path)
    assert len(with_name(header_of(source))) > 15
    write_derived_series(tmp_path / "made", values_for(source, "HU"), source, MADE["HU"])
    for one in files_of(tmp_path / "made"):
        taken = {"PatientName", "PatientID", "StudyDescription", "StudyID", "AccessionNumber"}
        assert with_name(one) == {*taken, "ReferringPhysicianName"}
        assert not [element for element in one.iterall() if element.tag.is_private]
        assert (one.PatientWeight, one.PatientAge, one.SeriesNumber) == (71, "044Y", 400)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 144", "Жданов^Пётр"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 192", "Ιωάννης^孫悟空"),
    ],
)
def test_a_name_in_any_script_stays_what_it_is(
    tmp_path: Path, charset: str | list[str], name: str
) -> None:
    def named(_: int, dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = charset
        dataset.PatientName = name

    source = read_source_series(write(series(change=also(named)), tmp_path / "source"))
    write_derived_series(tmp_path / "made", values_for(source, "HU"), source, MADE["HU"])
    assert {str(one.PatientName) for one in files_of(tmp_path / "made")} == {name}


def test_what_the_source_lacks_is_empty_and_nothing_is_made_up(tmp_path: Path) -> None:
    def bare(_: int, dataset: Dataset) -> None:
        for name in ("PatientName", "PatientID", "StudyDate", "ReferringPhysicianName"):
            delattr(dataset, name)

    source = read_source_series(write(series(change=also(bare)), tmp_path / "source"))
    write_derived_series(tmp_path / "made", values_for(source, "HU"), source, MADE["HU"])
    for one in files_of(tmp_path / "made"):
        for name in ("PatientName", "PatientID", "StudyDate", "PatientSex", "SeriesNumber"):
            assert name in one
            assert not one.get(name)
        assert "PatientWeight" not in one


def bytes_in(folder: Path, keyword: str, content: bytes) -> None:
    """Put these bytes into a text of each file, as no writer would."""
    for path in folder.iterdir():
        dataset, tag = pydicom.dcmread(path), Tag(keyword)
        kind = dictionary_VR(tag)
        dataset[tag] = RawDataElement(tag, kind, len(content), content, 0, False, True)
        dataset.save_as(path)


@pytest.mark.parametrize(
    ("keyword", "content", "wanted"),
    [
        ("PatientWeight", b"70,5 kg ", None),
        ("PatientAge", b"44", None),
        ("SeriesNumber", b"three ", None),
        ("StudyDate", b"17.3.48 ", ""),
        ("PatientSex", b"unknown ", ""),
        ("PatientSex", b"f ", "F"),
        ("BodyPartExamined", b"head", "HEAD"),
        ("BodyPartExamined", b"the whole of the body ", None),
        ("Laterality", b"both", ""),
        # undeclared, it is Latin as readers take it
        ("PatientName", "Müller^X".encode("latin-1"), "Müller^X"),
        ("PatientID", b"7" * 70, "7" * 70),
    ],
)
def test_a_value_that_breaks_the_rules_is_left_out_unless_it_names_the_patient(
    tmp_path: Path, keyword: str, content: bytes, wanted: str | None
) -> None:
    folder = write(series(change=there), tmp_path / "source")
    bytes_in(folder, keyword, content)
    source = read_source_series(folder)
    write_derived_series(tmp_path / "made", values_for(source, "HU"), source, MADE["HU"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [one.get(keyword) for one in files_of(tmp_path / "made")]
    found = {value if value is None else str(value) for value in values}
    assert found == {wanted}
    if shutil.which("dciodvfy") is not None and keyword != "PatientID":
        assert errors_of(tmp_path / "made" / "slice-0001.dcm") == []


def test_a_name_that_nobody_can_read_is_refused_and_not_changed(tmp_path: Path) -> None:
    def declared(_: int, dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = "ISO_IR 192"

    folder = write(series(change=also(declared)), tmp_path / "source")
    bytes_in(folder, "PatientName", "Müller^X".encode("latin-1"))
    with pytest.raises(VolumeError, match="PatientName is not written in") as caught:
        read_source_series(folder)
    assert_four_parts(caught.value)
    assert "ller" not in str(caught.value)


def test_text_burnt_into_the_source_is_said_of_what_is_made_of_it(tmp_path: Path) -> None:
    def burnt(_: int, dataset: Dataset) -> None:
        dataset.BurnedInAnnotation = "YES"

    source = read_source_series(write(series(change=also(burnt)), tmp_path / "source"))
    write_derived_series(tmp_path / "made", values_for(source, "HU"), source, MADE["HU"])
    assert {one.BurnedInAnnotation for one in files_of(tmp_path / "made")} == {"YES"}


@pytest.mark.parametrize(
    ("body", "side", "wanted"),
    [("HEAD", "L", None), ("KNEE", "L", "L"), ("KNEE", "", ""), ("", "R", "R"), ("", "", "")],
)
def test_a_side_is_said_of_parts_that_have_one(
    tmp_path: Path, body: str, side: str, wanted: str | None
) -> None:
    def placed_at(_: int, dataset: Dataset) -> None:
        dataset.BodyPartExamined, dataset.Laterality = body, side

    source = read_source_series(write(series(change=also(placed_at)), tmp_path / "source"))
    write_derived_series(tmp_path / "made", values_for(source, "HU"), source, MADE["HU"])
    assert {one.get("Laterality") for one in files_of(tmp_path / "made")} == {wanted}


def test_every_series_that_lies_on_it_is_named_as_a_source(tmp_path: Path) -> None:
    def second(index: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = f"{PLACE}.2", f"{PLACE}.2.{index}"

    def elsewhere(index: int, dataset: Dataset) -> None:
        second(index, dataset)
        dataset.FrameOfReferenceUID = f"{PLACE}.8"

    first = write(series(change=there), tmp_path / "first")
    other = write(series(change=also(second)), tmp_path / "second", seed=8)
    apart = write(series(change=also(elsewhere)), tmp_path / "third", seed=9)
    nifti = tmp_path / "x.nii"
    nifti.write_bytes(b"no DICOM")
    source = read_source_series(first, [first, other, apart, nifti])
    write_derived_series(tmp_path / "made", values_for(source, "HU"), source, MADE["HU"])
    for one, given in zip(files_of(tmp_path / "made"), source.slices, strict=True):
        found = [item.ReferencedSOPInstanceUID for item in one.SourceImageSequence]
        index = int(given.image.instance.rsplit(".")[-1]) - 1
        assert found == [given.image.instance, f"{PLACE}.2.{index}"]


# --- values at the limits


def test_values_without_a_range_and_below_zero_are_kept(
    plain: SourceSeries, tmp_path: Path
) -> None:
    shape = plain.volume.voxels.shape
    few = np.zeros(shape, np.float32)
    few[1, 2, 3] = 0.25
    signed = np.random.default_rng(1).normal(0, 3, shape).astype(np.float32)
    for name, values in (("none", 0 * few), ("one", few), ("signed", signed)):
        write_derived_series(tmp_path / name, values, plain, MADE["arbitrary"])
        made = files_of(tmp_path / name)
        step = max(float(one.RescaleSlope) for one in made)
        found = np.stack(
            [f.pixel_array * float(f.RescaleSlope) + float(f.RescaleIntercept) for f in made]
        )
        assert found.min() == pytest.approx(values.min(), abs=step)
        assert found.max() == pytest.approx(values.max(), abs=step)
        for one in made:
            # a width below 1 has no meaning in the usual window
            usual = one.get("VOILUTFunction", "LINEAR") == "LINEAR"
            assert float(one.WindowWidth) >= 1 if usual else float(one.WindowWidth) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_none_are_refused(plain: SourceSeries, tmp_path: Path, bad: float) -> None:
    values = values_for(plain, "arbitrary")
    values[0, 0, 0] = bad
    with pytest.raises(VolumeError, match="NaN or infinity") as caught:
        write_derived_series(tmp_path / "made", values, plain, MADE["arbitrary"])
    assert_four_parts(caught.value)
    assert not list(tmp_path.glob("*made*"))


def test_hounsfield_units_beyond_16_bits_are_refused(plain: SourceSeries, tmp_path: Path) -> None:
    values = values_for(plain, "HU").astype(np.int32)
    values[0, 0, 0], values[0, 0, 1] = -32768, 32767
    write_derived_series(tmp_path / "fits", values, plain, MADE["HU"])
    np.testing.assert_array_equal(read_volume(tmp_path / "fits").voxels, values)
    values[0, 0, 0] = -32769
    with pytest.raises(VolumeError, match="16 bits"):
        write_derived_series(tmp_path / "made", values, plain, MADE["HU"])
    assert not list(tmp_path.glob("*made*"))


# --- sources that are refused


def gone(*names: str) -> Callable[[int, Dataset], None]:
    def change(_: int, dataset: Dataset) -> None:
        for name in names:
            delattr(dataset, name)

    return change


def by_slice(name: str) -> Callable[[int, Dataset], None]:
    return lambda index, dataset: setattr(dataset, name, f"{PLACE}.{index}")


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (gone("FrameOfReferenceUID"), "no valid Frame of Reference UID"),
        (by_slice("FrameOfReferenceUID"), "6 different Frame of Reference UID"),
        (gone("StudyInstanceUID"), "no valid Study Instance UID"),
        (by_slice("StudyInstanceUID"), "6 different Study Instance UID"),
        (gone("SOPInstanceUID"), "SOP Instance UIDs"),
        (lambda _, d: setattr(d, "SOPInstanceUID", PLACE), "SOP Instance UIDs"),
        (lambda i, d: setattr(d, "SeriesInstanceUID", f"{PLACE}.{i % 2}"), "2 series"),
        (lambda _, d: setattr(d, "LossyImageCompression", "01"), "with loss"),
    ],
)
def test_a_source_that_does_not_say_what_a_derived_series_needs_is_refused(
    tmp_path: Path, change: Callable[[int, Dataset], None], seen: str
) -> None:
    folder = write(series(change=also(change)), tmp_path / "source")
    with pytest.raises(VolumeError, match=seen) as caught:
        read_source_series(folder)
    assert_four_parts(caught.value)
    assert NAME not in str(caught.value)


def test_a_file_that_is_no_dicom_is_no_source(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nibabel.Nifti1Image(voxels(), turned()).to_filename(path)
    with pytest.raises(VolumeError, match="no DICOM"):
        read_source_series(path)
    with pytest.raises(VolumeError, match="no longer there"):
        read_source_series(tmp_path / "absent")


def test_a_compressed_source_is_taken(tmp_path: Path) -> None:
    folder = write(series(change=there), tmp_path / "source")
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(uid.RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    source = read_source_series(folder)
    write_derived_series(tmp_path / "made", values_for(source, "HU"), source, MADE["HU"])
    syntaxes = {one.file_meta.TransferSyntaxUID for one in files_of(tmp_path / "made")}
    assert syntaxes == {uid.ExplicitVRLittleEndian}


# --- the folder


def test_a_folder_with_files_is_refused_and_an_empty_one_is_taken(
    plain: SourceSeries, tmp_path: Path
) -> None:
    values, folder = values_for(plain, "HU"), tmp_path / "made"
    folder.mkdir()
    check_new_folder(folder)
    write_derived_series(folder, values, plain, MADE["HU"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place, seen in (
        (folder, "not empty"),
        (tmp_path / "file", "a file"),
        (tmp_path / "link", "a file"),
    ):
        with pytest.raises(VolumeError, match=seen) as caught:
            write_derived_series(place, values, plain, MADE["HU"])
        assert_four_parts(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "made", "source"]


def test_a_full_disk_leaves_no_part_of_a_series(
    plain: SourceSeries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VolumeError, match="No space left") as caught:
        write_derived_series(tmp_path / "made", values_for(plain, "HU"), plain, MADE["HU"])
    assert_four_parts(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nobody_else_may_read_it(plain: SourceSeries, tmp_path: Path) -> None:
    write_derived_series(tmp_path / "made", values_for(plain, "HU"), plain, MADE["HU"])
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "made").iterdir()} == {0o600}
