"""One DICOM file: its frames, their place in the patient, their voxels.

Read with pydicom, whose complaints are neither logged nor shown: they quote what a header says.
Sources: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.3 (image pixel), C.7.6.16 (multi-frame functional
groups), C.11.1 (rescale); PS3.5 8 (encoding of pixel data).
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.valuerep import STANDARD_VR

from lift.errors import VolumeError
from lift.logs import muted
from lift.volumes.formats.checks import COPY_AGAIN, Refusal
from lift.volumes.formats.codestreams import claim_of

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
_PACKED: Final = (
    *(uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEGLSNearLossless),
    *(uid.JPEG2000Lossless, uid.JPEG2000),
)
"""Unpacked by pydicom's plugins, where nothing was lost."""
_VRS: Final = frozenset(vr.value.encode() for vr in STANDARD_VR)
_LONGEST_FIRST: Final = 1 << 10
_FIRST_GROUP: Final = 0x0008
_META_GROUP: Final = 0x0002
_SAID_COUNTS: Final = ("ImagesInAcquisition", "ImagesInSeries", "NumberOfSeriesRelatedInstances")
_AT_EACH_PLACE: Final = ("EchoNumbers", "NumberOfTemporalPositions", "TemporalPositionIdentifier")
_SAID_SLICES: Final = "NumberOfSlices"
_PRIVATE_SLICES: Final = (
    (0x2001, "Philips Imaging DD 001", 0x18),
    (0x0021, "GEMS_RELA_01", 0x4F),
)
"""What Philips and GE write in place of Number of Slices: group, creator, element."""
_TILES: Final = (
    (0x0019, "SIEMENS MR HEADER", 0x0A),
    (0x0065, "Image Private Header", 0x50),
)
"""Number of images in one mosaic: Siemens, United Imaging."""
_BLOCKS: Final = range(0x10, 0x100)
_MOST_FRAMES: Final = 65_536
_COMPONENTS: Final = frozenset(
    {"M", "P", "R", "I", "MAGNITUDE", "PHASE", "PHASE MAP", "REAL", "IMAGINARY"}
)
_MOST_ITEMS: Final = 50_000
_ITEMS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_RLE_FRAME: Final = 1 << 12
_LONGEST_VALUE: Final = 1 << 12
_USED: Final = (
    *("MediaStorageSOPClassUID", "TransferSyntaxUID", "SOPClassUID", "SOPInstanceUID"),
    *("StudyInstanceUID", "SeriesInstanceUID"),
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
        kind: its SOP class.
        instance: its SOP instance; like the next three compared and passed on, never shown.
        study: the study that it belongs to.
        series: the series that it belongs to.
        frame_of_reference: the coordinate system of its places.
        echo_ms: echo time, or None.
        component: magnitude, phase and the like, where the image type says it.
        images_said: how many images there are by the header's word, or None.
        modality: MR or CT.
        enhanced: whether one file may hold a whole volume.
        columns: pixels along a row.
        rows: pixels along a column.
        dtype: of the stored numbers, native byte order.
        stored_bits: of each number; the others hold something else.
        frames: in the file's order.
    """

    kind: str
    instance: str
    study: str
    series: str
    frame_of_reference: str
    echo_ms: float | None
    component: str
    images_said: int | None
    modality: str
    enhanced: bool
    columns: int
    rows: int
    dtype: np.dtype[Any]
    stored_bits: int
    frames: tuple[Frame, ...]


def is_dicom(start: bytes) -> bool:
    """Whether a file begins as DICOM files do, or as their data alone, without preamble."""
    return start[_PREAMBLE : _PREAMBLE + len(_MARK)] == _MARK or _is_bare(start)


def _is_bare(start: bytes) -> bool:
    """Whether a file begins with its first data element, as some archives export it."""
    if len(start) < 8:
        return False
    group, element, length = struct.unpack_from("<HHI", start)
    if start[4:6] in _VRS:
        # of big-endian files the group is read the other way round
        return bool(group in {_META_GROUP, _FIRST_GROUP, _FIRST_GROUP << 8})
    return bool(group == _FIRST_GROUP and element <= 0xFF and 0 < length <= _LONGEST_FIRST)


def read_dataset(stored: bytes, refuse: Refusal, *, pixels: bool = False) -> Any:
    """The file's data elements.

    Raises:
        VolumeError: it is damaged, or packed as a whole (deflated).
    """
    if sum(stored.count(item) for item in _ITEMS) > _MOST_ITEMS:
        # each becomes an object: a few megabytes would keep us busy for minutes
        raise refuse("its header has more items than any image's", COPY_AGAIN)
    with parsing(refuse):
        stream = _InPieces(stored, _packed(refuse, "deflated"))
        bare = stored[_PREAMBLE : _PREAMBLE + len(_MARK)] != _MARK
        dataset = pydicom.dcmread(stream, stop_before_pixels=not pixels, force=bare)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = plain if little else uid.ExplicitVRBigEndian
        # looked at as bytes: a text of the file's own length would be copied over and over
        for part in (dataset, dataset.file_meta):
            for name in _USED:
                value = getattr(part.get_item(name), "value", None)
                if isinstance(value, bytes) and len(value) > _LONGEST_VALUE:
                    raise refuse(f"its field {name} does not hold what it should", COPY_AGAIN)
        return dataset


class _InPieces(BytesIO):
    """A file that is never asked for in one piece.

    Of a deflated file that is what pydicom does, to unpack it at once: how large it becomes nobody
    knows before.
    """

    def __init__(self, stored: bytes, refused: Exception) -> None:
        super().__init__(stored)
        self._refused = refused

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise self._refused
        return super().read(size)


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
            frames = (_frame(_looking_in(dataset, refuse=refuse), modality, refuse),)
        field = _looking_in(dataset, refuse=refuse)
        return Image(
            kind=str(field("SOPClassUID")),
            instance=str(field("SOPInstanceUID") or ""),
            study=str(field("StudyInstanceUID") or ""),
            series=str(field("SeriesInstanceUID") or ""),
            frame_of_reference=str(field("FrameOfReferenceUID") or ""),
            echo_ms=_length(field, "EchoTime", refuse),
            component=_component(dataset),
            images_said=None if enhanced else _images_said(dataset),
            modality=modality,
            enhanced=enhanced,
            columns=columns,
            rows=rows,
            dtype=dtype,
            stored_bits=bits,
            frames=frames,
        )


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
        elif syntax in _PACKED:
            found = _unpacked(dataset, image, refuse).reshape(shape)
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


def _unpacked(dataset: Any, image: Image, refuse: Refusal) -> NDArray[Any]:
    """The numbers of JPEG, JPEG-LS or JPEG 2000, where every frame is what the header says."""
    count = len(image.frames)
    frames = list(islice(generate_frames(dataset.PixelData, number_of_frames=count), count + 1))
    if len(frames) != count:
        raise refuse(f"it holds {len(frames)} frames; its header claims {count}", COPY_AGAIN)
    for frame in frames:
        # no decoder is asked before: it would make whatever the frame says
        claim = claim_of(frame)
        if claim is None:
            raise refuse("its compressed pixels are damaged or of another kind", COPY_AGAIN)
        if (claim.rows, claim.columns, claim.components) != (image.rows, image.columns, 1):
            raise refuse(
                f"its compressed pixels are {claim.columns} x {claim.rows} with {claim.components} "
                f"channels; its header claims {image.columns} x {image.rows} with 1",
                COPY_AGAIN,
            )
        if claim.bits > 8 * image.dtype.itemsize:
            raise refuse(
                f"its compressed pixels have {claim.bits} bits; its header claims at most "
                f"{8 * image.dtype.itemsize}",
                COPY_AGAIN,
            )
        if not claim.is_lossless:
            raise refuse(
                "its pixels are compressed with loss", "Export the original from the archive."
            )
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    if "pylibjpeg" not in decoder.available_plugins:
        raise refuse(
            "its pixels are packed as JPEG Lossless or JPEG-LS, and the decoder is not installed",
            "Install the extra `jpeg` of this program (its licence is the GPL-3.0), or export the "
            "series uncompressed.",
        )
    try:
        found, _ = decoder.as_array(dataset, raw=True, decoding_plugin="pylibjpeg")
    except MemoryError:
        raise
    except Exception:
        raise refuse("its compressed pixels are damaged", COPY_AGAIN) from None
    return np.asarray(found)


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
    kind = uid.UID(str(dataset.get("SOPClassUID", None) or ""))
    if not kind:
        raise refuse(
            "its header does not say what kind of image it is (SOP Class UID); it may be cut off",
            COPY_AGAIN,
        )
    if kind not in _CLASSIC and kind not in _ENHANCED:
        # of pydicom's own list: a private kind might be called anything
        name = kind.name if kind.type else "unknown"
        raise refuse(
            f"it is no image that is read: its kind is {name}; MR and CT images are",
            "Take the file out of the series' folder, or give another series.",
        )
    words = _image_type(dataset)
    tiles = max((_private_number(dataset, *where) or 0 for where in _TILES), default=0)
    if any("MOSAIC" in word for word in words) or tiles > 1:
        said = f"the maker's own field says {tiles} images" if tiles > 1 else "ImageType says so"
        raise refuse(
            f"it is a mosaic ({said}): each file holds a whole volume as tiles, which are no "
            "slices",
            "Convert it to NIfTI with dcm2niix, which knows where the tiles lie; of several time "
            "points give one.",
        )
    if "LOCALIZER" in words:
        raise refuse("it is a localiser, not a scan", "Give the folder of the scan itself.")
    enhanced = kind in _ENHANCED
    return (_ENHANCED if enhanced else _CLASSIC)[kind], enhanced


def _component(dataset: Any) -> str:
    """Magnitude, phase, real or imaginary, where the image type says it."""
    return ",".join(sorted(_image_type(dataset) & _COMPONENTS))


def _image_type(dataset: Any) -> frozenset[str]:
    said = dataset.get("ImageType", None) or ()
    return frozenset(word.upper() for word in ([said] if isinstance(said, str) else map(str, said)))


def _number_at(dataset: Any, tag: str | tuple[int, int]) -> int | None:
    """A whole number, of a keyword or of a tag; None where it is none."""
    try:
        return int(dataset[tag].value)
    except (KeyError, TypeError, ValueError):
        return None


def _private_number(dataset: Any, group: int, creator: str, element: int) -> int | None:
    """A whole number of a maker's own field, in the block that its name reserves.

    Where no name reserves the first block (an anonymiser took it out), the field there counts.
    """
    names = {
        block: str(dataset[group, block].value).strip()
        for block in _BLOCKS
        if (group, block) in dataset
    }
    block = next((block for block, name in names.items() if name == creator), None)
    if block is None and _BLOCKS.start not in names:
        block = _BLOCKS.start
    return None if block is None else _number_at(dataset, (group, block << 8 | element))


def _images_said(dataset: Any) -> int | None:
    """How many images, or places, there are by the header's word.

    A word for the images of several echoes or time points counts by their number.
    """
    at_each = max(1, *(_number_at(dataset, name) or 1 for name in _AT_EACH_PLACE))
    counts = [_number_at(dataset, name) for name in _SAID_COUNTS]
    places = [
        _number_at(dataset, _SAID_SLICES),
        *(_private_number(dataset, *where) for where in _PRIVATE_SLICES),
    ]
    said = [
        *(count // at_each for count in counts if count is not None and count % at_each == 0),
        *(count for count in places if count is not None),
    ]
    return max(said, default=None)


def _check_syntax(dataset: Any, refuse: Refusal) -> None:
    syntax = uid.UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    if syntax not in (*_PLAIN, uid.RLELossless, *_PACKED):
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
        f"its transfer syntax is {name}; uncompressed, RLE, and JPEG Lossless, JPEG-LS and JPEG "
        "2000 without loss are read",
        "Unpack it: `gdcmconv --raw`, or `dcmconv +te` where it is deflated.",
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
    allocated, bits = (_whole(dataset, name, refuse) for name in ("BitsAllocated", "BitsStored"))
    high, signed = (
        _whole(dataset, name, refuse, least=0) for name in ("HighBit", "PixelRepresentation")
    )
    if allocated not in (8, 16, 32) or not 1 < bits <= allocated or high != bits - 1 or signed > 1:
        raise refuse(
            f"its number format is not one that is read (BitsAllocated {allocated}, BitsStored "
            f"{bits}, HighBit {high}, PixelRepresentation {signed})",
            "Convert it to NIfTI.",
        )
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


def _looking_in(*datasets: Any, refuse: Refusal) -> Field:
    def field(name: str) -> Any:
        try:
            found = [dataset.get(name) for dataset in datasets if dataset is not None]
        except Exception:
            # whatever pydicom makes of a text that is no value of this field
            raise _wrong(name, refuse) from None
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
    slope, inter = (_number(field, name, refuse) for name in ("RescaleSlope", "RescaleIntercept"))
    if modality == "CT" and (slope is None or inter is None):
        raise refuse(
            "it does not say how its numbers become Hounsfield units (Rescale Slope and Intercept)",
            "Export the series again from the scanner's or the hospital's archive.",
        )
    scale, offset = 1.0 if slope is None else slope, 0.0 if inter is None else inter
    if not math.isfinite(scale) or not math.isfinite(offset) or scale == 0:
        raise refuse("its scale factor is zero or not finite", COPY_AGAIN)
    return Frame(
        position=position,
        along_row=along_row,
        along_column=along_column,
        spacing_mm=(float(column_spacing), float(row_spacing)),
        slope=scale,
        inter=offset,
        step_mm=_length(field, "SpacingBetweenSlices", refuse),
        thickness_mm=_length(field, "SliceThickness", refuse),
    )


_GROUPS: Final = (
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
    "PixelValueTransformationSequence",
)


def _enhanced_frames(dataset: Any, modality: str, refuse: Refusal) -> Iterator[Frame]:
    count = _whole(dataset, "NumberOfFrames", refuse)
    parts = dataset.get("InConcatenationTotalNumber")
    if parts is not None and int(parts) > 1:
        raise refuse(
            f"it is one of {int(parts)} files of a volume (a concatenation), which are not read",
            "Convert them together to NIfTI with dcm2niix.",
        )
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if count > _MOST_FRAMES or len(own) != count:
        raise refuse(f"it says that it has {count} frames and describes {len(own)}", COPY_AGAIN)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    for groups in own:
        items = [_item(groups, name) or _item(shared, name) for name in _GROUPS]
        yield _frame(_looking_in(*items, refuse=refuse), modality, refuse)


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
    try:
        values = np.array([float(value) for value in found], dtype=np.float64)
    except (TypeError, ValueError):
        raise _wrong_place(name, refuse) from None
    if values.shape != (count,) or not np.isfinite(values).all():
        raise _wrong_place(name, refuse)
    return values


def _wrong(name: str, refuse: Refusal) -> VolumeError:
    return refuse(f"its field {name} does not hold what it should", COPY_AGAIN)


def _wrong_place(name: str, refuse: Refusal) -> VolumeError:
    return refuse.of_place(f"its field {name} does not hold what it should", COPY_AGAIN)


def _number(field: Field, name: str, refuse: Refusal) -> float | None:
    found = field(name)
    try:
        return None if found is None or found == "" else float(found)
    except (TypeError, ValueError):
        raise _wrong(name, refuse) from None


def _length(field: Field, name: str, refuse: Refusal) -> float | None:
    number = _number(field, name, refuse)
    return number if number is not None and math.isfinite(number) and number > 0 else None


def _whole(
    dataset: Any, name: str, refuse: Refusal, *, default: int | None = None, least: int = 1
) -> int:
    found = _looking_in(dataset, refuse=refuse)(name)
    try:
        value = default if found is None else int(found)
    except (TypeError, ValueError):
        value = None
    if value is None or value < least:
        raise refuse(f"its field {name} is missing or does not hold what it should", COPY_AGAIN)
    return value
