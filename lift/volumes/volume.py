"""Volumes: voxels with their place in the patient, read from a file, written back exactly as NIfTI.

Conventions of the whole project, said once: a `Volume`'s voxels are (x, y, z) in the
orientation closest to RAS+ (x to the right, y to the front, z upwards), lengths are in mm, and
*depth* is the axis across the slices (`lift.volumes.slices`).
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from lift.errors import AffineError
from lift.files import write_atomically
from lift.volumes.formats.checks import Decoded, Refusal, TooLargeError, check_affine, check_values
from lift.volumes.formats.decode import READ_SUFFIXES, decode, files_of
from lift.volumes.formats.parts import Spacings, coarsened

SUFFIXES: Final = READ_SUFFIXES
"""What files of volumes are called when a folder is searched; `read_volume` takes any name."""
_WRITTEN: Final = (".nii", ".nii.gz")
GRID_TOLERANCE_MM: Final = 1e-3
"""Two grids are one when their corners lie this close (headers store float32)."""
CANONICAL: Final = np.array([[0, 1], [1, 1], [2, 1]])
"""The orientation of RAS+ voxels, as nibabel writes one."""


def stem_of(name: str) -> str:
    """A volume's name without the ending of its format."""
    endings = [ending for ending in SUFFIXES if name.lower().endswith(ending)]
    return name[: -len(max(endings, key=len))] if endings else name


