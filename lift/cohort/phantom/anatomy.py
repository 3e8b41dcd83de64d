"""Heads: the MNI152 atlas, deformed at random, with lesions.

The atlas is ICBM 152 2009 (Fonov et al. 2011, NeuroImage 54:313) as nilearn ships it: brain,
grey and white matter at 1 mm. Skull and scalp are shells built around the brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
_TEMPLATE: Final = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_COARSE_MM: Final = 4.0
_SQUARINGS: Final = 5
# shells around the brain: tissue and outer distance, mm (chosen: an adult's vault and scalp)
_SHELLS: Final = (
    ("csf", 2.0),
    ("bone", 4.0),
    ("marrow", 6.5),
    ("bone", 8.5),
    ("fat", 12.0),
    ("muscle", 15.0),
)


@dataclass(frozen=True)
class Atlas:
    """Fuzzy tissue maps at 1 mm, RAS+, in [0, 1].

    Attributes:
        maps: tissue -> (x, y, z) map.
        affine: voxel -> mm.
        support: where any map can have a say in linear interpolation.
    """

    maps: dict[str, Floats]
    affine: NDArray[np.float64]
    support: NDArray[np.bool_]


@dataclass(frozen=True)
class Head:
    """One phantom head on its acquisition grid.

    Attributes:
        maps: tissue -> (x, y, z) share, summing to at most 1 (the rest is air).
        brain: the brain's share.
        texture: relative variation of tissue from place to place, mean 0.
        coil: the receiving coil's intensity field, smooth, within -1 and 1: one for all
            sequences of an examination.
        jacobian: determinants of the deformation on its coarse grid; all positive.
    """

    maps: dict[str, Floats]
    brain: Floats
    texture: Floats
    coil: Floats
    jacobian: NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """An axis-aligned grid in atlas space: shape, first voxel (mm) and spacing (mm)."""

    shape: tuple[int, int, int]
    origin_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]

    def points_mm(self) -> NDArray[np.float32]:
        """Voxel centres, (3, x, y, z), mm."""
        axes = [
            o + s * np.arange(n, dtype=np.float32)
            for n, o, s in zip(self.shape, self.origin_mm, self.spacing_mm, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


@lru_cache(maxsize=2)
def load_atlas(*, whole_head: bool) -> Atlas:
    """The atlas from nilearn's package data; nothing is downloaded."""
    # found, not imported: importing nilearn takes seconds in every worker
    found = find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("nilearn", name="nilearn")
    folder = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    images = {name: nibabel.load(folder / _TEMPLATE.format(name)) for name in ("t1", "gm", "wm")}
    affine = np.asarray(images["t1"].affine, dtype=np.float64)
    arrays = {name: np.asarray(image.dataobj, dtype=np.float32) for name, image in images.items()}
    brain = ndimage.binary_fill_holes(arrays["t1"] > 0)
    wm, gm = arrays["wm"] / 255.0 * brain, arrays["gm"] / 255.0 * brain
    total = np.maximum(wm + gm, 1.0)
    maps = {"wm": wm / total, "gm": gm / total}
    maps["csf"] = (brain - maps["wm"] - maps["gm"]).astype(np.float32)
    if whole_head:
        distance = ndimage.distance_transform_edt(~brain).astype(np.float32)
        inner = 0.0
        for tissue, outer in _SHELLS:
            # edges one voxel wide: partial volume
            shell = np.clip(distance - inner + 0.5, 0, 1) * np.clip(outer - distance + 0.5, 0, 1)
            shell *= ~brain
            maps[tissue] = maps.get(tissue, np.zeros_like(wm)) + shell
            inner = outer
    tissue = np.any([values > 0 for values in maps.values()], axis=0)
    return Atlas(
        {name: values.astype(np.float32) for name, values in maps.items()},
        affine,
        ndimage.binary_dilation(tissue, iterations=2, structure=np.ones((3, 3, 3), dtype=bool)),
    )


def make_head(grid: Grid, rng: np.random.Generator, *, whole_head: bool) -> Head:
    """A random head on `grid`: affine, smooth diffeomorphism, texture, lesions."""
    atlas = load_atlas(whole_head=whole_head)
    points = grid.points_mm()
    displacement, jacobian = _displacement(rng)
    moved = _affine(rng, points) + np.stack([_at(part, grid) for part in displacement])
    voxels = moved - atlas.affine[:3, 3].astype(np.float32)[:, None, None, None]
    # more than half of the grid is air: every map is 0 there
    inside = _is_near(atlas.support, voxels)
    places = voxels[:, inside]
    maps = {}
    for name, values in atlas.maps.items():
        maps[name] = np.zeros(grid.shape, dtype=np.float32)
        maps[name][inside] = ndimage.map_coordinates(
            values, places, order=1, mode="constant", prefilter=False
        )
    # the rest of the brain is fluid; around a whole head's brain there is fluid as well
    brain = maps["wm"] + maps["gm"]
    if not whole_head:
        brain = brain + maps["csf"]
    texture = _smooth_noise(rng, grid, correlation_mm=5.0)
    _add_lesions(maps, points, grid, rng)
    return Head(maps, brain, texture, smooth_polynomial(grid, rng), jacobian)


