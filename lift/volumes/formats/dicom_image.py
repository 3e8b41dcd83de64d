"""One DICOM file: its frames, their place in the patient, their voxels.

Read with pydicom, whose complaints are neither logged nor shown: they quote what a header says.
Sources: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.3 (image pixel), C.7.6.16 (multi-frame functional
groups), C.11.1 (rescale); PS3.5 8 (encoding of pixel data).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.errors import InvalidDicomError

from lift.errors import VolumeError
from lift.logs import muted
from lift.volumes.formats.checks import COPY_AGAIN, Refusal

_PREAMBLE: Final = 128
_MARK: Final = b"DICM"
DIRECTORY: Final = uid.MediaStorageDirectoryStorage
_CLASSIC: Final = {uid.MRImageStorage: "MR", uid.CTImageStorage: "CT"}
_ENHANCED: Final = {uid.EnhancedMRImageStorage: "MR", uid.EnhancedCTImageStorage: "CT"}
_PLAIN: Final = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
_DEFLATED: Final = str(uid.DeflatedExplicitVRLittleEndian).encode()
_MOST_FRAMES: Final = 65_536
_COMPONENTS: Final = frozenset(
    {"M", "P", "R", "I", "MAGNITUDE", "PHASE", "PHASE MAP", "REAL", "IMAGINARY"}
)
_MOST_ITEMS: Final = 50_000
_ITEMS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_RLE_FRAME: Final = 1 << 12
_LONGEST_VALUE: Final = 1 << 12
_USED: Final = (
    *("MediaStorageSOPClassUID", "TransferSyntaxUID", "SOPClassUID", "SeriesInstanceUID"),
    *(
        "ImageType",
        "FrameOfReferenceUID",
        "EchoTime",
        "Manufacturer",
        "MagneticFieldStrength",
        "SliceThickness",
    ),
    *("SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("LossyImageCompression", "PhotometricInterpretation", "SamplesPerPixel", "NumberOfFrames"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept"),
)
_UNIT: Final = 1e-3
"""Direction cosines that are this far from orthonormal are damaged."""


@dataclass(frozen=True)
class Frame:
    """One slice.

    Attributes:
        position: centre of the first pixel, mm in LPS+, (3,).
        along_row: direction of growing column index, LPS+, (3,).
        along_column: direction of growing row index, LPS+, (3,).
        spacing_mm: between columns, between rows.
        slope: value = slope * stored + inter.
        inter: see `slope`.
        step_mm: distance of slices by the header's word (Spacing Between Slices), or None.
        thickness_mm: Slice Thickness, or None.
    """

    position: NDArray[np.float64]
    along_row: NDArray[np.float64]
    along_column: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    slope: float
    inter: float
    step_mm: float | None
    thickness_mm: float | None


@dataclass(frozen=True)
class Image:
    """What one file says of its frames, without their voxels.

    Attributes:
        series: the series that it belongs to; compared, never shown.
        frame_of_reference: likewise.
        contrast: echo time and kind of image, likewise.
        modality: MR or CT.
        enhanced: whether one file may hold a whole volume.
        columns: pixels along a row.
        rows: pixels along a column.
        dtype: of the stored numbers, native byte order.
        stored_bits: of each number; the others hold something else.
        frames: in the file's order.
    """

    series: str
    frame_of_reference: str
    contrast: tuple[str, str]
    modality: str
    enhanced: bool
    columns: int
    rows: int
    dtype: np.dtype[Any]
    stored_bits: int
    frames: tuple[Frame, ...]


def is_dicom(start: bytes) -> bool:
    """Whether a file begins as DICOM files do."""
    return start[_PREAMBLE : _PREAMBLE + len(_MARK)] == _MARK


def read_dataset(stored: bytes, refuse: Refusal, *, pixels: bool = False) -> Any:
    """The file's data elements.

    Raises:
        VolumeError: it is damaged, or packed as a whole (deflated).
    """
    if _DEFLATED in stored:
        # unpacked in one piece by every library: how large it becomes nobody knows before
        raise _packed(refuse, "deflated")
    if sum(stored.count(item) for item in _ITEMS) > _MOST_ITEMS:
        # each becomes an object: a few megabytes would keep us busy for minutes
        raise refuse("its header has more items than any image's", COPY_AGAIN)
    with parsing(refuse):
        dataset = pydicom.dcmread(BytesIO(stored), stop_before_pixels=not pixels)
        # looked at as bytes: a text of the file's own length would be copied over and over
        for part in (dataset, dataset.file_meta):
            for name in _USED:
                value = getattr(part.get_item(name), "value", None)
                if isinstance(value, bytes) and len(value) > _LONGEST_VALUE:
                    raise refuse(f"its field {name} does not hold what it should", COPY_AGAIN)
        return dataset


def is_directory(dataset: Any, refuse: Refusal) -> bool:
    """Whether it is a DICOMDIR: a list of other files (VolumeError: damaged)."""
    with parsing(refuse):
        return bool(dataset.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY)


def describe(dataset: Any, refuse: Refusal) -> Image:
    """What a file says of its frames.

    Raises:
        VolumeError: it is no MR or CT image, a localiser, in colour, inverted, compressed in a way
            that is not read, with loss, or a field is missing or damaged.
        AffineError: it does not say where its pixels lie.
    """
    with parsing(refuse):
        modality, enhanced = _kind(dataset, refuse)
        _check_syntax(dataset, refuse)
        _check_grey(dataset, refuse)
        dtype, bits = _number_format(dataset, refuse)
        columns, rows = (_whole(dataset, name, refuse) for name in ("Columns", "Rows"))
        if enhanced:
            frames = tuple(_enhanced_frames(dataset, modality, refuse))
        else:
            if _whole(dataset, "NumberOfFrames", refuse, default=1) != 1:
                raise refuse("a file of one slice says that it has more", COPY_AGAIN)
            frames = (_frame(_looking_in(dataset), modality, refuse),)
        series, place = (
            str(dataset.get(name, "")) for name in ("SeriesInstanceUID", "FrameOfReferenceUID")
        )
        contrast = str(dataset.get("EchoTime", "")), _component(dataset)
    return Image(series, place, contrast, modality, enhanced, columns, rows, dtype, bits, frames)


def read_pixels(dataset: Any, image: Image, refuse: Refusal) -> NDArray[Any]:
    """The stored numbers, (frame, row, column); to be called when their size was checked.

    Raises:
        VolumeError: there are fewer or more than the header claims, or they are damaged.
    """
    shape = (len(image.frames), image.rows, image.columns)
    size = math.prod(shape) * image.dtype.itemsize
    syntax = dataset.file_meta.TransferSyntaxUID
    with parsing(refuse):
        if "PixelData" not in dataset:
            raise refuse("it holds no pixels", COPY_AGAIN)
        if syntax == uid.RLELossless:
            # no coder makes more of its input; a decoder would unpack whatever is there
            if len(dataset.PixelData) > 2 * size + _RLE_FRAME * len(image.frames):
                raise refuse("it holds more pixels than its header claims", COPY_AGAIN)
            found = np.asarray(dataset.pixel_array).reshape(shape)
        else:
            stored = dataset.PixelData
            # one byte may pad an odd length
            if not size <= len(stored) <= size + 1:
                raise refuse(
                    f"it holds {len(stored)} bytes of pixels; its header claims {size}", COPY_AGAIN
                )
            big = syntax == uid.ExplicitVRBigEndian
            dtype = image.dtype.newbyteorder(">" if big else "<")
            found = np.frombuffer(stored, dtype, math.prod(shape)).reshape(shape)
    return _stored_bits_only(found.astype(image.dtype, copy=False), image.stored_bits)


@contextmanager
def parsing(refuse: Refusal) -> Iterator[None]:
    """Whatever pydicom makes of hostile bytes is a refusal (VolumeError), and quiet."""
    try:
        with muted("pydicom"), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    except (VolumeError, MemoryError):
        raise
    except InvalidDicomError:
        raise refuse("it is not a DICOM file", COPY_AGAIN) from None
    except Exception:
        raise refuse("its DICOM header or its pixels are damaged", COPY_AGAIN) from None


def _kind(dataset: Any, refuse: Refusal) -> tuple[str, bool]:
    kind = uid.UID(str(dataset.get("SOPClassUID", "")))
    if kind not in _CLASSIC and kind not in _ENHANCED:
        # of pydicom's own list: a private kind might be called anything
        name = kind.name if kind.type else "unknown"
        raise refuse(
            f"it is no image that is read: its kind is {name}; MR and CT images are",
            "Take the file out of the series' folder, or give another series.",
        )
    words = {str(word).upper() for word in dataset.get("ImageType", None) or ()}
    if "LOCALIZER" in words:
        raise refuse("it is a localiser, not a scan", "Give the folder of the scan itself.")
    enhanced = kind in _ENHANCED
    return (_ENHANCED if enhanced else _CLASSIC)[kind], enhanced


def _component(dataset: Any) -> str:
    """Magnitude, phase, real or imaginary, where the image type says it."""
    words = [str(word).upper() for word in dataset.get("ImageType", None) or ()]
    return ",".join(sorted({*words} & _COMPONENTS))


def _check_syntax(dataset: Any, refuse: Refusal) -> None:
    syntax = uid.UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    if syntax not in (*_PLAIN, uid.RLELossless):
        raise _packed(refuse, syntax.name if syntax.type else "unknown")
    if dataset.get("ModalityLUTSequence"):
        raise refuse(
            "its numbers become values by a table (Modality LUT), which is not read",
            "Export the series with Rescale Slope and Intercept.",
        )
    if syntax == uid.ExplicitVRBigEndian and dataset.get("BitsAllocated") == 32:
        raise refuse(
            "it is big-endian with 32 bits, which readers take differently",
            "Convert it to little-endian: `gdcmconv --raw`, or `dcmconv +te`.",
        )
    if str(dataset.get("LossyImageCompression", "")) == "01":
        raise refuse(
            "its pixels were compressed with loss once", "Export the original from the archive."
        )


def _packed(refuse: Refusal, name: str) -> Exception:
    return refuse(
        f"its transfer syntax is {name}; uncompressed and RLE are read",
        "Unpack it without loss: `gdcmconv --raw`, or `dcmdjpeg` for JPEG.",
    )


def _check_grey(dataset: Any, refuse: Refusal) -> None:
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise refuse("its voxels are colour, not plain numbers", "Export a grey-scale volume.")
    meaning = dataset.get("PhotometricInterpretation", "")
    if meaning != "MONOCHROME2":
        raise refuse(
            "its grey scale is inverted"
            if meaning == "MONOCHROME1"
            else "its photometric interpretation is not MONOCHROME2",
            "Export the series as the scanner made it.",
        )


def _number_format(dataset: Any, refuse: Refusal) -> tuple[np.dtype[Any], int]:
    allocated, bits, high = (
        _whole(dataset, name, refuse) for name in ("BitsAllocated", "BitsStored", "HighBit")
    )
    signed = _whole(dataset, "PixelRepresentation", refuse, least=0)
    if allocated not in (8, 16, 32) or not 1 < bits <= allocated or high != bits - 1 or signed > 1:
        raise refuse("its number format is not one that is read", "Convert it to NIfTI.")
    return np.dtype(f"{'i' if signed else 'u'}{allocated // 8}"), bits


def _stored_bits_only(found: NDArray[Any], bits: int) -> NDArray[Any]:
    """The numbers without what old devices keep in the bits above them (overlays)."""
    unused = found.dtype.itemsize * 8 - bits
    if not unused:
        return found
    # a shift to the right keeps the sign of signed numbers
    shift = found.dtype.type(unused)
    kept: NDArray[Any] = np.right_shift(np.left_shift(found, shift), shift)
    return kept


Field = Callable[[str], Any]
"""Value of a field by its keyword, None where there is none."""


def _looking_in(*datasets: Any) -> Field:
    def field(name: str) -> Any:
        found = (dataset.get(name) for dataset in datasets if dataset is not None)
        return next((value for value in found if value is not None), None)

    return field


def _frame(field: Field, modality: str, refuse: Refusal) -> Frame:
    row_spacing, column_spacing = _numbers(field, "PixelSpacing", 2, refuse)
    axes = _numbers(field, "ImageOrientationPatient", 6, refuse)
    position = _numbers(field, "ImagePositionPatient", 3, refuse)
    along_row, along_column = axes[:3], axes[3:]
    lengths = np.array([along_row @ along_row, along_column @ along_column, 1.0])
    if np.abs(lengths - 1).max() > 2 * _UNIT or abs(along_row @ along_column) > _UNIT:
        raise refuse.of_place("its directions are not at right angles", COPY_AGAIN)
    if min(row_spacing, column_spacing) <= 0:
        raise refuse.of_place("its pixel spacing is not positive", COPY_AGAIN)
    slope, inter = field("RescaleSlope"), field("RescaleIntercept")
    if modality == "CT" and (slope is None or inter is None):
        raise refuse(
            "it does not say how its numbers become Hounsfield units (Rescale Slope and Intercept)",
            "Export the series again from the scanner's or the hospital's archive.",
        )
    scale = float(1.0 if slope is None else slope)
    offset = float(0.0 if inter is None else inter)
    if not math.isfinite(scale) or not math.isfinite(offset) or scale == 0:
        raise refuse("its scale factor is zero or not finite", COPY_AGAIN)
    return Frame(
        position=position,
        along_row=along_row,
        along_column=along_column,
        spacing_mm=(float(column_spacing), float(row_spacing)),
        slope=scale,
        inter=offset,
        step_mm=_length(field("SpacingBetweenSlices")),
        thickness_mm=_length(field("SliceThickness")),
    )


_GROUPS: Final = (
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
    "PixelValueTransformationSequence",
)


def _enhanced_frames(dataset: Any, modality: str, refuse: Refusal) -> Iterator[Frame]:
    count = _whole(dataset, "NumberOfFrames", refuse)
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if count > _MOST_FRAMES or len(own) != count:
        raise refuse(f"it says that it has {count} frames and describes {len(own)}", COPY_AGAIN)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    for groups in own:
        items = [_item(groups, name) or _item(shared, name) for name in _GROUPS]
        yield _frame(_looking_in(*items), modality, refuse)


def _item(groups: Any, name: str) -> Any:
    found = None if groups is None else groups.get(name)
    return found[0] if found else None


def _numbers(field: Field, name: str, count: int, refuse: Refusal) -> NDArray[np.float64]:
    found = field(name)
    if found is None:
        raise refuse.of_place(
            f"its header lacks {name}: its pixels have no place in the patient",
            "Export the series again as the scanner made it.",
        )
    values = np.array([float(value) for value in found], dtype=np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise refuse.of_place(f"its field {name} does not hold what it should", COPY_AGAIN)
    return values


def _length(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and math.isfinite(number) and number > 0 else None


def _whole(
    dataset: Any, name: str, refuse: Refusal, *, default: int | None = None, least: int = 1
) -> int:
    found = dataset.get(name)
    value = default if found is None else int(found)
    if value is None or value < least:
        raise refuse(f"its field {name} is missing or does not hold what it should", COPY_AGAIN)
    return value
