"""Differences between slices, and the one way in which a volume is continued past its ends."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

SHIFTS: Final = (-3, -2, -1, 1, 2, 3)


def keep_inside(v: Tensor, mask: Tensor) -> Tensor:
    """`v` with an exact 0 wherever `mask` is 0, even if NaN stood there; shapes must broadcast."""
    return v.masked_fill(mask == 0, 0.0)


def z_differences(v: Tensor, mask: Tensor) -> Tensor:
    """D_k v[d] = v[d + k] - v[d] for every k in `SHIFTS`.

    A difference is 0 where slice d + k lies outside the volume or where either voxel lies
    outside the mask: the tap is dropped, the others are not rescaled. Values outside the mask
    have no influence. Differentiable with respect to `v`.

    Args:
        v: (b, z, c, h, w).
        mask: 0 or 1, (b, z, 1, h, w).

    Returns:
        (b, z, 6 * c, h, w), shift-major: channels `i * c` to `(i + 1) * c - 1` belong to
        `SHIFTS[i]`.

    Source: method 10.
    """
    result = v.new_empty((*v.shape[:2], len(SHIFTS) * v.shape[2], *v.shape[3:]))
    fill_differences(result, keep_inside(v, mask), mask)
    return result


def fill_differences(
    out: Tensor, v: Tensor, mask: Tensor, *, gain: float = 1.0, first: int = 0
) -> None:
    """Write `gain` times the differences of :func:`z_differences` into `out`, all of it.

    Args:
        out: (b, n, 6 * c, h, w), any strides: a part of a larger tensor saves a copy of it.
        v: (b, z, c, h, w), 0 outside the mask.
        mask: 0 or 1, (b, z, 1, h, w).
        gain: factor.
        first: slice of `v` that is the first of the n slices of `out`.
    """
    z, c = v.shape[1:3]
    n = out.shape[1]
    weight = mask if gain == 1.0 else gain * mask
    for index, shift in enumerate(SHIFTS):
        part = out[:, :, index * c : (index + 1) * c]
        low = min(n, max(0, -shift - first))
        high = max(low, min(n, z - shift - first))
        part[:, :low] = 0.0
        part[:, high:] = 0.0
        if low == high:
            continue
        here = slice(first + low, first + high)
        there = slice(here.start + shift, here.stop + shift)
        block = part[:, low:high]
        block.copy_(v[:, there])
        block.sub_(v[:, here])
        block.mul_(weight[:, here] * mask[:, there])


def replicate_depth(h: Tensor, depth: Tensor, reach: int) -> Tensor:
    """`h` continued by `reach` slices at both ends with each patient's own end slices.

    Written by hand instead of `padding_mode="replicate"`, which would continue a shorter
    patient's volume with its padding, and for which Opacus's per-patient gradients are wrong.

    Args:
        h: (b, c, z, h, w); slices from a patient's depth on are padding, and are overwritten.
        depth: valid slices of each patient, 1 to z, (b,), on the CPU.
        reach: slices added at either end, >= 0.

    Returns:
        (b, c, z + 2 * reach, h, w); slice d of `h` is slice d + reach of the result.
    """
    z = h.shape[2]
    valid = [int(n) for n in depth.tolist()]
    if all(n == z for n in valid):
        return _continued(h, reach, reach)
    return torch.cat(
        [_continued(h[row : row + 1, :, :n], reach, reach + z - n) for row, n in enumerate(valid)]
    )


def _continued(h: Tensor, before: int, after: int) -> Tensor:
    first = h[:, :, :1].expand(-1, -1, before, -1, -1)
    last = h[:, :, -1:].expand(-1, -1, after, -1, -1)
    return torch.cat([first, h, last], dim=2)
