"""A synthetic volume as a derived DICOM series, in the place and the study of its source.

Of the source's headers a list of attributes is taken over and nothing else: what makes the series
that patient's, that study's, and says where it lies. All other attributes are our own.
Sources: DICOM PS3.3 A.3 and A.4 (CT and MR images), C.7 (patient, study, series, frame of
reference, image), C.8.2.1, C.8.3.1, C.12.1 (SOP common); PS3.16 CID 7005 and 7202.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform
from numpy.typing import NDArray
from pydicom import uid
from pydicom.config import RAISE, disable_value_validation
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.multival import MultiValue
from pydicom.valuerep import format_number_as_ds, validate_value

from lift.errors import AffineError, VolumeError
from lift.process import files_kept_private
from lift.volumes.formats.checks import Refusal
from lift.volumes.formats.dicom import Slice, slices_of
from lift.volumes.formats.dicom_image import is_dicom, parsing, read_dataset
from lift.volumes.formats.packed import read_file
from lift.volumes.synthetic import SOFTWARE, Synthesis, software_version
from lift.volumes.volume import CANONICAL, Volume, read_volume

_NEEDED: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID"),
    *("AccessionNumber", "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition"),
)
"""Taken over, and empty where the source has none."""
_TAKEN: Final = (
    *("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "BodyPartExamined", "Laterality"),
)
"""Taken over where the source has them."""
_UNPAIRED: Final = frozenset(
    (
        *("ABDOMEN", "ABDOMENPELVIS", "AORTA", "BACK", "BLADDER", "BRAIN", "CEREBELLUM"),
        *("CERVIX", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CIRCLEOFWILLIS", "COCCYX"),
        *("COLON", "CORONARYARTERY", "CSPINE", "CTSPINE", "DUODENUM", "ESOPHAGUS", "FACE"),
        *("GALLBLADDER", "HEAD", "HEADNECK", "HEART", "ILEUM", "ILIUM", "JAW", "JEJUNUM"),
        *("LARYNX", "LIVER", "LSPINE", "LSSPINE", "MAXILLA", "MEDIASTINUM", "MOUTH", "NECK"),
        *("NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "NOSE", "PANCREAS", "PELVIS"),
        *("PENIS", "PHARYNX", "PROSTATE", "RECTUM", "SCALP", "SKULL", "SPINE", "SPLEEN"),
        *("SSPINE", "STERNUM", "STOMACH", "THYMUS", "THYROID", "TLSPINE", "TONGUE", "TRACHEA"),
        *("TSPINE", "URETER", "URETHRA", "UTERUS", "VAGINA", "VULVA", "WHOLEBODY"),
    )
)
"""Body parts that have no Laterality, which is empty where it is unknown (PS3.16 annex L)."""
_IMPLEMENTATION: Final = uid.UID("2.25.326231099656077840837707319057754788773")
_VERSION_NAME: Final = "LIFT-FEDERATED"
_HIGHEST: Final = np.iinfo(np.uint16).max
_HU: Final = np.iinfo(np.int16)
_WINDOW_HU: Final = (40.0, 400.0)
_BRIGHTEST: Final = 99.5
"""Percentile of what is not background, where a window of MR ends."""
_SAME_VOXEL: Final = 0.1
_START: Final = 132
_SAME_MM: Final = 0.01
_SAME_DIRECTION: Final = 1e-3
_NARROWEST: Final = 1.0
_LARGEST_SERIES: Final = 10_000_000
_TEXTS: Final = frozenset({"PN", "LO", "SH"})
"""Taken over as they are, also where they break a rule: an archive compares them."""
_WORDS: Final = {"PatientSex": ("M", "F", "O"), "Laterality": ("L", "R")}
_IDENTIFYING: Final = ("PatientName", "PatientID", "AccessionNumber")
_UNREADABLE: Final = "\N{REPLACEMENT CHARACTER}"
_LONGEST_TEXT: Final = 1024
_LONGEST_DESCRIPTION: Final = 64
_NEW_FOLDER: Final = "Nothing was written. Name a new folder; a series has one of its own."


@dataclass(frozen=True)
class SourceSeries:
    """The series that a derived one is made on.

    Attributes:
        name: of its folder or file.
        volume: its voxels and grid.
        slices: in the order of the third axis of its grid.
        others: slices of further series that the volume was computed from, in any order.
        said: what is taken over of its first slice's header, as text.
    """

    name: str
    volume: Volume
    slices: tuple[Slice, ...]
    others: tuple[Slice, ...]
    said: Mapping[str, str]


def read_source_series(path: Path, inputs: Iterable[Path] = ()) -> SourceSeries:
    """The series of a folder, or of one multi-frame file.

    Args:
        path: the folder or the file.
        inputs: what the volume is computed from; those that are DICOM are referred to as well.

    Raises:
        VolumeError: the series cannot be read, is no DICOM, or does not say of which study or in
            which frame of reference it is, one for all slices.
        AffineError: it does not say where its pixels lie.
    """
    refuse = Refusal(path.name, None, verb="derive from")
    slices = tuple(slices_of(path, refuse))
    whole = "Export the series again from the archive, or write NIfTI alone."
    images = [one.image for one in slices]
    for what, found in (
        ("Study Instance UID", {image.study for image in images}),
        ("Frame of Reference UID", {image.frame_of_reference for image in images}),
    ):
        if len(found) > 1 or not all(uid.UID(one).is_valid for one in found):
            seen = (
                f"its slices have {len(found)} different" if len(found) > 1 else "it has no valid"
            )
            raise refuse(f"{seen} {what}; a derived series must have the same one", whole)
    named = {(image.instance, one.number) for image, one in zip(images, slices, strict=True)}
    if len(named) < len(slices) or not all(uid.UID(image.instance).is_valid for image in images):
        raise refuse("its slices have no SOP Instance UIDs of their own to refer to", whole)
    gone = refuse("a file of it is no longer there", whole)
    header = read_dataset(read_file(slices[0].path, refuse, missing=gone), refuse)
    names = (*_NEEDED, *_TAKEN, "SeriesNumber", "BurnedInAnnotation")
    said = {name: _said(header, name, refuse) for name in names}
    others = tuple(one for other in inputs for one in _slices_of_input(other))
    return SourceSeries(path.name, read_volume(path), slices, others, said)


def is_dicom_path(path: Path) -> bool:
    """Whether a volume is read as DICOM: a folder, or a file that begins as such files do."""
    if path.is_dir():
        return True
    with path.open("rb") as stream:
        return is_dicom(stream.read(_START))


def check_new_folder(folder: Path) -> None:
    """Raise VolumeError unless a series can be written into a folder: a new or an empty one."""
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return
        exists = folder.exists() or folder.is_symlink()
    except OSError as error:
        raise _unwritten(folder, error.strerror or type(error).__name__) from None
    if exists:
        seen = "the folder is not empty" if folder.is_dir() else "a file has this name"
        raise _unwritten(folder, seen)


def check_on_series(volume: Volume, source: SourceSeries, name: str) -> None:
    """Raise AffineError unless a volume's voxels are those of the series.

    Converters compute the places of all slices from two of them, and headers round: up to a tenth
    of a voxel apart it is the same grid. What is written has the places of the series.

    Args:
        volume: the first source, whose grid the synthetic volume has.
        source: the series.
        name: of that channel.
    """
    shape, other = source.volume.voxels.shape, volume.voxels.shape
    if shape == other:
        ends = np.array(np.meshgrid(*((0, length - 1) for length in shape))).reshape(3, -1)
        corners = np.vstack([ends, np.ones(ends.shape[1])])
        off = np.linalg.inv(source.volume.affine) @ volume.affine @ corners - corners
        farthest = float(np.abs(off).max())
        if farthest <= _SAME_VOXEL:
            return
        seen = f"corners lie up to {farthest:.2f} voxels apart; at most {_SAME_VOXEL} is one grid"
    else:
        seen = f"{' x '.join(map(str, other))} voxels; the series has {' x '.join(map(str, shape))}"
    raise AffineError(
        f"the synthetic volume would not lie on the series '{source.name}'",
        where="--dicom",
        seen=f"it has the grid of the first source '{name}', which is another one: {seen}",
        remedy="Nothing was written. Give the series that the first source was made of, or that "
        "series as the first source.",
    )


def write_derived_series(
    folder: Path,
    voxels: NDArray[Any],
    source: SourceSeries,
    made: Synthesis,
) -> None:
    """Write a volume as one file for each slice, with new UIDs, in the place of the source's.

    Instance numbers grow along the normal of the slices. Values are stored in 16 bits: HU exactly,
    others to within half of 1/65535 of their range. The folder is complete or absent, and readable
    by its owner alone: it holds a patient's name.

    Args:
        folder: new or empty.
        voxels: (x, y, z) RAS+, on the grid of `source`.
        source: the series whose patient, study and places are taken over.
        made: what made the volume.

    Raises:
        VolumeError: the folder is not empty, the values are not finite or of a range beyond 16
            bits, or the disk refuses.
        ValueError: the shape differs.
    """
    if voxels.shape != source.volume.voxels.shape:
        raise ValueError(f"shape {voxels.shape} is not {source.volume.voxels.shape}")
    check_new_folder(folder)
    data = _along_file_axes(voxels, source.volume)
    common, stored = _common(source, made), _Stored.of(data, made, folder)
    image = _image(made, stored, source)
    with files_kept_private():
        folder = folder.absolute()
        unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
        try:
            unfinished.mkdir(parents=True)
            for index, one in enumerate(source.slices):
                dataset = Dataset()
                for part in (common, image, _place(one, source.slices)):
                    dataset.update(part)
                dataset.InstanceNumber = index + 1
                dataset.SOPInstanceUID = uid.generate_uid(prefix=None)
                dataset.SourceImageSequence = [
                    _reference(each) for each in (one, *_others_there(one, source.others))
                ]
                dataset.PixelData = _little_endian(stored.numbers[:, :, index].T)
                dataset["PixelData"].VR = "OW"
                _write(unfinished / f"slice-{index + 1:04d}.dcm", dataset)
            unfinished.rename(folder)
        except OSError as error:
            raise _unwritten(folder, error.strerror or type(error).__name__) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@dataclass(frozen=True)
class _Stored:
    """Numbers of 16 bits along the file's axes; value = slope * number + inter."""

    numbers: NDArray[np.int16] | NDArray[np.uint16]
    slope: str
    inter: str
    window: tuple[float, float]

    @classmethod
    def of(cls, data: NDArray[Any], made: Synthesis, folder: Path) -> _Stored:
        """Raise VolumeError where the values are not finite, or HU beyond 16 bits."""
        if not np.isfinite(data).all():
            raise _unwritten(folder, "the voxels hold NaN or infinity")
        low, high = float(data.min()), float(data.max())
        if made.unit == "HU":
            if low < _HU.min or high > _HU.max:
                raise _unwritten(folder, f"{low:g} to {high:g} HU do not fit into 16 bits")
            return cls(np.rint(data).astype(np.int16), "1", "0", _WINDOW_HU)
        # as they are written, so that readers compute with the same numbers
        inter = format_number_as_ds(min(0.0, low))
        extent = high - float(inter)
        slope = format_number_as_ds(extent / _HIGHEST) if extent > 0 else "1"
        numbers = np.rint((data.astype(np.float64) - float(inter)) / float(slope))
        shown = data[data != 0]
        top = float(np.percentile(shown, _BRIGHTEST)) if shown.size else 1.0
        window = (float(inter) + top) / 2, top - float(inter)
        return cls(np.clip(numbers, 0, _HIGHEST).astype(np.uint16), slope, inter, window)


