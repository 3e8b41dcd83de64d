"""What the files of a derived DICOM series say.

Of the source's headers a list of attributes is taken over and nothing else: what makes the series
that patient's, that study's, and says where it lies. All other attributes are our own.
Sources: DICOM PS3.3 A.3 and A.4 (CT and MR images), C.7 (patient, study, series, frame of
reference, image), C.8.2.1, C.8.3.1, C.12.1 (SOP common); PS3.16 CID 7005 and 7202.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.config import RAISE, disable_value_validation
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import format_number_as_ds, validate_value

from lift.errors import VolumeError
from lift.volumes.formats.checks import Refusal
from lift.volumes.formats.dicom import Slice
from lift.volumes.formats.dicom_image import parsing
from lift.volumes.synthetic import SOFTWARE, Synthesis, software_version

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
_HIGHEST: Final = np.iinfo(np.uint16).max
_HU: Final = np.iinfo(np.int16)
_WINDOW_HU: Final = (40.0, 400.0)
_BRIGHTEST: Final = 99.5
"""Percentile of what is not background, where a window of MR ends."""
_NARROWEST: Final = 1.0
_LARGEST_SERIES: Final = 10_000_000
_TEXTS: Final = frozenset({"PN", "LO", "SH"})
"""Taken over as they are, also where they break a rule: an archive compares them."""
_WORDS: Final = {"PatientSex": ("M", "F", "O"), "Laterality": ("L", "R")}
_IDENTIFYING: Final = ("PatientName", "PatientID", "AccessionNumber")
_UNREADABLE: Final = "\N{REPLACEMENT CHARACTER}"
_LONGEST_TEXT: Final = 1024
_LONGEST_DESCRIPTION: Final = 64
_NO_SERIES: Final = "No series was written."


def said_of(header: Any, refuse: Refusal) -> dict[str, str]:
    """What is taken over of a header, as text by name.

    Empty is what the header does not say, or what is not as its kind of value should be.

    Raises:
        VolumeError: a name or number of the patient has letters that nobody can read.
    """
    names = (*_NEEDED, *_TAKEN, "SeriesNumber", "BurnedInAnnotation")
    return {name: _said(header, name, refuse) for name in names}


@dataclass(frozen=True)
class StoredValues:
    """Numbers of 16 bits along the file's axes; value = slope * number + inter."""

    numbers: NDArray[np.int16] | NDArray[np.uint16]
    slope: str
    inter: str
    window: tuple[float, float]

    @classmethod
    def of(cls, data: NDArray[Any], made: Synthesis, refuse: Refusal) -> StoredValues:
        """Raise VolumeError where the values are not finite, or HU beyond 16 bits."""
        if not np.isfinite(data).all():
            raise refuse("the voxels hold NaN or infinity", _NO_SERIES)
        low, high = float(data.min()), float(data.max())
        if made.unit == "HU":
            if low < _HU.min or high > _HU.max:
                raise refuse(f"{low:g} to {high:g} HU do not fit into 16 bits", _NO_SERIES)
            return cls(np.rint(data).astype(np.int16), "1", "0", _WINDOW_HU)
        # as they are written, so that readers compute with the same numbers
        inter = format_number_as_ds(min(0.0, low))
        extent = high - float(inter)
        slope = format_number_as_ds(extent / _HIGHEST) if extent > 0 else "1"
        numbers = np.rint((data.astype(np.float64) - float(inter)) / float(slope))
        shown = data[data != 0]
        top = float(np.percentile(shown, _BRIGHTEST)) if shown.size else 1.0
        window = (float(inter) + top) / 2, (top - float(inter)) or 1.0
        return cls(np.clip(numbers, 0, _HIGHEST).astype(np.uint16), slope, inter, window)


def common_part(said: Mapping[str, str], made: Synthesis) -> Dataset:
    """What all slices say but of their pixels and places."""
    # by the hospital's clock, as all dates of DICOM that name no zone
    now = datetime.now()
    day, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    new = Dataset()
    # any name of any source fits into it
    new.SpecificCharacterSet = "ISO_IR 192"
    with disable_value_validation():
        for name in (*_NEEDED, *_TAKEN):
            if said[name] or name in _NEEDED:
                setattr(new, name, said[name])
    number = said["SeriesNumber"]
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


def image_part(said: Mapping[str, str], made: Synthesis, stored: StoredValues) -> Dataset:
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
    new.BurnedInAnnotation = "YES" if said["BurnedInAnnotation"] == "YES" else "NO"
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


def place_part(one: Slice, slices: Sequence[Slice]) -> Dataset:
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


def source_item(one: Slice) -> Dataset:
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