def _is_near(support: NDArray[np.bool_], voxels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the voxel nearest to each place is in `support`; False beyond its ends."""
    nearest = np.rint(voxels).astype(np.int32)
    limits = np.array(support.shape, dtype=np.int32)[:, None, None, None] - 1
    clipped = np.clip(nearest, 0, limits)
    found: NDArray[np.bool_] = support[clipped[0], clipped[1], clipped[2]]
    return found


def smooth_polynomial(grid: Grid, rng: np.random.Generator) -> Floats:
    """A random second-order polynomial over the grid: mean 0, largest magnitude 1."""
    x, y, z = (
        np.linspace(-1, 1, n, dtype=np.float32).reshape([-1 if i == j else 1 for j in range(3)])
        for i, n in enumerate(grid.shape)
    )
    a = rng.uniform(-1, 1, 9).astype(np.float32)
    field = a[0] * x + a[1] * y + a[2] * z
    field = field + a[3] * x * y + a[4] * y * z + a[5] * x * z
    field = field + a[6] * x * x + a[7] * y * y + a[8] * z * z
    field = field - field.mean()
    return np.asarray(field / np.abs(field).max(), dtype=np.float32)


def _displacement(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A diffeomorphism's displacement (3, x, y, z) on the coarse grid, mm, and its Jacobian.

    A smooth stationary velocity field is integrated by scaling and squaring (Arsigny et al.
    2006, MICCAI). Amplitudes are chosen: about 3 mm everywhere, and +-3 mm at the ventricles.
    """
    shape = (52, 62, 52)
    start = _coarse_origin()
    sigma = 20.0 / _COARSE_MM / 1.5
    noise = [rng.standard_normal(shape) for _ in range(3)]
    velocity = np.stack([ndimage.gaussian_filter(part, sigma) for part in noise])
    velocity *= 3.0 / velocity.std()
    axes = [o + _COARSE_MM * np.arange(n) for n, o in zip(shape, start, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    from_ventricles = places - np.array([0.0, -15.0, 12.0])[:, None, None, None]
    distance = np.sqrt((from_ventricles**2).sum(0)) + 1e-6
    strength = rng.uniform(-3.0, 3.0) * np.exp(-((distance / 25.0) ** 2))
    velocity += strength * from_ventricles / 15.0
    flow = velocity / 2**_SQUARINGS
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    for _ in range(_SQUARINGS):
        where = index + flow / _COARSE_MM
        flow = flow + np.stack(
            [ndimage.map_coordinates(part, where, order=1, mode="nearest") for part in flow]
        )
    gradient = np.stack([np.stack(np.gradient(part, _COARSE_MM)) for part in flow])
    matrix = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3)
    return flow.astype(np.float32), np.linalg.det(matrix)


def _coarse_origin() -> tuple[float, float, float]:
    return (-102.0, -138.0, -90.0)


def _at(field: Floats, grid: Grid) -> Floats:
    """A coarse field at the grid's voxels: linear interpolation, axis by axis."""
    for axis, (n, o, s, start) in enumerate(
        zip(grid.shape, grid.origin_mm, grid.spacing_mm, _coarse_origin(), strict=True)
    ):
        field = _stretched(field, axis, (o - start + s * np.arange(n)) / _COARSE_MM)
    return field


def _stretched(field: Floats, axis: int, where: NDArray[np.floating[Any]]) -> Floats:
    """Linear interpolation along one axis at fractional indices; constant beyond the ends."""
    last = field.shape[axis] - 1
    where = np.clip(where, 0, last)
    low = np.minimum(where.astype(int), last - 1)
    weights = np.zeros((len(where), last + 1), dtype=np.float32)
    rows = np.arange(len(where))
    weights[rows, low] = 1 - (where - low)
    weights[rows, low + 1] = where - low
    return np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis).astype(np.float32)


def _affine(rng: np.random.Generator, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points under a random affine: +-5 degrees, +-7% size, 2% shear, 4 mm shift (chosen)."""
    angles = np.deg2rad(rng.uniform(-5, 5, 3))
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    shear = np.eye(3) + np.triu(rng.uniform(-0.02, 0.02, (3, 3)), 1)
    matrix = matrix @ shear @ np.diag(rng.uniform(0.93, 1.07, 3))
    shift = rng.uniform(-4, 4, 3)
    moved = np.tensordot(matrix.astype(np.float32), points, axes=1)
    return np.asarray(moved + shift.astype(np.float32)[:, None, None, None], dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, grid: Grid, *, correlation_mm: float) -> Floats:
    """A random field of standard deviation 1 on the grid; drawn coarsely, then interpolated."""
    extent = [n * s for n, s in zip(grid.shape, grid.spacing_mm, strict=True)]
    shape = [max(4, int(np.ceil(e / correlation_mm)) + 3) for e in extent]
    field: Floats = rng.standard_normal(shape).astype(np.float32)
    for axis, (n, s) in enumerate(zip(grid.shape, grid.spacing_mm, strict=True)):
        field = _stretched(field, axis, np.arange(n) * s / correlation_mm + 1)
    return np.asarray(field / field.std(), dtype=np.float32)


def _add_lesions(
    maps: dict[str, Floats], points: NDArray[np.float32], grid: Grid, rng: np.random.Generator
) -> None:
    """White matter hyperintensities in most heads, and a glioma in each, as in BraTS's cohort."""
    candidates = np.argwhere(maps["wm"] > 0.8)
    for _ in range(int(rng.poisson(6))):
        centre = candidates[rng.integers(len(candidates))]
        radii = rng.uniform(2.0, 5.0, 3)
        box = _box(grid, centre, float(radii.max()))
        _replace(maps, "hyperintensity", box, _blob(points, box, centre, radii, None, 0.0))
    centre = candidates[rng.integers(len(candidates))]
    rough = _smooth_noise(rng, grid, correlation_mm=8.0)
    core, rim, around = rng.uniform(5, 11), rng.uniform(2.5, 4.5), rng.uniform(6, 14)
    largest = core + rim + around
    # the rough border reaches as far as its field is large
    box = _box(grid, centre, largest + 3.0 * float(np.abs(rough).max()))
    oedema = _blob(points, box, centre, np.full(3, largest), rough, 3.0)
    # oedema follows white matter
    _replace(maps, "oedema", box, oedema * np.clip(maps["wm"][box] * 1.5, 0, 1))
    enhancing = _blob(points, box, centre, np.full(3, core + rim), rough, 1.5)
    _replace(maps, "enhancing", box, enhancing)
    _replace(maps, "necrosis", box, _blob(points, box, centre, np.full(3, core), rough, 1.5))


Box = tuple[slice, slice, slice]


def _box(grid: Grid, centre: NDArray[np.int64], radius_mm: float) -> Box:
    """The part of the grid within `radius_mm` (and an edge) of a voxel, along each axis."""
    sides = []
    for middle, n, spacing in zip(centre, grid.shape, grid.spacing_mm, strict=True):
        reach = int(np.ceil((radius_mm + 2.0) / spacing))
        sides.append(slice(max(0, int(middle) - reach), min(n, int(middle) + reach + 1)))
    return sides[0], sides[1], sides[2]


def _blob(
    points: NDArray[np.float32],
    box: Box,
    centre: NDArray[np.int64],
    radii_mm: NDArray[np.float64],
    rough: Floats | None,
    roughness_mm: float,
) -> Floats:
    """An ellipsoid's map in `box` with an edge of 1.5 mm, its border moved by the field `rough`."""
    i, j, k = (int(index) for index in centre)
    middle = points[:, i, j, k]
    radii = radii_mm.astype(np.float32)[:, None, None, None]
    scaled = (points[(slice(None), *box)] - middle[:, None, None, None]) / radii
    mean_radius = float(radii_mm.mean())
    outside_mm = (np.sqrt((scaled**2).sum(0)) - 1) * mean_radius
    if rough is not None:
        outside_mm = outside_mm + roughness_mm * rough[box]
    return np.asarray(np.clip(0.5 - outside_mm / 1.5, 0, 1), dtype=np.float32)


def _replace(maps: dict[str, Floats], tissue: str, box: Box, share: Floats) -> None:
    """Put `share` of a new tissue inside the brain, in `box`, in place of what was there."""
    inside = share * np.clip(sum(maps[name][box] for name in _BRAIN if name in maps), 0, 1)
    for name in _BRAIN:
        if name in maps:
            maps[name][box] = maps[name][box] * (1 - share)
    if tissue not in maps:
        maps[tissue] = np.zeros_like(maps["wm"])
    maps[tissue][box] += inside


_BRAIN: Final = ("wm", "gm", "csf", "hyperintensity", "oedema", "enhancing", "necrosis")
