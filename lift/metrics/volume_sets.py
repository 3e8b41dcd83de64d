"""Measurements of each volume of a set, taken once, for the comparison of sets.

Volumes may differ in size and spacing. They are read one at a time and not kept: a thousand of
them take some 200 MB.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lift.errors import VolumeError
from lift.metrics.descriptors import depth_spectrum_db, texture, thumbnail
from lift.metrics.synthrad import Floats
from lift.triplanar.encoder import Encoder
from lift.triplanar.features import raw_features
from lift.triplanar.groups import GroupLayout

Index = npt.NDArray[np.int64]

GRID: Final = 16
"""Side of the common small grid that a body's box is averaged to."""

PLANE_SIDE: Final = 64
"""Side of the three central slices of a body's box that MS-SSIM looks at."""

FLAT: Final = 1e-3
"""A volume whose standard deviation inside the body is below this is empty or constant."""


@dataclass(frozen=True)
class ImageVolume:
    """One volume to be compared.

    Attributes:
        voxels: (d, h, w), float32 in [0, 1]; depth from inferior to superior, height from
            posterior to anterior, width from left to right.
        spacing_mm: along depth, height and width.
        extent: first and last index of the body along each axis, (3, 2), int64; None: the whole
            grid.
        name: what to call it in an error; relative to its folder, or empty.
    """

    voxels: Tensor
    spacing_mm: tuple[float, float, float]
    extent: Tensor | None = None
    name: str = ""


@dataclass(frozen=True)
class MeasuredSet:
    """What was measured of a set of volumes, in the order they came.

    Attributes:
        layout: groups and windows of `raw`.
        encoder_digest: of the encoder that made `raw`.
        raw: raw features by group, (volumes, windows, f), float32.
        grid: each body's box averaged to a common small grid, (volumes, 16, 16, 16), float32.
        planes: central axial, coronal and sagittal slice of each box, (volumes, 3, 64, 64).
        anisotropy: mean |Dz| over mean |Dy|, each a mm, inside the box, (volumes,); NaN where a
            volume has no Dy.
        thumbnails: each box averaged to 12 x 10 x 8, (volumes, 960), float64.
        textures: each box's texture, (volumes, 51); see `lift.metrics.descriptors`.
        spectra_db: each box's power along depth by band, (volumes, 12).
        spacing_mm: along depth, height and width, (volumes, 3).
        flat: whether the volume is empty or constant, (volumes,).
        digests: SHA-256 of each volume: the order in which random choices see the set.
    """

    layout: GroupLayout
    encoder_digest: str
    raw: tuple[Tensor, ...]
    grid: Tensor
    planes: Tensor
    anisotropy: Floats
    thumbnails: Floats
    textures: Floats
    spectra_db: Floats
    spacing_mm: Floats
    flat: npt.NDArray[np.bool_]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.digests)

    def take(self, index: Index) -> MeasuredSet:
        """Some of the volumes, in this order."""
        rows = torch.from_numpy(index)
        return MeasuredSet(
            self.layout,
            self.encoder_digest,
            tuple(group[rows] for group in self.raw),
            self.grid[rows],
            self.planes[rows],
            self.anisotropy[index],
            self.thumbnails[index],
            self.textures[index],
            self.spectra_db[index],
            self.spacing_mm[index],
            self.flat[index],
            tuple(self.digests[i] for i in index),
        )

    def sorted(self) -> MeasuredSet:
        """The same set in the order of its digests: whatever order the volumes came in."""
        order = sorted(range(len(self)), key=lambda i: self.digests[i])
        return self.take(np.asarray(order, dtype=np.int64))


