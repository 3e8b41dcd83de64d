"""FreeSurfer's MGH, and MGZ, which is MGH packed by gzip; the footer is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from nibabel.freesurfer import MGHImage
from nibabel.spatialimages import HeaderDataError

from lift.volumes.formats.base import Format, Stored
from lift.volumes.formats.checks import (
    COPY_AGAIN,
    Decoded,
    Refusal,
    check_shape,
    check_size,
    with_fresh_header,
)
from lift.volumes.formats.packed import Content

_VERSION: Final = b"\0\0\0\1"
_DATA_OFFSET: Final = 284
_HAS_PLACE: Final = slice(28, 30)
_TYPES: Final = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


def is_mgh(start: bytes) -> bool:
    """Whether a file begins as MGH does."""
    return start.startswith(_VERSION) and len(start) >= _DATA_OFFSET


def decode(content: Content, refuse: Refusal) -> Decoded:
    """What an MGH file holds.

    Raises:
        VolumeError: truncated, damaged, too large, 4D, thinner than 2 voxels, or of a number
            format that is not read.
        AffineError: it does not say where its voxels lie.
    """
    start = content.start[:_DATA_OFFSET]
    try:
        with np.errstate(all="ignore"):
            header = MGHImage.header_class(start)
            affine = np.asarray(header.get_affine(), dtype=np.float64)
            code, dims = int(header["type"]), [int(n) for n in header["dims"]]
    except (HeaderDataError, ValueError, OverflowError):
        raise refuse("its header is damaged", COPY_AGAIN) from None
    if code not in _TYPES:
        raise refuse("its number format is not one that is read", "Convert it to NIfTI.")
    dtype = np.dtype(_TYPES[code])
    shape = check_shape(dims, refuse)
    size = check_size(shape, dtype, refuse)
    # nibabel, as FreeSurfer, would take a coronal scan for granted
    if start[_HAS_PLACE] == b"\0\0":
        raise refuse.of_place(
            "its header does not say how the patient lies; left and right cannot be told apart",
            "Set the geometry from the scan that it came from, or take the patient out.",
        )
    whole = content.up_to(_DATA_OFFSET + size)
    data = np.frombuffer(whole, dtype, size // dtype.itemsize, _DATA_OFFSET)
    return with_fresh_header(data.reshape(shape, order="F"), affine, refuse)


def _decode(file: Stored) -> Decoded:
    return decode(file.content, file.refuse)


def _identifying(start: bytes, path: Path) -> tuple[str, ...]:
    # the footer's texts are commands that common software fills in: they are not looked at
    del start, path
    return ()


FORMAT: Final = Format((".mgh", ".mgz"), is_mgh, _decode, _identifying, packed=True)
