"""NRRD: a text header, and raw or gzip voxels after it or in a file beside it.

Source: the format's definition, teem.sourceforge.net/nrrd/format.html.
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
from lift.volumes.formats.packed import plain, unpacked
from lift.volumes.formats.texts import Beside, Fields, detached, lines

_MAGIC: Final = re.compile(rb"NRRD000[1-6]\r?\n")
_TYPES: Final = {
    name: dtype
    for dtype, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,"
        "int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
_GZIP: Final = frozenset({"gzip", "gz"})
_OTHER_ENCODINGS: Final = frozenset({"txt", "text", "ascii", "hex", "bz2", "bzip2"})
_AXIS_NAMES: Final = {
    "right": ("R", (1, 0, 0)),
    "left": ("L", (-1, 0, 0)),
    "anterior": ("A", (0, 1, 0)),
    "posterior": ("P", (0, -1, 0)),
    "superior": ("S", (0, 0, 1)),
}
_SPACES: Final = {
    spelling: tuple(_AXIS_NAMES[word][1] for word in words)
    for words in (
        ("right", "anterior", "superior"),
        ("left", "anterior", "superior"),
        ("left", "posterior", "superior"),
    )
    for spelling in ("-".join(words), "".join(_AXIS_NAMES[word][0] for word in words).lower())
}
"""What the format calls a space of the patient -> the RAS+ direction of each of its axes."""
_SPATIAL_KINDS: Final = frozenset({"domain", "space", "none", "???"})
_MILLIMETRES: Final = frozenset({"mm", "millimeter", "millimeters", "millimetre", "???", ""})
_VECTOR: Final = re.compile(r"\(([^()]{0,200})\)|none")
_SPELLINGS: Final = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
_MOST_AXES: Final = 16
_MOST_LINES: Final = 10_000
_KNOWN: Final = frozenset(
    {
        "dimension",
        "type",
        "encoding",
        "endian",
        "sizes",
        "space",
        "space directions",
        "space origin",
        "space units",
        "kinds",
        "data file",
        "line skip",
        "byte skip",
    }
)


def is_nrrd(start: bytes) -> bool:
    """Whether a file begins as NRRD does."""
    return start.startswith(b"NRRD000")


def decode(stored: bytes, beside: Beside, refuse: Refusal) -> Decoded:
    """What an NRRD file holds, or its header and the file beside it.

    Raises:
        VolumeError: truncated, damaged, too large, 4D, with colours, vectors or lists along an
            axis, in an encoding other than raw and gzip, or its voxels lie elsewhere.
        AffineError: it does not say, in directions of the patient, where its voxels lie.
    """
    fields, place = _fields(stored, refuse)
    sizes = fields.wholes("sizes")
    if [len(sizes)] != fields.wholes("dimension", 1) or len(sizes) > _MOST_AXES:
        raise fields.wrong("dimension")
    shape = check_shape(sizes, refuse)
    _check_kinds(fields, len(sizes), refuse)
    dtype = _dtype(fields, refuse)
    size = check_size(shape, dtype, refuse)
    affine = _affine(fields, len(sizes), refuse)
    if "data file" in fields:
        name = fields.text("data file")
        stored, place = detached(name, stored, beside, refuse), 0
        refuse = refuse.of_other(Path(name).name)
    voxels = _voxels(stored, place, size, fields, refuse)
    data = np.frombuffer(voxels, dtype).reshape(shape, order="F")
    return with_fresh_header(data, affine, refuse)


def _fields(stored: bytes, refuse: Refusal) -> tuple[Fields, int]:
    """The fields, and the place where voxels may begin."""
    if _MAGIC.match(stored) is None:
        raise refuse("its NRRD version is not one that is read", "Convert it to NIfTI.")
    texts: dict[str, str] = {}
    place = 0
    for number, (line, after) in enumerate(lines(stored, refuse)):
        place = after
        if not line:
            break
        # a `key:=value` is free text, a comment too
        if number == 0 or line.startswith("#") or re.match(r"[^:]*:=", line):
            continue
        name, colon, text = line.partition(":")
        name = name.strip().lower()
        name = _SPELLINGS.get(name, name)
        if not colon or name in texts:
            raise refuse("a line of its header is no field, or one is there twice", COPY_AGAIN)
        if name in _KNOWN:
            texts[name] = text.strip()
    return Fields(texts, refuse), place


def _check_kinds(fields: Fields, axes: int, refuse: Refusal) -> None:
    """Raise VolumeError unless all three axes are spatial (not colours, vectors or a list)."""
    if "kinds" not in fields:
        return
    kinds = fields.text("kinds").lower().split()
    if len(kinds) != axes:
        raise fields.wrong("kinds")
    if not _SPATIAL_KINDS.issuperset(kinds[:3]):
        raise refuse(
            "one of its axes is not in space: it counts colours, vectors, times or a list",
            "Export one channel as a 3D volume.",
        )


def _dtype(fields: Fields, refuse: Refusal) -> np.dtype[Any]:
    code = _TYPES.get(" ".join(fields.text("type").lower().split()))
    if code is None:
        raise refuse("its number format is not one that is read", "Convert it to NIfTI.")
    dtype = np.dtype(code)
    if dtype.itemsize == 1:
        return dtype
    order = {"little": "<", "big": ">"}.get(fields.text("endian").lower())
    if order is None:
        raise fields.wrong("endian")
    return np.dtype(order + code)


def _affine(fields: Fields, axes: int, refuse: Refusal) -> NDArray[np.float64]:
    missing = {"space", "space directions", "space origin"} - fields.texts.keys()
    space = _SPACES.get(fields.texts.get("space", "").lower())
    if missing or space is None:
        raise refuse.of_place(
            "its header does not say in directions of the patient where its voxels lie "
            "(space RAS, LAS or LPS, space directions and space origin are needed); left and "
            "right cannot be told apart",
            "Export it again from the program that knows the scan's geometry.",
        )
    units = re.findall(r'"([^"]*)"', fields.texts.get("space units", ""))
    if not _MILLIMETRES.issuperset(unit.strip().lower() for unit in units):
        raise refuse.of_place("its lengths are not in mm", "Export it again in mm.")
    directions = _vectors(fields, "space directions")
    origin = _vectors(fields, "space origin")
    # an axis of length 1 after the third need not be in space
    columns = [vector for vector in [*directions[:3], *origin] if vector is not None]
    if len(directions) != axes or len(columns) != 4:
        raise fields.wrong("space directions")
    affine = np.eye(4)
    affine[:3] = np.array(space, dtype=np.float64).T @ np.array(columns).T
    return affine


def _vectors(fields: Fields, name: str) -> list[NDArray[np.float64] | None]:
    """The vectors of a field, None where it says `none`."""
    text = fields.text(name)
    if len(text) > 4096 or _VECTOR.sub("", text).strip():
        raise fields.wrong(name)
    return [
        None
        if found[0] == "none"
        else fields.numbers_of(name, [word.strip() for word in found[1].split(",")], 3)
        for found in _VECTOR.finditer(text)
    ]


def _voxels(stored: bytes, place: int, size: int, fields: Fields, refuse: Refusal) -> memoryview:
    """Exactly the voxels' bytes, after what the header says to skip."""
    encoding = fields.text("encoding").lower()
    if encoding != "raw" and encoding not in _GZIP:
        name = encoding if encoding in _OTHER_ENCODINGS else "unknown"
        raise refuse(
            f"its encoding is {name}; raw and gzip are read", "Store it with encoding gzip."
        )
    line_skip, byte_skip = fields.whole("line skip", 0), fields.whole("byte skip", 0)
    if not 0 <= line_skip <= _MOST_LINES:
        raise fields.wrong("line skip")
    if byte_skip < (-1 if encoding == "raw" else 0):
        raise fields.wrong("byte skip")
    for _ in range(line_skip):
        place = stored.find(b"\n", place) + 1
        if not place:
            raise refuse("it ends before the lines that its header skips", COPY_AGAIN)
    rest = memoryview(stored)[place:]
    if encoding != "raw":
        return unpacked(rest, byte_skip + size, refuse)[byte_skip:]
    return plain(rest, size, refuse, skip=byte_skip)


_OWN_COMMENT: Final = re.compile(
    rb"# (Complete NRRD file format specification at:|http://teem\.sourceforge\.net/nrrd/format\.html)"
)


_FREE_TEXTS: Final = frozenset({b"content", b"labels", b"sample units"})


def _identifying(start: bytes, path: Path) -> set[str]:
    del path
    found = set()
    for line in start.partition(b"\n\n")[0].splitlines()[1:]:
        if line.startswith(b"#"):
            # the two lines that the format's own software writes
            if not _OWN_COMMENT.fullmatch(line):
                found.add("comments")
        elif b":=" in line:
            found.add("key/value pairs")
        elif line.partition(b":")[0].strip().lower() in _FREE_TEXTS:
            found.add("content")
    return found


def _decode(file: Stored) -> Decoded:
    return decode(file.whole, file.beside, file.refuse)


FORMAT: Final = Format((".nhdr", ".nrrd"), is_nrrd, _decode, _identifying, packed=False)
