"""Bodies made of smooth noise: one anatomy that all share, and what is each one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from lift.metrics.volume_sets import ImageVolume, MeasuredSet, measure_volumes
from lift.triplanar.encoder import RandomPyramid
from lift.triplanar.groups import GroupLayout

Array = NDArray[np.float64]
Change = Callable[[Array, np.random.Generator], Array]

SHAPE = (20, 24, 22)
SPACING_MM = (2.0, 2.0, 2.0)
LAYOUT = GroupLayout(axial=3, coronal=2, sagittal=2, windows=2, step_mm=2.0, pixel_mm=2.0)


def smooth(rng: np.random.Generator, shape: Sequence[int], sigma: float) -> Array:
    """Gaussian-filtered noise of standard deviation 1."""
    noise = np.asarray(gaussian_filter(rng.normal(size=tuple(shape)), sigma))
    return np.asarray((noise - noise.mean()) / noise.std())


def body(seed: int, shape: tuple[int, int, int] = SHAPE) -> Array:
    """One volume in [0, 1], (d, h, w), dark outside an ellipsoid."""
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, side) for side in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    rz, ry, rx = rng.uniform(0.9, 1.0, 3)
    inside = (z / rz) ** 2 + (y / ry) ** 2 + (x / rx) ** 2 < 1
    common = smooth(np.random.default_rng(99), shape, 2.5)
    values = 0.5 + 0.15 * common + 0.09 * smooth(rng, shape, 2.0)
    return np.where(inside, np.clip(values, 0.1, 1.0), 0.0)


def shuffled(volume: Array, rng: np.random.Generator) -> Array:
    return volume[rng.permutation(len(volume))]


def reversed_depth(volume: Array, rng: np.random.Generator) -> Array:
    return volume[::-1]


def blurred_depth(volume: Array, rng: np.random.Generator) -> Array:
    return np.asarray(gaussian_filter(volume, (2.0, 0, 0)))


def as_image(volume: Array) -> ImageVolume:
    voxels = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    return ImageVolume(voxels, SPACING_MM)


def measure(volumes: Sequence[Array]) -> MeasuredSet:
    return measure_volumes(map(as_image, volumes), layout=LAYOUT, encoder=RandomPyramid(5))


@functools.cache
def measured(first: int, count: int, change: Change | None = None) -> MeasuredSet:
    """Volumes number `first` to `first + count - 1`, each changed; nobody may alter them."""
    volumes = [body(seed) for seed in range(first, first + count)]
    if change is not None:
        volumes = [change(v, np.random.default_rng(seed)) for seed, v in enumerate(volumes)]
    return measure(volumes)
