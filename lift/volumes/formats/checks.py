"""What every format's reader checks, and how it refuses: one rule, whatever wrote the file."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from nibabel.orientations import OrientationError, io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lift.errors import AffineError, VolumeError

LARGEST_VOLUME_BYTES: Final = 4 << 30
LARGEST_MAPPED_BYTES: Final = 1 << 40
COPY_AGAIN: Final = "Copy it again from where it came, or take the patient out."
REALLY_LARGE: Final = (
    "A volume that is really this large needs a plan that resamples to twice its spacing or more "
    "(preprocessing.grid), and to be stored uncompressed as NIfTI, MGH, NRRD or MetaImage: then it "
    "is read in parts."
)
FETCH_IT: Final = "Fetch it: `git annex get`, `datalad get`, or `git lfs pull`."
_ANNEX: Final = b"/annex/objects/"
_LFS: Final = b"version https://git-lfs.github.com/"
_LONGEST_POINTER: Final = 1 << 12
_LONGEST_NAME: Final = 80
_FEWEST_VOXELS: Final = 2
_FLATTEST: Final = 1e-3
_QFORM_TOLERANCE_MM: Final = 1e-3
_LONGEST_NIFTI1_AXIS: Final = 32767


class Refusal:
    """Makes the error for one file: who it is and where it lies are always the same.

    Args:
        name: of the file, relative to the data folder.
        root: the data folder.
        verb: what cannot be done with it.
        in_parts: the file is mapped and read part by part: it may be larger than memory.
    """

    def __init__(
        self, name: str, root: Path | None, *, verb: str = "use", in_parts: bool = False
    ) -> None:
        self.in_parts = in_parts
        self.where = "the file given" if root in {None, Path()} else str(root)
        self.what = f"cannot {verb} volume '{name}'"

    def within(self, file: str) -> Refusal:
        """For one of the files of a folder: the error names it too."""
        one = copy(self)
        series = self.what.removesuffix("'")
        one.what = f"{series}/{file[:_LONGEST_NAME]}'"
        return one

    def of_other(self, file: str) -> Refusal:
        """For the file of the voxels beside a header: the error names that one."""
        one = copy(self)
        cannot, _, header = self.what.partition("'")
        folder = header[: header.rfind("/") + 1]
        one.what = f"{cannot}'{folder}{file[:_LONGEST_NAME]}'"
        return one

    def __call__(self, seen: str, remedy: str) -> VolumeError:
        """The error, to be raised."""
        return VolumeError(self.what, where=self.where, seen=seen, remedy=remedy)

    def too_large(self, seen: str, remedy: str) -> TooLargeError:
        """The error of a volume that memory does not hold, to be raised."""
        return TooLargeError(self.what, where=self.where, seen=seen, remedy=remedy)

    def of_place(self, seen: str, remedy: str) -> AffineError:
        """The error of a volume whose voxels have no place in the patient, to be raised."""
        return AffineError(self.what, where=self.where, seen=seen, remedy=remedy)


class TooLargeError(VolumeError):
    """More voxels than are read at once; in parts it may be possible."""


def most_bytes(refuse: Refusal) -> int:
    """The largest volume, or the largest file where it is read in parts."""
    return LARGEST_MAPPED_BYTES if refuse.in_parts else LARGEST_VOLUME_BYTES


def check_fetched(stored: bytes, refuse: Refusal) -> None:
    """Raise VolumeError if the file is what git keeps in place of a content that was not fetched.

    git-annex has a path into its objects, at the start or, where the disk has no links, at the end
    of the link's own text.
    """
    if len(stored) > _LONGEST_POINTER:
        return
    # a copy: what is mapped has not all that bytes have
    text = bytes(stored[:])
    if text.startswith(_LFS) or (_ANNEX in text and b"\0" not in text):
        raise refuse(
            "its content was not fetched: it is a pointer of git-annex or Git LFS", FETCH_IT
        )


@dataclass(frozen=True)
class Decoded:
    """What one file holds.

    Attributes:
        data: unscaled voxels along the file's own axes, in the stored type; may be a read-only
            view of what was read.
        affine: file voxel -> mm in RAS+, (4, 4).
        slope: stored scale factor, 1 when the file has none.
        inter: stored offset.
        header: a NIfTI header without texts, with the geometry: the file's own, or a fresh one.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    slope: float
    inter: float
    header: Any