def _little_endian(plane: NDArray[Any]) -> bytes:
    return plane.astype(plane.dtype.newbyteorder("<")).tobytes()


def _along_file_axes(voxels: NDArray[Any], like: Volume) -> NDArray[Any]:
    """RAS+ voxels as (column, row, slice) of the series."""
    turned: NDArray[Any] = apply_orientation(
        voxels, ornt_transform(CANONICAL, like.grid.orientation)
    )
    return turned


def _common(source: SourceSeries, made: Synthesis) -> Dataset:
    """What all slices say but of their pixels and places."""
    # by the hospital's clock, as all dates of DICOM that name no zone
    now = datetime.now()
    day, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    new = Dataset()
    # any name of any source fits into it
    new.SpecificCharacterSet = "ISO_IR 192"
    with disable_value_validation():
        for name in (*_NEEDED, *_TAKEN):
            if source.said[name] or name in _NEEDED:
                setattr(new, name, source.said[name])
    number = source.said["SeriesNumber"]
    if new.get("BodyPartExamined") in _UNPAIRED:
        new.pop("Laterality", None)
    elif "Laterality" not in new:
        new.Laterality = ""
    if "DeidentificationMethod" not in new and "PatientIdentityRemoved" in new:
        del new.PatientIdentityRemoved
    new.SOPClassUID = uid.CTImageStorage if made.modality == "CT" else uid.MRImageStorage
    new.Modality = made.modality
    new.SeriesInstanceUID = uid.generate_uid(prefix=None)
    # as scanners number what they derive
    is_plain = number.isdecimal() and 0 < int(number) < _LARGEST_SERIES
    new.SeriesNumber = str(100 * int(number)) if is_plain else ""
    described = f"SYNTHETIC {made.target} from {', '.join(made.sources)} ({SOFTWARE})"
    new.SeriesDescription = described[:_LONGEST_DESCRIPTION]
    for kind in ("Series", "Content", "InstanceCreation"):
        setattr(new, f"{kind}Date", day)
        setattr(new, f"{kind}Time", time)
    new.Manufacturer, new.ManufacturerModelName = SOFTWARE, "lift translate"
    new.SoftwareVersions = software_version()
    new.SyntheticData = "YES"
    maker = Dataset()
    maker.PurposeOfReferenceCodeSequence = [_code("109100", "Synthesizing Equipment")]
    maker.Manufacturer, maker.ManufacturerModelName = SOFTWARE, "lift translate"
    maker.SoftwareVersions = software_version()
    maker.ContributionDateTime = day + time
    maker.ContributionDescription = f"Method {made.method}; {made.digests}"
    new.ContributingEquipmentSequence = [maker]
    told = f"{made.sentence} {SOFTWARE} {software_version()}; {made.digests}"
    new.DerivationDescription = told[:_LONGEST_TEXT]
    new.ImageComments = f"SYNTHETIC. {made.sentence}"
    return new