@dataclass(frozen=True)
class FileGrid:
    """How the file stored the volume: what is needed to write on its grid again.

    Attributes:
        shape: voxels along the file's own axes.
        affine: file voxel -> mm, (4, 4).
        orientation: nibabel orientation that brings the file's axes to RAS+, (3, 2).
        dtype: stored number format, native byte order.
        slope: stored scale factor, 1 when the file has none.
        inter: stored offset.
        header: the file's NIfTI header without its texts; for another format, a fresh one.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    orientation: NDArray[np.float64]
    dtype: np.dtype[Any]
    slope: float
    inter: float
    header: Any


@dataclass(frozen=True)
class Volume:
    """One 3D image.

    Attributes:
        voxels: (x, y, z), RAS+; the stored type where the file has no scale factor, else float64.
        affine: voxel -> mm of `voxels`, (4, 4) float64.
        grid: how the file stored it.
        digest: SHA-256 of the file's bytes; of two files, of the header's and then the other's;
            of a series, of its files' sorted digests.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    grid: FileGrid
    digest: str

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along x, y and z."""
        x, y, z = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return x, y, z


def read_volume(
    path: Path,
    *,
    root: Path | None = None,
    coarsest_mm: Spacings | None = None,
    labels: bool = False,
) -> Volume:
    """The volume of one file, brought to RAS+.

    Formats: NIfTI-1 and NIfTI-2 (also as a pair, by either name), MGH and MGZ, NRRD, MetaImage, and
    DICOM, as the folder of a series or as one enhanced multi-frame file. The content tells them
    apart, whatever the file is called. Trailing axes of length 1 are dropped. A compressed file is
    read to its end and its checksum verified: a damaged one is refused, never read as other voxels.

    Args:
        path: the file, the header of two files, or the folder of a series.
        root: the data folder that messages name the file relative to.
        coarsest_mm: spacing along x, y and z to which the volume will be resampled. One that is
            larger than memory is then read in parts, each mean of whole voxels that still fits
            into this spacing becoming one (`lift.volumes.formats.parts`); its grid, on which
            results are written too, is that of the means.
        labels: a mask or labels: all may be equal, and in parts middle voxels are taken instead
            of means.

    Raises:
        VolumeError: the file is missing, empty, truncated, damaged, of another format, too large,
            4D, colour or complex, holds NaN or infinity, is constant (and no `labels`), or is
            thinner than 2 voxels.
        AffineError: its affine is singular or not finite, or the file does not say how the patient
            lies.
    """
    refuse = Refusal(_relative(path, root), root)
    try:
        try:
            return _read(lambda: decode(path, refuse), refuse, labels=labels)
        except TooLargeError:
            if coarsest_mm is None:
                raise
        in_parts = Refusal(_relative(path, root), root, in_parts=True)

        def means() -> tuple[Decoded, str]:
            decoded, digest = decode(path, in_parts)
            return coarsened(decoded, coarsest_mm, in_parts, labels=labels), digest

        return _read(means, refuse, labels=labels)
    except MemoryError:
        raise refuse(
            "this machine has too little free memory for it",
            "Close other programs, or resample the volume.",
        ) from None


def stored_files(path: Path, *, root: Path | None = None) -> list[Path]:
    """Every file that the volume of `path` is stored in: one, two, or those of a series' folder.

    Args:
        path: as for `read_volume`.
        root: the data folder that messages name the file relative to.

    Raises:
        VolumeError: one of them is missing or cannot be read.
    """
    return files_of(path, Refusal(_relative(path, root), root))


def write_volume(
    path: Path, voxels: NDArray[Any], like: Volume, *, dtype: np.dtype[Any] | None = None
) -> None:
    """Write RAS+ voxels on the grid and in the orientation of the file behind `like`.

    The type rule: with `dtype` None the file's stored type, scale factor and offset are kept, so
    that what was read is written back bit for bit (a float64 file with a scale factor: to its
    last digits); values that an integer type cannot hold, for their size or for a fraction of
    its step, make the file float32. With a `dtype` that type is stored without a scale factor:
    an integer type rounds, and refuses what is beyond its limits. No text of the input's header
    is copied.

    Args:
        path: .nii or .nii.gz; written whole or not at all, the folder is made.
        voxels: (x, y, z), the shape of `like.voxels`.
        like: the volume whose grid is meant.
        dtype: number format, or None.

    Raises:
        VolumeError: the name has another suffix, the values are not finite or beyond `dtype`'s
            limits, or the disk refuses.
        ValueError: the shape differs.
    """
    if voxels.shape != like.voxels.shape:
        raise ValueError(f"shape {voxels.shape} is not that of the grid, {like.voxels.shape}")
    check_written_name(path)
    refuse = Refusal(path.name, path.parent, verb="write")
    grid = like.grid
    data = apply_orientation(voxels, ornt_transform(CANONICAL, grid.orientation))
    stored, slope, inter = _stored(data, grid, dtype, refuse)
    header = _header_of(grid, stored.dtype, slope, inter)
    content = io.BytesIO()
    header.write_to(content)
    content.write(b"\0" * (int(header["vox_offset"]) - content.tell()))
    content.write(stored.tobytes(order="F"))
    compressed = path.name.endswith(".gz")
    # level 1 and no time stamp: fast, and equal volumes give equal files
    packed = gzip.compress(content.getbuffer(), 1, mtime=0) if compressed else content.getbuffer()
    try:
        write_atomically(path, bytes(packed))
    except OSError as error:
        raise refuse(
            error.strerror or type(error).__name__, "Free disk space or choose another folder."
        ) from None


def check_written_name(path: Path) -> None:
    """Raise VolumeError where `write_volume` writes no file of this name."""
    if not is_written_name(path):
        refuse = Refusal(path.name, path.parent, verb="write")
        raise refuse("the name does not end in .nii or .nii.gz", "Choose such a name.")


def is_written_name(path: Path) -> bool:
    """Whether the name ends as the volumes do that are written."""
    return path.name.endswith(_WRITTEN)


def check_same_grid(reference: Volume, other: Volume, names: tuple[str, str]) -> None:
    """Raise AffineError unless both volumes have the same grid.

    Args:
        reference: one volume.
        other: the other one.
        names: what the message calls them, in this order.

    Raises:
        AffineError: the shapes differ, or a corner differs by more than `GRID_TOLERANCE_MM`.
    """
    if reference.voxels.shape != other.voxels.shape:
        seen = f"{reference.voxels.shape} and {other.voxels.shape} voxels"
    else:
        shift = _corners(reference) - _corners(other)
        farthest = float(np.linalg.norm(shift, axis=1).max())
        if farthest <= GRID_TOLERANCE_MM:
            return
        seen = (
            f"corners lie up to {farthest:.3f} mm apart; at most {GRID_TOLERANCE_MM} mm is one grid"
        )
    raise AffineError(
        f"'{names[0]}' and '{names[1]}' are not on one grid",
        where="the voxel grids",
        seen=seen,
        remedy="Register and resample the channels of this patient to one grid, or take it out. "
        "For registered channels the plan may do it (preprocessing.grid).",
    )


_WHOLE: Final = 1e-2
"""A stored step: values this close to a whole number of steps are one (float32 arithmetic)."""
_GEOMETRY: Final = (
    "pixdim",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)


def _read(
    decoded_now: Callable[[], tuple[Decoded, str]], refuse: Refusal, *, labels: bool
) -> Volume:
    decoded, digest = decoded_now()
    with np.errstate(all="ignore"):
        orientation = check_affine(decoded.affine, refuse)
    data, affine, header = decoded.data, decoded.affine, decoded.header
    slope, inter = decoded.slope, decoded.inter
    # each step's input is let go: a volume at the limit is in memory twice, not more often
    del decoded
    if (slope, inter) != (1.0, 0.0):
        with np.errstate(over="ignore", invalid="ignore"):  # the check of values refuses these
            data = data.astype(np.float64)
            data *= slope
            data += inter
    check_values(data, refuse, labels=labels)
    shape = (data.shape[0], data.shape[1], data.shape[2])
    # a copy always: a view would be read-only and would keep the whole file in memory
    voxels = np.array(
        apply_orientation(data, orientation), dtype=data.dtype.newbyteorder("="), order="C"
    )
    grid = FileGrid(
        shape=shape,
        affine=affine,
        orientation=orientation,
        dtype=header.get_data_dtype().newbyteorder("="),
        slope=slope,
        inter=inter,
        header=header,
    )
    return Volume(voxels, affine @ inv_ornt_aff(orientation, shape), grid, digest)


def _relative(path: Path, root: Path | None) -> str:
    if root is not None and path.is_relative_to(root):
        return str(path.relative_to(root))
    return path.name


def _stored(
    data: NDArray[Any], grid: FileGrid, dtype: np.dtype[Any] | None, refuse: Refusal
) -> tuple[NDArray[Any], float, float]:
    """The numbers that go into the file, with scale factor and offset."""
    if not np.isfinite(data).all():
        raise refuse("the voxels hold NaN or infinity", "Nothing was written.")
    target, slope, inter = np.dtype(grid.dtype if dtype is None else dtype), 1.0, 0.0
    raw = data
    if dtype is None and (grid.slope, grid.inter) != (1.0, 0.0):
        slope, inter = grid.slope, grid.inter
        raw = (data.astype(np.float64) - inter) / slope
    if target.kind == "f":
        with np.errstate(over="ignore"):
            stored = raw.astype(target)
        fits = bool(np.isfinite(stored).all())
    else:
        whole = np.rint(raw) if raw.dtype.kind == "f" else raw
        limits = np.iinfo(target)
        # Python's whole numbers: exact at the ends of 64 bits
        fits = limits.min <= int(whole.min()) and int(whole.max()) <= limits.max
        broken = raw.dtype.kind == "f" and float(np.abs(raw - whole).max()) > _WHOLE
        if dtype is None and (broken or not fits):
            return data.astype(np.float32), 1.0, 0.0
        stored = whole.astype(target) if fits else whole
    if not fits:
        raise refuse(
            f"values from {data.min():g} to {data.max():g} do not fit into {target}",
            "Nothing was written. Store it as float32.",
        )
    return stored, slope, inter


def _header_of(grid: FileGrid, dtype: np.dtype[Any], slope: float, inter: float) -> Any:
    """A fresh header: geometry of the file, no text of it."""
    header = type(grid.header)()
    for field in _GEOMETRY:
        header[field] = grid.header[field]
    header.set_data_dtype(dtype)
    pixdim = np.array(header["pixdim"])
    header.set_data_shape(grid.shape)
    header["pixdim"] = pixdim
    header.set_slope_inter(slope, inter)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    return header


def _corners(volume: Volume) -> NDArray[np.float64]:
    x, y, z = (n - 1 for n in volume.voxels.shape)
    corners = np.array([(i, j, k, 1) for i in (0, x) for j in (0, y) for k in (0, z)], float)
    places: NDArray[np.float64] = (corners @ volume.affine.T)[:, :3]
    return places