def check_shape(shape: Sequence[int], refuse: Refusal) -> tuple[int, int, int]:
    """The three axes, without trailing ones of length 1 (VolumeError: 4D, or one slice)."""
    kept = [int(n) for n in shape]
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    if len(kept) != 3:
        raise refuse(
            f"it has {len(kept)} axes longer than 1 ({' x '.join(map(str, kept))}); 3 are needed",
            "Export one time point or channel as a 3D volume.",
        )
    if min(kept) < _FEWEST_VOXELS:
        raise refuse(
            f"it has {' x '.join(map(str, kept))} voxels; at least {_FEWEST_VOXELS} on each "
            "axis are needed",
            "Give a 3D volume.",
        )
    return kept[0], kept[1], kept[2]


def check_size(shape: tuple[int, int, int], dtype: np.dtype[Any], refuse: Refusal) -> int:
    """The bytes of plain numbers of this shape (VolumeError: no plain numbers, or too many)."""
    if dtype.kind not in "iuf":
        kind = "colour" if dtype.kind == "V" else "complex" if dtype.kind == "c" else str(dtype)
        raise refuse(f"its voxels are {kind}, not plain numbers", "Export a grey-scale volume.")
    count = shape[0] * shape[1] * shape[2]
    size = count * (dtype.itemsize if refuse.in_parts else max(dtype.itemsize, 8))
    if size > most_bytes(refuse):
        raise refuse.too_large(
            f"its header claims {size / 2**30:.1f} GiB in memory; at most "
            f"{most_bytes(refuse) >> 30} GiB are read",
            f"Check the header. {REALLY_LARGE}",
        )
    return count * dtype.itemsize


def check_affine(affine: NDArray[np.float64], refuse: Refusal) -> NDArray[np.float64]:
    """The orientation that brings the axes to RAS+ (AffineError: singular or not finite)."""
    try:
        if np.isfinite(affine).all():
            # of unit columns: 1 for orthogonal axes, 0 for axes in one plane, whatever the spacing
            norms = np.linalg.norm(affine[:3, :3], axis=0)
            if norms.all() and abs(np.linalg.det(affine[:3, :3] / norms)) > _FLATTEST:
                return np.asarray(io_orientation(affine), dtype=np.float64)
    except (OrientationError, ValueError):
        pass
    raise refuse.of_place(
        "its affine is singular or not finite; voxels have no place in the patient",
        "Fix the geometry in the header, or exclude the patient.",
    )


def check_values(data: NDArray[Any], refuse: Refusal, *, labels: bool = False) -> None:
    """Raise VolumeError unless the scaled voxels are finite and, but for labels, not all equal."""
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise refuse("it holds NaN or infinity", "Replace them (background is 0), or take it out.")
    # a mask of ones covers the whole crop
    if not labels and data.min() == data.max():
        raise refuse(f"every voxel is {data.flat[0]:g}", "Export it again: it shows nothing.")


def with_fresh_header(data: NDArray[Any], affine: NDArray[np.float64], refuse: Refusal) -> Decoded:
    """What a file without NIfTI header holds: no scale factor, and a header made of the affine.

    The header's sform is the affine; its qform is the same one, or none where it cannot hold
    sheared axes.

    Raises:
        AffineError: the affine is singular or not finite in the header's float32.
    """
    with np.errstate(all="ignore"):
        check_affine(affine.astype(np.float32).astype(np.float64), refuse)
        large = max(data.shape) > _LONGEST_NIFTI1_AXIS
        header = (nibabel.Nifti2Header if large else nibabel.Nifti1Header)()
        header.set_data_dtype(data.dtype.newbyteorder("="))
        header.set_data_shape(data.shape)
        header.set_sform(affine, code=1)
        try:
            header.set_qform(affine, code=1)
            extent = np.array([*data.shape, 1.0])
            error = np.abs(header.get_qform() - affine) @ extent
            qform_code = int(error[:3].max() <= _QFORM_TOLERANCE_MM)
        except (HeaderDataError, ValueError):
            qform_code = 0
        header["qform_code"] = qform_code
        header.set_xyzt_units("mm")
    return Decoded(data, affine, 1.0, 0.0, header)
