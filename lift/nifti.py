"""A NIfTI file's bytes decoded: its header, its voxels and where they lie, each checked.

What is refused is never read as other voxels, and memory is asked for only after the header's
claims have been checked. Of a header's texts nothing is looked at. See `lift.volume`.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from nibabel.orientations import OrientationError, io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lift.errors import AffineError, VolumeError

LARGEST_VOLUME_BYTES: Final = 4 << 30
_FEWEST_VOXELS: Final = 2
_BLOCK: Final = 1 << 20
_FLATTEST: Final = 1e-3
_COPY_AGAIN: Final = "Copy it again from where it came, or take the patient out."


class Refusal:
    """Makes the error for one file: who it is and where it lies are always the same."""

    def __init__(self, name: str, root: Path | None, *, verb: str = "use") -> None:
        self.where = "the file given" if root in {None, Path()} else str(root)
        self.what = f"cannot {verb} volume '{name}'"

    def __call__(self, seen: str, remedy: str) -> VolumeError:
        """The error, to be raised."""
        return VolumeError(self.what, where=self.where, seen=seen, remedy=remedy)


def decoded(
    stored: bytes, refuse: Refusal, *, compressed: bool
) -> tuple[Any, tuple[int, int, int], NDArray[Any]]:
    """Header, shape and unscaled voxels of a whole file.

    The voxels are a read-only view of what was read. Trailing axes of length 1 are dropped; a
    compressed file is read to its end, and its checksum verified.

    Args:
        stored: the file's bytes.
        refuse: makes the error.
        compressed: whether gzip wrote them.

    Raises:
        VolumeError: empty, truncated, damaged, no NIfTI image, too large, 4D, colour or complex,
            thinner than 2 voxels.
    """
    if not stored:
        raise refuse("the file is empty", _COPY_AGAIN)
    try:
        stream = gzip.GzipFile(fileobj=io.BytesIO(stored)) if compressed else io.BytesIO(stored)
        start = stream.read(nibabel.Nifti2Header.template_dtype.itemsize)
        kind = _header_class(start)
        if kind is None:
            raise refuse("it is not a NIfTI image", "Convert it to NIfTI, or take it out.")
        # the fixed block alone: extensions may hold anything about the patient
        header = kind(start[: kind.sizeof_hdr])
        shape = tuple(int(n) for n in header.get_data_shape())
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        _check_header(header, shape, refuse)
        offset, dtype = int(header.get_data_offset()), header.get_data_dtype()
        count = int(np.prod(shape, dtype=np.int64))
        wanted = offset + count * dtype.itemsize
        if wanted > LARGEST_VOLUME_BYTES:
            raise refuse("its voxels start beyond any file's end", _COPY_AGAIN)
        content = start + stream.read(max(0, wanted - len(start)))
        _drain(stream, refuse)
    except (HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error):
        raise refuse("it ends early or is damaged inside", _COPY_AGAIN) from None
    if len(content) < wanted:
        raise refuse(
            f"it ends early: {len(content)} of {wanted} bytes that its header claims", _COPY_AGAIN
        )
    data = np.frombuffer(content, dtype, count, offset).reshape(shape, order="F")
    return header, (shape[0], shape[1], shape[2]), data


def placed(header: Any, refuse: Refusal) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The file's affine, and the orientation that brings its axes to RAS+ (else AffineError)."""
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        if np.isfinite(affine).all():
            # of unit columns: 1 for orthogonal axes, 0 for axes in one plane, whatever the spacing
            norms = np.linalg.norm(affine[:3, :3], axis=0)
            if norms.all() and abs(np.linalg.det(affine[:3, :3] / norms)) > _FLATTEST:
                return affine, np.asarray(io_orientation(affine), dtype=np.float64)
    except (HeaderDataError, OrientationError, ValueError):
        pass
    raise AffineError(
        refuse.what,
        where=refuse.where,
        seen="its affine is singular or not finite; voxels have no place in the patient",
        remedy="Mend the header (qform or sform), or take the patient out.",
    )


def scaling(header: Any, refuse: Refusal) -> tuple[float, float]:
    """Scale factor and offset, 1 and 0 when the file has none (VolumeError: not finite)."""
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError:
        raise refuse("its scale factor is not finite", _COPY_AGAIN) from None
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def check_values(data: NDArray[Any], refuse: Refusal) -> None:
    """Nothing, when the scaled voxels are finite and differ (else VolumeError)."""
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise refuse("it holds NaN or infinity", "Replace them (background is 0), or take it out.")
    if data.min() == data.max():
        raise refuse(f"every voxel is {data.flat[0]:g}", "Export it again: it shows nothing.")


def _header_class(start: bytes) -> Any:
    """The NIfTI version that the first bytes claim, or None (a header apart from its data too)."""
    size = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    if nibabel.Nifti1Header.sizeof_hdr in size and start[344:348] == b"n+1\0":
        return nibabel.Nifti1Header
    if nibabel.Nifti2Header.sizeof_hdr in size and start[4:8] == b"n+2\0":
        return nibabel.Nifti2Header
    return None


def _drain(stream: io.BufferedIOBase | gzip.GzipFile, refuse: Refusal) -> None:
    """Read to the end: only there does gzip compare its checksum."""
    extra = 0
    while block := stream.read(_BLOCK):
        extra += len(block)
        if extra > LARGEST_VOLUME_BYTES:
            raise refuse("it holds far more bytes than its header claims", _COPY_AGAIN)


def _check_header(header: Any, shape: tuple[int, ...], refuse: Refusal) -> None:
    """Everything that must hold before a voxel is read (or memory is asked for)."""
    dtype = header.get_data_dtype()
    if len(shape) != 3:
        raise refuse(
            f"it has {len(shape)} axes longer than 1 ({' x '.join(map(str, shape))}); 3 are needed",
            "Export one time point or channel as a 3D volume.",
        )
    if min(shape) < _FEWEST_VOXELS:
        raise refuse(
            f"it has {' x '.join(map(str, shape))} voxels; at least {_FEWEST_VOXELS} on each "
            "axis are needed",
            "Give a 3D volume.",
        )
    if dtype.kind not in "iuf":
        kind = "colour" if dtype.kind == "V" else "complex" if dtype.kind == "c" else str(dtype)
        raise refuse(f"its voxels are {kind}, not plain numbers", "Export a grey-scale volume.")
    size = int(np.prod(shape, dtype=np.float64)) * max(dtype.itemsize, 8)
    if size > LARGEST_VOLUME_BYTES:
        raise refuse(
            f"its header claims {size / 2**30:.1f} GiB in memory; at most "
            f"{LARGEST_VOLUME_BYTES >> 30} GiB are read",
            "Check the header; crop or resample a volume that is really this large.",
        )
