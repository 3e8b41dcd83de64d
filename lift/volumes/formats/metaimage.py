"""MetaImage: a text header, and raw or zlib voxels after it (.mha) or in a file beside it (.mhd).

Source: MetaIO's documentation, and ITK, which writes the directions of the axes line by line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lift.volumes.formats.base import Format, Stored
from lift.volumes.formats.checks import (
    COPY_AGAIN,
    Decoded,
    Refusal,
    check_shape,
    check_size,
    with_fresh_header,
)
from lift.volumes.formats.packed import check_length, plain, unpacked
from lift.volumes.formats.texts import Beside, Fields, detached, lines

_FIRST_LINE: Final = re.compile(
    rb"\s*(ObjectType|ObjectSubType|NDims|DimSize|Comment|Name|ID|BinaryData|CompressedData"
    rb"|TransformMatrix|Offset|Position|ElementType|ElementSpacing|Modality)[ \t]*[=:]"
)
_VOXELS: Final = "ElementDataFile"
# one name for each of MetaIO's synonyms
SYNONYMS: Final = {
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "Position": "Offset",
    "Origin": "Offset",
    "BinaryDataByteOrderMSB": "ElementByteOrderMSB",
}
KNOWN: Final = frozenset(
    {
        "ObjectType",
        "NDims",
        "BinaryData",
        "ElementByteOrderMSB",
        "CompressedData",
        "CompressedDataSize",
        "TransformMatrix",
        "Offset",
        "ElementSpacing",
        "DimSize",
        "HeaderSize",
        "ElementNumberOfChannels",
        "ElementType",
        "ElementToIntensityFunctionSlope",
        "ElementToIntensityFunctionOffset",
        "DistanceUnits",
        _VOXELS,
    }
)
_TYPES: Final = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    # 4 bytes in this format, on every machine
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_TRUTH: Final = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_MILLIMETRES: Final = frozenset({"mm", "?", ""})
_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0])
_MOST_AXES: Final = 10


def is_metaimage(start: bytes) -> bool:
    """Whether a file begins as MetaImage does."""
    return _FIRST_LINE.match(start) is not None


def decode(stored: bytes, beside: Beside, refuse: Refusal) -> Decoded:
    """What a MetaImage file holds, or its header and the file beside it.

    Raises:
        VolumeError: truncated, damaged, too large, 4D, with several channels, with numbers as
            text, or its voxels lie elsewhere.
        AffineError: it does not say where its voxels lie.
    """
    fields, place = _fields(stored, refuse)
    axes = fields.wholes("NDims", 1)[0]
    if axes > _MOST_AXES or fields.texts.get("ObjectType", "Image") != "Image":
        raise refuse("its header is not that of an image", "Export it as an image.")
    shape = check_shape(fields.wholes("DimSize", axes), refuse)
    _check_numbers(fields, refuse)
    dtype = _dtype(fields, refuse)
    size = check_size(shape, dtype, refuse)
    affine = _affine(fields, axes, refuse)
    name = fields.text(_VOXELS)
    if name.upper() != "LOCAL":
        stored, place = detached(name, stored, beside, refuse), 0
        refuse = refuse.of_other(Path(name).name)
    voxels = _voxels(memoryview(stored)[place:], size, fields, refuse)
    data = np.frombuffer(voxels, dtype).reshape(shape, order="F")
    return with_fresh_header(data, affine, refuse)


def _fields(stored: bytes, refuse: Refusal) -> tuple[Fields, int]:
    """The fields, and the place after the line of `ElementDataFile`, which is the last."""
    texts: dict[str, str] = {}
    for line, after in lines(stored, refuse):
        words = re.split("[=:]", line, maxsplit=1)
        if len(words) == 1:
            if line.strip():
                raise refuse("a line of its header is no field", COPY_AGAIN)
            continue
        name, text = words[0].strip(), words[1].strip()
        name = SYNONYMS.get(name, name)
        # some programs write a field under two of its names
        if name in KNOWN and texts.setdefault(name, text) != text:
            raise refuse("its header says two things about one field", COPY_AGAIN)
        if name == _VOXELS:
            return Fields(texts, refuse), after
    raise refuse("its header ends early", COPY_AGAIN)


def _truth(fields: Fields, name: str, *, default: bool) -> bool:
    if name not in fields:
        return default
    value = _TRUTH.get(fields.text(name).lower())
    if value is None:
        raise fields.wrong(name)
    return value


def _check_numbers(fields: Fields, refuse: Refusal) -> None:
    """Raise VolumeError unless each voxel is one plain binary number."""
    if fields.whole("ElementNumberOfChannels", 1) != 1:
        raise refuse("its voxels have several channels", "Export one channel as a 3D volume.")
    if not _truth(fields, "BinaryData", default=False):
        raise refuse("its voxels are written as text, not binary", "Store it as binary.")
    for name, neutral in (("Slope", 1.0), ("Offset", 0.0)):
        field = f"ElementToIntensityFunction{name}"
        # programs differ in whether they apply it
        if field in fields and fields.numbers(field, 1)[0] != neutral:
            raise refuse("it holds a scale factor of its own", "Store the scaled values.")


def _dtype(fields: Fields, refuse: Refusal) -> np.dtype[Any]:
    code = _TYPES.get(fields.text("ElementType").upper())
    if code is None:
        raise refuse("its number format is not one that is read", "Convert it to NIfTI.")
    if np.dtype(code).itemsize == 1:
        return np.dtype(code)
    fields.text("ElementByteOrderMSB")
    big = _truth(fields, "ElementByteOrderMSB", default=False)
    return np.dtype((">" if big else "<") + code)


def _affine(fields: Fields, axes: int, refuse: Refusal) -> NDArray[np.float64]:
    if not {"TransformMatrix", "Offset", "ElementSpacing"} <= fields.texts.keys():
        raise refuse.of_place(
            "its header does not say where its voxels lie (TransformMatrix, Offset and "
            "ElementSpacing are needed); left and right cannot be told apart",
            "Export it again from the program that knows the scan's geometry.",
        )
    if fields.texts.get("DistanceUnits", "").lower() not in _MILLIMETRES:
        raise refuse.of_place("its lengths are not in mm", "Export it again in mm.")
    spacing = fields.numbers("ElementSpacing", axes)[:3]
    if not (spacing > 0).all():
        raise refuse.of_place(
            "the distance between its voxels is not above 0", "Fix ElementSpacing in the header."
        )
    directions = fields.numbers("TransformMatrix", axes * axes).reshape(axes, axes)
    # an axis of length 1 after the third is one of its own, or the volume lies in no space
    if directions[:3, 3:].any() or directions[3:, :3].any():
        raise fields.wrong("TransformMatrix")
    affine = np.eye(4)
    with np.errstate(all="ignore"):
        affine[:3, :3] = _LPS_TO_RAS @ (directions[:3, :3].T * spacing)
    affine[:3, 3] = _LPS_TO_RAS @ fields.numbers("Offset", axes)[:3]
    return affine


def _voxels(stored: memoryview, size: int, fields: Fields, refuse: Refusal) -> memoryview:
    """Exactly the voxels' bytes."""
    skip = fields.whole("HeaderSize", 0)
    if not _truth(fields, "CompressedData", default=False):
        if skip < -1:
            raise fields.wrong("HeaderSize")
        return plain(stored, size, refuse, skip=skip)
    if skip > 0:
        raise fields.wrong("HeaderSize")
    length = fields.whole("CompressedDataSize", len(stored))
    if length < 0:
        raise fields.wrong("CompressedDataSize")
    check_length(len(stored), length, refuse)
    return unpacked(stored[:length], size, refuse)


_NUMBERS: Final = frozenset(
    name.encode()
    for name in (*KNOWN, *SYNONYMS, "AnatomicalOrientation", "CenterOfRotation", "Modality")
)


def _identifying(start: bytes, path: Path) -> set[str]:
    del path
    found = set()
    for line in start.splitlines():
        name, _, text = (part.strip() for part in line.partition(b"="))
        if name == b"ElementDataFile":
            break
        if text and name not in _NUMBERS:
            found.add("Comment" if name == b"Comment" else "fields beside the image's own")
    return found


def _decode(file: Stored) -> Decoded:
    return decode(file.whole, file.beside, file.refuse)


FORMAT: Final = Format((".mhd", ".mha"), is_metaimage, _decode, _identifying, packed=False)