def _image(made: Synthesis, stored: _Stored, source: SourceSeries) -> Dataset:
    """What all slices say of their pixels."""
    new = Dataset()
    new.SamplesPerPixel, new.PhotometricInterpretation = 1, "MONOCHROME2"
    new.Columns, new.Rows = stored.numbers.shape[:2]
    new.BitsAllocated, new.BitsStored, new.HighBit = 16, 16, 15
    new.PixelRepresentation = int(stored.numbers.dtype.kind == "i")
    new.RescaleSlope, new.RescaleIntercept = stored.slope, stored.inter
    center, width = stored.window
    new.WindowCenter, new.WindowWidth = (format_number_as_ds(n) for n in (center, width))
    if width < _NARROWEST:
        new.VOILUTFunction = "LINEAR_EXACT"
    new.BurnedInAnnotation = "YES" if source.said["BurnedInAnnotation"] == "YES" else "NO"
    new.LossyImageCompression = "00"
    if made.modality == "CT":
        new.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        new.RescaleType = "HU"
        new.KVP, new.AcquisitionNumber = "", ""
        return new
    new.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    # no sequence was played: `research mode` is the only word that claims none
    new.ScanningSequence, new.SequenceVariant = "RM", "NONE"
    new.ScanOptions, new.MRAcquisitionType = "", ""
    new.RepetitionTime, new.EchoTime, new.EchoTrainLength = "", "", ""
    return new


