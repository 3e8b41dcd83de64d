"""Volumes made for the tests of `lift.inspection`: bodies, series of thick slices, resampling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from lift.cohort.phantom.anatomy import Grid, make_head
from lift.cohort.phantom.scanner import acquire, body_share, brain_share
from lift.config.phantom import SCANNERS

Floats = NDArray[np.float64]
Spacing = tuple[float, float, float]
FINE_MM = 0.5
IN_PLANE_MM = 2.0
Method = Literal["nearest", "linear", "cubic spline", "cubic convolution"]


def body(rng: np.random.Generator, *, depth_mm: float, detail_mm: float = 4.0) -> Floats:
    """A random body of three tissues with texture, (z, h, w), 0.5 mm along z and 2 mm across."""
    shape = (int(depth_mm / FINE_MM), 36, 36)

    def field(size_mm: float) -> Floats:
        sigma = (size_mm / FINE_MM, size_mm / IN_PLANE_MM, size_mm / IN_PLANE_MM)
        values = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
        return np.asarray(values / values.std())

    tissue = field(detail_mm)
    levels = np.where(tissue > 0.5, 1.0, np.where(tissue < -0.6, 0.3, 0.65))
    return np.asarray(levels + 0.1 * field(2 * detail_mm))


def thick_slices(fine: Floats, spacing_mm: float) -> Floats:
    """Means over boxes of `spacing_mm`, one upon the other."""
    total = np.concatenate([np.zeros((1, *fine.shape[1:])), np.cumsum(fine, 0)])
    count = int(len(fine) * FINE_MM / spacing_mm)
    edges = spacing_mm * np.arange(count + 1) / FINE_MM
    low = np.minimum(edges.astype(int), len(fine) - 1)
    part = (edges - low)[:, None, None]
    at_edges = total[low] * (1 - part) + total[low + 1] * part
    return np.asarray(np.diff(at_edges, axis=0) * FINE_MM / spacing_mm)


def resampled(slices: Floats, ratio: float, method: Method, phase: float) -> Floats:
    """The slices at places 1 / ratio apart, by scipy or by arithmetic written out here."""
    count = len(slices)
    places = phase + np.arange(int((count - 1 - phase) * ratio)) / ratio
    if method == "nearest":
        return np.asarray(slices[np.floor(places + 0.5).astype(int)])
    if method == "cubic spline":
        return np.asarray(make_interp_spline(np.arange(count), slices, k=3, axis=0)(places))
    low = np.minimum(places.astype(int), count - 2)
    t = (places - low)[:, None, None]
    if method == "linear":
        return np.asarray(slices[low] * (1 - t) + slices[low + 1] * t)
    p, q, r, s = (slices[np.clip(low + step, 0, count - 1)] for step in (-1, 0, 1, 2))
    # Catmull-Rom, the convolution of Keys with a = -1/2
    cubic = 3 * (q - r) + s - p
    return np.asarray(q + 0.5 * t * (r - p + t * (2 * p - 5 * q + 4 * r - s + t * cubic)))


@dataclass(frozen=True)
class Scan:
    """One phantom examination."""

    t1: NDArray[np.float32]
    t2: NDArray[np.float32]
    flair: NDArray[np.float32]
    ct: NDArray[np.float32]
    mask: NDArray[np.bool_]
    spacing_mm: Spacing


@lru_cache(maxsize=8)
def phantom(seed: int, *, whole_head: bool) -> Scan:
    """A phantom on the `north` scanner's 3 mm slices, 3 mm across; the head with room in front."""
    low, high = (
        ((-99, -135, -74), (99, 129, 106)) if whole_head else ((-84, -117, -74), (84, 87, 91))
    )
    scanner = SCANNERS["north"]
    size = [b - a for a, b in zip(low, high, strict=True)]
    depth = size[2] // 3 * 3
    grid = Grid((size[0] // 3, size[1] // 3, depth), low, (3.0, 3.0, 1.0))
    rng = np.random.default_rng([seed, int(whole_head)])
    head = make_head(grid, rng, whole_head=whole_head)
    mask = (body_share if whole_head else brain_share)(head, scanner, grid) > 0.5
    found = {}
    for index, channel in enumerate(("t1n", "t2w", "t2f", "ct")):
        own = np.random.default_rng([seed, index])
        voxels = acquire(head, grid, channel, scanner, own, is_target=True).voxels
        found[channel] = voxels if whole_head else np.where(mask, voxels, 0).astype(np.float32)
    return Scan(found["t1n"], found["t2w"], found["t2f"], found["ct"], mask, (3.0, 3.0, 3.0))
