"""NIfTI-1 and NIfTI-2, in one file or as a pair, decoded: the header, the voxels, their place.

Of a header's texts nothing is looked at, and extensions are passed over.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lift.volumes.formats.base import Format, Stored
from lift.volumes.formats.checks import (
    COPY_AGAIN,
    LARGEST_MAPPED_BYTES,
    Decoded,
    Refusal,
    check_shape,
    check_size,
)
from lift.volumes.formats.packed import Content
from lift.volumes.formats.texts import LONGEST_HEADER

_TEXTS: Final = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
_UNIT_OF_SPACE: Final = 0b111
_MILLIMETRES: Final = frozenset({0, 2})
"""Codes of NIfTI's xyzt_units: not said, or mm."""
_NUMBERS: Final = frozenset({2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280})
"""Codes of NIfTI's datatype: whole numbers of 8 to 64 bits, reals of 32 and 64."""
_OTHERS: Final = {
    0: "not said",
    1: "single bits",
    1536: "float128",
    **dict.fromkeys((128, 2304), "colour"),
    **dict.fromkeys((32, 1792, 2048), "complex"),
}
_MOST_EXTENSIONS: Final = 1000
_UNHEARD: Final = logging.Logger("unheard", logging.CRITICAL + 1)
_SINGLE: Final = {b"n+1\0": nibabel.Nifti1Header, b"n+2\0": nibabel.Nifti2Header}
_PAIR: Final = {b"ni1\0": nibabel.Nifti1Header, b"ni2\0": nibabel.Nifti2Header}


def is_single(start: bytes) -> bool:
    """Whether a file begins as a NIfTI image that holds its voxels itself."""
    return _header_class(start, _SINGLE) is not None


def is_header(start: bytes) -> bool:
    """Whether a file begins as the header of a pair: NIfTI, or the older Analyze 7.5."""
    return _size_is(start, nibabel.Nifti1Header) or _header_class(start, _PAIR) is not None


def decode_single(content: Content, refuse: Refusal) -> Decoded:
    """What a file holds that begins as NIfTI.

    Raises:
        VolumeError: truncated, damaged, too large, 4D, colour or complex, thinner than 2 voxels.
        AffineError: its affine cannot be read.
    """
    return _decode(content, _SINGLE, content, refuse)


def decode_pair(header: Content, voxels: Content, refuse: Refusal) -> Decoded:
    """What a pair of files holds, one with the header and one with the voxels.

    Raises:
        VolumeError: as `decode_single`, or the header is of Analyze 7.5.
        AffineError: its affine cannot be read.
    """
    check_mark(header.start, refuse)
    return _decode(header, _PAIR, voxels, refuse)


def check_mark(start: bytes, refuse: Refusal) -> None:
    """Raise AffineError unless the header of a pair is NIfTI (not Analyze 7.5)."""
    if _header_class(start, _PAIR) is None:
        raise refuse.of_place(
            "its header has no NIfTI mark: it is of Analyze 7.5, which does not say how the "
            "patient lies, or it is damaged; left and right cannot be told apart",
            "Convert the patient's DICOM series to NIfTI.",
        )


