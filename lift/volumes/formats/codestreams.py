"""What a compressed frame of DICOM claims about itself, before anything unpacks it.

Sources: ISO/IEC 10918-1 annex B (JPEG), 14495-1 annex C (JPEG-LS), 15444-1 annex A (JPEG 2000).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_SOI: Final = b"\xff\xd8"
_SOF: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_SOS: Final = 0xDA
_JPEG_LS: Final = 0xF7
_LOSSLESS: Final = frozenset({0xC3, _JPEG_LS})
_SOC_SIZ: Final = b"\xff\x4f\xff\x51"
_COD: Final = b"\xff\x52"
_LATEST_START: Final = 1 << 10
_MOST_SEGMENTS: Final = 100


@dataclass(frozen=True)
class Claim:
    """What a codestream says of itself.

    Attributes:
        rows: of the picture.
        columns: of the picture.
        components: 1 for grey.
        bits: of each number.
        is_lossless: whether its way of packing keeps every number.
    """

    rows: int
    columns: int
    components: int
    bits: int
    is_lossless: bool


def claim_of(stored: bytes) -> Claim | None:
    """The claim of a JPEG, JPEG-LS or JPEG 2000 codestream; None where it is none of them."""
    try:
        if stored.startswith(_SOI):
            return _jpeg(stored)
        # some archives leave the boxes of a JP2 file around it
        place = stored.find(_SOC_SIZ, 0, _LATEST_START)
        return _jpeg_2000(stored, place) if place >= 0 else None
    except (struct.error, IndexError):
        return None


def _jpeg(stored: bytes) -> Claim | None:
    place = len(_SOI)
    frame: tuple[int, int, int, int, int] | None = None
    for _ in range(_MOST_SEGMENTS):
        mark, kind, length = struct.unpack_from(">BBH", stored, place)
        if mark != 0xFF or length < 2:
            return None
        if kind in _SOF:
            bits, rows, columns, components = struct.unpack_from(">BHHB", stored, place + 4)
            frame = kind, rows, columns, components, bits
        elif kind == _SOS:
            if frame is None:
                return None
            kind, rows, columns, components, bits = frame
            # the byte after the scan's components: of JPEG-LS, by how much a number may be off
            off = stored[place + 5 + 2 * stored[place + 4]] if kind == _JPEG_LS else 0
            return Claim(rows, columns, components, bits, kind in _LOSSLESS and off == 0)
        place += 2 + length
    return None


def _jpeg_2000(stored: bytes, place: int) -> Claim | None:
    right, lower, left, upper = struct.unpack_from(">4I", stored, place + 8)
    (components,) = struct.unpack_from(">H", stored, place + 40)
    bits = (stored[place + 42] & 0x7F) + 1
    (length,) = struct.unpack_from(">H", stored, place + 4)
    coding = stored.find(_COD, place + 4 + length, place + 4 + length + _LATEST_START)
    if coding < 0:
        return None
    # the wavelet: 1 is the one of whole numbers, which can be undone
    is_lossless = stored[coding + 13] == 1
    return Claim(lower - upper, right - left, components, bits, is_lossless)