def measure_volumes(
    volumes: Iterable[ImageVolume], *, layout: GroupLayout, encoder: Encoder
) -> MeasuredSet:
    """Measure a set of volumes, one at a time, independently.

    Args:
        volumes: may be an iterator that reads them as it goes.
        layout: groups and windows of the features.
        encoder: frozen; never the one of training.

    Raises:
        VolumeError: a volume's body is too thin for the layout's groups.
        ValueError: no volume, or one that is not 3D, not finite or not within [0, 1].
    """
    raw: list[list[Tensor]] = [[] for _ in layout.groups]
    grids, planes, anisotropy, flat, digests = [], [], [], [], []
    thumbnails, textures, spectra, spacings = [], [], [], []
    for volume in volumes:
        extent = _checked_extent(volume, layout)
        features = raw_features(
            volume.voxels[None, None], volume.spacing_mm, extent[None], layout, encoder
        )
        for rows, own in zip(raw, features, strict=True):
            rows.append(own)
        first, last = extent.T.tolist()
        z, y, x = (slice(a, b + 1) for a, b in zip(first, last, strict=True))
        box = volume.voxels[z, y, x].float()
        grids.append(F.adaptive_avg_pool3d(box[None], GRID)[0])
        planes.append(_central_slices(box))
        anisotropy.append(_anisotropy(box, volume.spacing_mm))
        thumbnails.append(thumbnail(box))
        textures.append(texture(box))
        spectra.append(depth_spectrum_db(box))
        spacings.append(volume.spacing_mm)
        flat.append(float(box.std()) < FLAT)
        digests.append(_digest(volume, extent))
    if not digests:
        raise ValueError("a set holds at least one volume")
    return MeasuredSet(
        layout,
        encoder.digest,
        tuple(torch.stack(rows) for rows in raw),
        torch.stack(grids),
        torch.stack(planes),
        np.asarray(anisotropy, dtype=np.float64),
        np.stack(thumbnails),
        np.stack(textures),
        np.stack(spectra),
        np.asarray(spacings, dtype=np.float64),
        np.asarray(flat, dtype=np.bool_),
        tuple(digests),
    )


def _checked_extent(volume: ImageVolume, layout: GroupLayout) -> Tensor:
    voxels, extent = volume.voxels, volume.extent
    if voxels.dim() != 3 or not bool(torch.isfinite(voxels).all()):
        raise ValueError(f"a finite (d, h, w) volume is needed, not {tuple(voxels.shape)}")
    if float(voxels.min()) < 0 or float(voxels.max()) > 1:
        raise ValueError("voxels lie within [0, 1]; normalise the volume first")
    whole = torch.tensor([[0, side - 1] for side in voxels.shape])
    if extent is None:
        extent = whole
    first, last = extent[:, 0], extent[:, 1]
    if extent.shape != (3, 2) or bool((first < 0).any() | (first > last).any()):
        raise ValueError(f"an extent is (3, 2), first and last index: {extent.tolist()}")
    if bool((last > whole[:, 1]).any()):
        raise ValueError(f"extent {extent.tolist()} is not within {tuple(voxels.shape)}")
    # a pair of axial slices, rounded as `lift.triplanar.groups.cut` does
    step = max(1, round(layout.step_mm / volume.spacing_mm[0])) if layout.axial else 0
    fewest = layout.fewest_slices()
    needed = (max(fewest[0], step + 1), *fewest[1:])
    spans = (extent[:, 1] - extent[:, 0] + 1).tolist()
    for axis, seen, least in zip(("depth", "height", "width"), spans, needed, strict=True):
        if seen < least:
            raise VolumeError(
                f"cannot compare volume '{volume.name}'" if volume.name else "cannot compare",
                where=f"its {axis}",
                seen=f"the body spans {seen} slices along {axis}; at least {least} are needed",
                remedy="Leave the volume out: it is too thin for figures along three planes.",
            )
    return extent


def _central_slices(box: Tensor) -> Tensor:
    middle = [side // 2 for side in box.shape]
    slices = (box[middle[0]], box[:, middle[1]], box[:, :, middle[2]])
    side = PLANE_SIDE
    return torch.cat([F.adaptive_avg_pool2d(image[None], side) for image in slices])


def _anisotropy(box: Tensor, spacing_mm: tuple[float, float, float]) -> float:
    dz, dy, _ = spacing_mm
    values = box.double()
    along = float(values.diff(dim=0).abs().mean()) / dz
    beside = float(values.diff(dim=1).abs().mean()) / dy
    return along / beside if beside > 0 else math.nan


def _digest(volume: ImageVolume, extent: Tensor) -> str:
    header = f"{volume.voxels.shape} {volume.spacing_mm} {extent.tolist()}\n"
    digest = hashlib.sha256(header.encode())
    digest.update(volume.voxels.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