def _decode(content: Content, kinds: dict[bytes, Any], voxels: Content, refuse: Refusal) -> Decoded:
    kind = _header_class(content.start, kinds)
    alone = voxels is content
    try:
        with np.errstate(all="ignore"):
            # the fixed block alone: extensions may hold anything about the patient
            header = kind(content.start[: kind.sizeof_hdr], check=False)
            shape = check_shape(_lengths(header, refuse), refuse)
            dtype = _number_format(header, refuse)
            said, header["vox_offset"] = float(header["vox_offset"]), 0
            codes = int(header["sform_code"]), int(header["qform_code"])
            _check(header)
            size = check_size(shape, dtype, refuse)
            slope, inter = _scaling(header, refuse)
            affine = _affine(header, codes, refuse)
            offset = _offset(said, refuse, least=kind.single_vox_offset if alone else 0)
    except (HeaderDataError, ValueError, OverflowError):
        raise refuse("a field of its header is against NIfTI's rules", COPY_AGAIN) from None
    if not alone:
        # a packed header's checksum is at its end
        content.up_to(kind.sizeof_hdr)
        _check_no_header(voxels, offset)
    whole = voxels.up_to(offset + size)
    if alone:
        _check_extensions(whole[:offset], header, refuse)
    data = np.frombuffer(whole, dtype, size // dtype.itemsize, offset).reshape(shape, order="F")
    for field in _TEXTS:
        if field in header:
            header[field] = b""
    return Decoded(data, affine, slope, inter, header)


def _header_class(start: bytes, kinds: dict[bytes, Any]) -> Any:
    """The NIfTI version that the first bytes claim, or None."""
    for magic, kind in kinds.items():
        place = 4 if kind is nibabel.Nifti2Header else 344
        if _size_is(start, kind) and start[place : place + 4] == magic:
            return kind
    return None


def _size_is(start: bytes, kind: Any) -> bool:
    size = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    return kind.sizeof_hdr in size and len(start) >= kind.sizeof_hdr


def _check(header: Any) -> None:
    """Bring the other fields within NIfTI's rules (HeaderDataError: they cannot be).

    Mended in silence: nibabel's log has a line for each field, which says nothing to an operator.
    """
    header.check_fix(logger=_UNHEARD)


def _lengths(header: Any, refuse: Refusal) -> list[int]:
    """The lengths of the axes; of a time axis that has none, 1, as other readers take it."""
    # the byte order is guessed by this number: one that is wrong has no order
    if not 1 <= int(header["dim"][0]) <= 7:
        raise refuse("its header's field dim names no number of axes from 1 to 7", COPY_AGAIN)
    lengths = [int(n) for n in header.get_data_shape()]
    return [*lengths[:3], *(n or 1 for n in lengths[3:])]


def _number_format(header: Any, refuse: Refusal) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in _NUMBERS:
        seen = _OTHERS.get(code, "unknown")
        raise refuse(
            f"its number format is {seen} (datatype {code}); whole numbers of 8 to 64 bits, "
            "float32 and float64 are read",
            "Export a grey-scale volume in one of these.",
        )
    dtype: np.dtype[Any] = header.get_data_dtype()
    return dtype


def _offset(said: float, refuse: Refusal, *, least: int) -> int:
    """Where the voxels begin in their file."""
    if not said.is_integer() or said < least:
        raise refuse(
            f"its header's field vox_offset says that the voxels begin at byte {said:g}; the first "
            f"that can be one is {least}",
            COPY_AGAIN,
        )
    if said > LARGEST_MAPPED_BYTES:
        raise refuse(
            f"its header's field vox_offset says that the voxels begin at byte {said:g}, beyond "
            "any file's end",
            COPY_AGAIN,
        )
    return int(said)


def _check_extensions(before: memoryview, header: Any, refuse: Refusal) -> None:
    """Raise VolumeError if the voxels begin inside a header extension."""
    place = header.sizeof_hdr + 4
    if not before[header.sizeof_hdr]:
        return
    order: Literal["little", "big"] = "big" if header.endianness == ">" else "little"
    for _ in range(_MOST_EXTENSIONS):
        size = int.from_bytes(before[place : place + 4], order, signed=True)
        if place + 8 > len(before) or size < 8:
            return
        place += size
        if place > len(before):
            raise refuse(
                f"its header's field vox_offset says that the voxels begin at byte {len(before)}, "
                f"inside a header extension that ends at {place}",
                COPY_AGAIN,
            )


def _check_no_header(voxels: Content, offset: int) -> None:
    """Raise VolumeError if the voxels of a pair begin inside a header of their own file."""
    kind = _header_class(voxels.start, _SINGLE | _PAIR)
    if kind is not None and offset < kind.sizeof_hdr:
        raise voxels.refuse(
            "it begins with a NIfTI header, and the field vox_offset of the header beside it says "
            f"that the voxels begin at byte {offset}",
            COPY_AGAIN,
        )


def _affine(header: Any, codes: tuple[int, int], refuse: Refusal) -> NDArray[np.float64]:
    # NIfTI-1 standard, method 1: no code, no orientation
    if not (header["sform_code"] or header["qform_code"]):
        raise refuse.of_place(
            "its header does not say how the patient lies (sform_code is {}, qform_code is {}: no "
            "space has this number); left and right cannot be told apart".format(*codes),
            "Convert the patient's DICOM series to NIfTI again, with its orientation.",
        )
    if int(header["xyzt_units"]) & _UNIT_OF_SPACE not in _MILLIMETRES:
        raise refuse.of_place("its lengths are not in mm", "Export it again in mm.")
    try:
        return np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        raise refuse.of_place(
            "its affine is singular or not finite; voxels have no place in the patient",
            "Fix the header (qform or sform), or exclude the patient.",
        ) from None


def _scaling(header: Any, refuse: Refusal) -> tuple[float, float]:
    """Scale factor and offset, 1 and 0 when the file has none (VolumeError: not finite)."""
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError:
        raise refuse("its scale factor is not finite", COPY_AGAIN) from None
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


_EXTENSIONS: Final = "header extensions"


_SIGNATURES: Final = re.compile(
    r"(FSL\d[\w.]*|\d+(\.\d+)+:[0-9a-f]+|spm ?-? ?[\w. -]{0,20}|SPM[\w .-]{0,20}"
    r"|FreeSurfer [A-Z][a-z]{2} \d{1,2} \d{4}|ITK[\w .-]{0,20}|AFNI[\w .-]{0,20}|NIfTI[\w .-]{0,20}"
    r"|TE=[\d.]+|PHANTOM, simulated, no patient|none|MNI152|affine transform)"
)


def _texts(header: nibabel.Nifti1Header) -> Iterator[str]:
    for field in _TEXTS:
        if field not in header.structarr.dtype.names:
            continue
        text = bytes(np.asarray(header[field]).item() or b"").split(b"\0")[0]
        said = text.decode("latin-1").strip()
        if said and not _SIGNATURES.fullmatch(said):
            yield field


def _header(start: bytes) -> nibabel.Nifti1Header | None:
    for kind, magic, place in (
        (nibabel.Nifti1Header, (b"n+1\0", b"ni1\0"), 344),
        (nibabel.Nifti2Header, (b"n+2\0", b"ni2\0"), 4),
    ):
        if len(start) >= kind.sizeof_hdr and start[place : place + 4] in magic:
            try:
                return kind(start[: kind.sizeof_hdr], check=False)
            except (nibabel.spatialimages.HeaderDataError, ValueError):
                return None
    return None


def _identifying(start: bytes, path: Path) -> tuple[str, ...]:
    del path
    header = _header(start)
    if header is None:
        return ()
    flag = start[header.sizeof_hdr : header.sizeof_hdr + 4]
    extended = len(flag) == 4 and flag[0] != 0
    return (*_texts(header), *((_EXTENSIONS,) if extended else ()))


def _is_pair(start: bytes) -> bool:
    return is_header(start) and not is_single(start)


def _decode_single(file: Stored) -> Decoded:
    return decode_single(file.content, file.refuse)


def _decode_pair(file: Stored) -> Decoded:
    refuse = file.refuse
    if file.voxels is None:
        # of a header alone the older format is the first thing to say
        check_mark(file.content.start, refuse)
        raise refuse("the file of its voxels (.img) is not beside it", "Restore it.")
    if len(file.whole) > LONGEST_HEADER:
        raise refuse("its header is far too long", COPY_AGAIN)
    packed = file.voxels.name.lower().endswith(".gz")
    other = Content(file.beside(file.voxels.name), refuse.of_other(file.voxels.name), packed=packed)
    return decode_pair(file.content, other, refuse)


SINGLE: Final = Format((".nii", ".nii.gz"), is_single, _decode_single, _identifying, packed=True)
PAIR: Final = Format((".hdr.gz", ".hdr"), _is_pair, _decode_pair, _identifying, packed=True)
