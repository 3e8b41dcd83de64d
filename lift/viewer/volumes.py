"""Volumes as small NIfTI-1 files: 16 bits a voxel, no texts, the same bytes for the same volume."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lift.errors import VolumeError
from lift.volumes.volume import Volume

FINE: Final = 65_535
COARSE: Final = 1_023
"""Grey levels of a volume inside a report: what its file can spare."""
LONGEST: Final = 2_048
"""Voxels along an axis that every graphics driver with WebGL 2 can hold."""
LARGEST: Final = 400_000_000
"""Voxels that fit into one array of a browser, with the copies it makes."""
BONE_WINDOW: Final = (-500.0, 1500.0)
"""Lowest and highest value of the window `bone` of the viewer, HU."""
_AIR_HU: Final = -300.0
_BONE_HU: Final = 300.0


@dataclass(frozen=True)
class ViewerVolume:
    """One volume as a page holds it.

    Attributes:
        label: what it is called on the page; any text.
        nifti: NIfTI-1 file, int16 with slope and intercept, not compressed.
        hounsfield: whether its values look like those of a CT.
    """

    label: str
    nifti: bytes
    hounsfield: bool

    def packed(self) -> bytes:
        """The file compressed, without a date: the same bytes each time."""
        return gzip.compress(self.nifti, 9, mtime=0)


def viewer_volume(label: str, volume: Volume, *, levels: int = FINE) -> ViewerVolume:
    """The volume with its place in the patient, its values in `levels` equal steps.

    Guarantee: no value is off by more than half a step, (highest - lowest) / (2 levels), but for
    the rounding of float32; nothing of the file's header is kept but shape and affine.

    Args:
        label: what it is called on the page.
        volume: axes (x, y, z), nearest to RAS+.
        levels: steps between the lowest and the highest value, at most 65535.

    Raises:
        VolumeError: it is larger than what a browser can draw.
    """
    if not can_draw(volume.voxels.shape):
        raise VolumeError(
            f"cannot show volume '{label}'",
            seen=f"it has {' x '.join(map(str, volume.voxels.shape))} voxels; a browser draws at "
            f"most {LONGEST} along an axis and {LARGEST:,} in all",
            remedy="Crop or resample it first, and look at that.",
        )
    voxels = np.asarray(volume.voxels, dtype=np.float64)
    lowest, highest = float(voxels.min()), float(voxels.max())
    step = (highest - lowest) / levels or 1.0
    steps: NDArray[np.int16] = (np.round((voxels - lowest) / step) - 32_768).astype(np.int16)
    image = nib.Nifti1Image(steps, volume.affine)
    image.header.set_slope_inter(step, lowest + 32_768 * step)
    image.header.set_xyzt_units("mm")
    return ViewerVolume(label, image.to_bytes(), is_hounsfield(lowest, highest))


def is_hounsfield(lowest: float, highest: float) -> bool:
    """Whether the values of a volume look like those of a CT: air and bone."""
    return lowest < _AIR_HU and highest > _BONE_HU


def can_draw(shape: tuple[int, ...]) -> bool:
    """Whether a browser can hold a volume of this shape."""
    return max(shape) <= LONGEST and int(np.prod(shape, dtype=np.int64)) <= LARGEST