def _place(one: Slice, slices: Sequence[Slice]) -> Dataset:
    """Where a slice lies: the numbers of the source's slice."""
    frame, new = one.frame, Dataset()
    normal = np.cross(frame.along_row, frame.along_column)
    extent = float((slices[-1].frame.position - slices[0].frame.position) @ normal)
    spacing = extent / (len(slices) - 1)
    axes = (*frame.along_row, *frame.along_column)
    new.ImagePositionPatient = [format_number_as_ds(float(mm)) for mm in frame.position]
    new.ImageOrientationPatient = [format_number_as_ds(float(part)) for part in axes]
    new.PixelSpacing = [format_number_as_ds(mm) for mm in reversed(frame.spacing_mm)]
    new.SliceThickness = format_number_as_ds(frame.thickness_mm or spacing)
    new.SpacingBetweenSlices = format_number_as_ds(spacing)
    new.SliceLocation = format_number_as_ds(float(frame.position @ normal))
    return new


def _slices_of_input(path: Path) -> list[Slice]:
    return slices_of(path, Refusal(path.name, None)) if is_dicom_path(path) else []


def _others_there(one: Slice, others: Sequence[Slice]) -> list[Slice]:
    """The slices of other series that lie on this one pixel by pixel."""
    if not others:
        return []
    off = np.array([each.frame.position for each in others]) - one.frame.position
    near = np.flatnonzero(np.linalg.norm(off, axis=1) <= _SAME_MM)
    return [
        each
        for each in (others[int(index)] for index in near)
        if each.image.instance != one.image.instance
        and each.image.frame_of_reference == one.image.frame_of_reference
        and (each.image.columns, each.image.rows) == (one.image.columns, one.image.rows)
        and np.allclose(each.frame.spacing_mm, one.frame.spacing_mm, rtol=_SAME_DIRECTION, atol=0)
        and np.allclose(each.frame.along_row, one.frame.along_row, atol=_SAME_DIRECTION)
        and np.allclose(each.frame.along_column, one.frame.along_column, atol=_SAME_DIRECTION)
    ]


