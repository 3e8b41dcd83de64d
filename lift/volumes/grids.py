"""The grid of a volume that no file gave."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from lift.volumes.volume import FileGrid, Volume


def ras_grid(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Volume:
    """An RAS+ grid around a centre, in mm; its voxels are zeros.

    Args:
        shape: voxels along x, y and z.
        spacing_mm: between voxel centres along x, y and z.
        centre_mm: of the grid.
    """
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [
        c - s * (n - 1) / 2 for c, s, n in zip(centre_mm, spacing_mm, shape, strict=True)
    ]
    voxels = np.zeros(shape, dtype=np.float32)
    image = nib.Nifti1Image(voxels, affine)
    # 2: aligned with something, but with no patient's scanner
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=2)
    image.header.set_xyzt_units("mm")
    orientation = nib.orientations.io_orientation(affine)
    grid = FileGrid(shape, affine, orientation, voxels.dtype, 1.0, 0.0, image.header)
    return Volume(voxels, affine, grid, "")
