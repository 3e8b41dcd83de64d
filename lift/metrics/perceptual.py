"""Perceptual distance in three planes: a figure that smoothing cannot win.

LPIPS (Zhang et al. 2018, doi:10.1109/CVPR.2018.00068) compares features of a trained network. No
package ships such weights without a download or pickle, so the network here is
:class:`lift.triplanar.encoder.RandomPyramid`, which is the same everywhere and knows no data:
three scales of random edge filters and absolute values, averaged over fields of 2, 4 and 8
pixels. So a field is described by how much of which texture it holds, and where texture is lost or
added the distance rises. Values are comparable with each other, not with published ones.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lift.metrics.synthrad import Numbers, ValueRange, bounding_box, checked
from lift.triplanar.encoder import RandomPyramid, halved

SEED: Final = 2060
"""Of the random filters; other seeds are other networks."""

SIDE: Final = 8
"""Shortest side of a plane, in voxels: the field of the coarsest scale."""

MOST_IMAGES: Final = 48
"""Of a plane that count, evenly spaced: a large volume takes as long as its SSIM."""

_FLOOR: Final = 1e-3
_IMAGES_AT_ONCE: Final = 32


def perceptual_distance(
    prediction: Numbers, target: Numbers, mask: npt.ArrayLike, values: ValueRange
) -> float | None:
    """Distance of texture between two volumes, 0 (equal) to 1 (nothing in common).

    In each field of each plane, 1 - (2 p.t + c) / (p.p + t.t + c) of the features p and t of both
    volumes: a mean over fields by their share of the mask, then over scales and planes. c is .001
    of the target's mean t.t of that scale and plane: a field without texture has none to lose.

    Both volumes are clipped to `values`, brought to [0, 1] and set to 0 outside the mask. None
    where two axes of the mask's box are shorter than 8 voxels.

    Args:
        prediction: (depth, height, width).
        target: the same for the real volume.
        mask: the same; the voxels that count are above 0.
        values: lowest and highest value.

    Raises:
        ValueError: shapes differ, are not 3D, the mask is empty or a voxel is not finite.
    """
    predicted, wanted, inside = checked(prediction, target, mask)
    box = bounding_box(inside)
    shown = [
        np.where(inside[box], (np.clip(v[box], values.low, values.high) - values.low), 0.0)
        for v in (predicted, wanted)
    ]
    own, real = (torch.from_numpy((v / values.span).astype(np.float32)) for v in shown)
    share = torch.from_numpy(inside[box].astype(np.float32))
    found = [
        _plane_distance(*(_images(volume, axis) for volume in (own, real, share)))
        for axis in range(3)
        if min(side for other, side in enumerate(own.shape) if other != axis) >= SIDE
    ]
    return sum(found) / len(found) if found else None


def _images(volume: Tensor, axis: int) -> Tensor:
    """Images perpendicular to an axis of (d, h, w), (n, 1, height, width)."""
    count = volume.shape[axis]
    places = np.linspace(0, count - 1, min(count, MOST_IMAGES)).round().astype(np.int64)
    return volume.index_select(axis, torch.from_numpy(places)).movedim(axis, 0)[:, None]


@cache
def _network() -> RandomPyramid:
    return RandomPyramid(SEED)


def _plane_distance(prediction: Tensor, target: Tensor, share: Tensor) -> float:
    """Mean over scales; images are (n, 1, h, w)."""
    scales: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        for images in zip(
            *(torch.split(part, _IMAGES_AT_ONCE) for part in (prediction, target, share)),
            strict=True,
        ):
            weight = images[2]
            features = zip(*(_network().maps(part) for part in images[:2]), strict=True)
            for level, (own, real) in enumerate(features):
                weight = halved(weight)
                products = [(own * real).sum(1), own.square().sum(1), real.square().sum(1)]
                fields = torch.stack([*products, weight[:, 0]]).flatten(1)
                scales.setdefault(level, []).append(fields.double())
    distances = [_scale_distance(torch.cat(fields, dim=1)) for fields in scales.values()]
    return sum(distances) / len(distances)


def _scale_distance(fields: Tensor) -> float:
    """From p.t, p.p, t.t and the share of the mask of every field, (4, fields)."""
    both, own, real, weight = fields
    floor = _FLOOR * float((real * weight).sum() / weight.sum())
    # nothing in a whole plane of the target: what is there in the prediction is wrong
    ratio = (2 * both + floor) / (own + real + floor).clamp_min(torch.finfo(torch.double).tiny)
    distance = torch.where(own + real > 0, 1 - ratio, torch.zeros_like(ratio))
    return float((distance * weight).sum() / weight.sum())