def _reference(one: Slice) -> Dataset:
    """An item of the Source Image Sequence."""
    new = Dataset()
    new.ReferencedSOPClassUID, new.ReferencedSOPInstanceUID = one.image.kind, one.image.instance
    if one.image.enhanced:
        new.ReferencedFrameNumber = one.number
    new.SpatialLocationsPreserved = "YES"
    new.PurposeOfReferenceCodeSequence = [
        _code("121322", "Source image for image processing operation")
    ]
    return new


def _code(value: str, meaning: str) -> Dataset:
    new = Dataset()
    new.CodeValue, new.CodingSchemeDesignator, new.CodeMeaning = value, "DCM", meaning
    return new


def _said(header: Any, name: str, refuse: Refusal) -> str:
    """What the source says, as text; empty where it says nothing, or not what it should.

    Raises:
        VolumeError: a name or number of the patient has letters that nobody can read.
    """
    try:
        with parsing(refuse):
            value = header.get(name)
            # of several values, which no attribute that is taken over has, one after another
            parts = value if isinstance(value, MultiValue) else [value]
            text = " ".join("" if part is None else str(part) for part in parts)[:_LONGEST_TEXT]
            kind = dictionary_VR(name)
            if kind == "CS":
                text = text.upper()
            if kind not in _TEXTS:
                validate_value(kind, text, RAISE)
    except VolumeError:
        return ""
    if _UNREADABLE in text and name in _IDENTIFYING:
        raise refuse(
            f"its {name} is not written in the character set that it names",
            "Correct Specific Character Set at its source and export it again, or write NIfTI "
            "alone.",
        )
    return "" if text not in _WORDS.get(name, (text,)) else text


def _write(path: Path, dataset: Dataset) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = _IMPLEMENTATION, _VERSION_NAME
    dataset.file_meta = meta
    with path.open("xb") as stream:
        dcmwrite(stream, dataset, enforce_file_format=True)
        stream.flush()
        os.fsync(stream.fileno())


def _unwritten(folder: Path, seen: str) -> VolumeError:
    return VolumeError(
        f"cannot write the series '{folder.name}'",
        where=str(folder.parent),
        seen=seen,
        remedy=_NEW_FOLDER,
    )
