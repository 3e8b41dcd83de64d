"""Test whether two channels show the same patient at the same position.

On one grid the header cannot tell: a copy that was shifted, mirrored or taken from another
patient has the same shape and affine. Mutual information can: of a true pair it is higher than
of the same pair with one volume shifted or mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lift.inspection.finding import Finding, Verdict, finding

Bools = NDArray[np.bool_]
Levels = NDArray[np.uint8]
Index = tuple[slice, slice, slice]

SHIFTS_MM: Final = (2.0, 4.0, 8.0)
"""Tried along each axis in both directions; at least one voxel."""

SHIFT_VETO: Final = 0.05
"""A moved copy that fits this much better, as a share: of true pairs the best moved copy fitted
20% worse or more, of pairs moved by 3 mm up to 300% better."""

SHIFT_WARNING: Final = -0.1
"""From here on the pair is doubtful: less than half of a tried step, or turned by 5 degrees."""

MIRROR_VETO: Final = 0.5
"""A mirrored copy that fits this much better: of swapped pairs 120% to 1500%, of true ones 50% to
90% worse."""

MIRROR_LEAD: Final = 1.5
"""How many times the fit of the best moved copy a mirrored one must reach to be named: another
patient's volume fits about as badly both ways."""

LEAST_GAIN: Final = 0.6
"""How much better than its mirror image and its 8 mm shifts a pair must fit, as a share: true
pairs 1.3 to 14, two patients in one space at most 0.4."""

GAIN_WARNING: Final = 1.0
"""Below it the pair is doubtful: turned, or very noisy."""

LEAST_OVERLAP: Final = 0.7
"""Dice coefficient of the body masks; a sequence that covers fewer slices still reaches it."""

FEWEST_VOXELS: Final = 2000
"""Mutual information of fewer voxels, in 32 x 32 bins, is chance."""

_REGISTER: Final = (
    "Register the second channel to the first, and look at both side by side before using them."
)
_BINS: Final = 32
_FEWEST_SLICE_VOXELS: Final = 50
_MOST_VOXELS: Final = 150_000


@dataclass(frozen=True)
class Pairing:
    """How well two channels fit together.

    Attributes:
        finding: verdict and words.
        overlap: Dice coefficient of the masks.
        information: mutual information as they are, nats.
        best_shift_mm: shift of the second volume that fits best, along x, y and z.
        shift_gain: mutual information at the best shift over that without, minus 1.
        mirror_gain: the same for the mirrored copy.
        gain: `information` over the mean at 8 mm and of the mirrored copy, minus 1.
    """

    finding: Finding
    overlap: float
    information: float
    best_shift_mm: tuple[float, float, float]
    shift_gain: float
    mirror_gain: float
    gain: float


def pairing(
    a: NDArray[Any],
    b: NDArray[Any],
    mask_a: NDArray[Any],
    mask_b: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    *,
    axis: int = 2,
) -> Pairing:
    """Whether `b` lies on `a`, by overlap and mutual information.

    Args:
        a: (x, y, z), RAS+, finite.
        b: another channel on the same grid.
        mask_a: non-zero in the body, of `a`.
        mask_b: the same of `b`.
        spacing_mm: voxel size.
        axis: the axis across the slices.

    Raises:
        ValueError: the shapes differ or are not 3D.
    """
    if a.ndim != 3 or not a.shape == b.shape == mask_a.shape == mask_b.shape:
        raise ValueError("both volumes and masks must be 3D and of one shape")
    one, other = mask_a != 0, mask_b != 0
    size = int(one.sum()) + int(other.sum())
    overlap = 2.0 * float((one & other).sum()) / size if size else 0.0
    where = one | other
    if int(where.sum()) < FEWEST_VOXELS or not (one.any() and other.any()):
        return _judged(overlap, None, {}, 0.0, spacing_mm)
    levels_a, levels_b = _levels(a, one, axis), _levels(b, other, axis)
    places = np.argwhere(where)
    places = places[:: -(-len(places) // _MOST_VOXELS)]
    values = levels_a[tuple(places.T)]

    def information(volume: Levels, offset: NDArray[np.int64]) -> float:
        moved = places + offset
        # beyond the border the nearest voxel stands in: the set of voxels stays one
        moved = np.clip(moved, 0, np.array(volume.shape) - 1)
        return _information(values, volume[tuple(moved.T)])

    still = information(levels_b, np.zeros(3, dtype=np.int64))
    shifted: dict[tuple[int, int, int], float] = {}
    # one body moved onto the other: far shifts
    centred = _middle(other) - _middle(one)
    if np.abs(centred).max() >= 1:
        offset = np.rint(centred).astype(np.int64)
        shifted[int(offset[0]), int(offset[1]), int(offset[2])] = information(levels_b, offset)
    for along in range(3):
        for length in SHIFTS_MM:
            for sign in (-1, 1):
                offset = np.zeros(3, dtype=np.int64)
                offset[along] = sign * max(1, round(length / spacing_mm[along]))
                key = (int(offset[0]), int(offset[1]), int(offset[2]))
                if key not in shifted:
                    shifted[key] = information(levels_b, offset)
    # mirrored onto the other body, not at the grid's middle
    mirrored = -np.inf
    middles = float((_middle(one) + _middle(other))[0])
    for nudge in (-1, 0, 1):
        offset = np.array([round(a.shape[0] - 1 - middles) + nudge, 0, 0], dtype=np.int64)
        mirrored = max(mirrored, information(levels_b[::-1], offset))
    return _judged(overlap, still, shifted, mirrored, spacing_mm)


def _middle(inside: Bools) -> NDArray[np.float64]:
    """The body's centre of mass, in voxels: specks of noise far from it hardly move it."""
    middle = []
    for axis, size in enumerate(inside.shape):
        counts = inside.sum(tuple(i for i in range(3) if i != axis))
        middle.append(float(counts @ np.arange(size)) / float(counts.sum()))
    return np.array(middle, dtype=np.float64)


def _levels(volume: NDArray[Any], where: Bools, axis: int) -> Levels:
    """Bins between the 1st and 99th percentile inside, slice by slice.

    By slice, because slices that lost their signal in both channels would otherwise be the best
    of landmarks: the copy that lays one of them on another would win.
    """
    # slice by slice in memory: half of the time
    stack = np.ascontiguousarray(np.moveaxis(volume, axis, 0))
    within = np.ascontiguousarray(np.moveaxis(where, axis, 0))
    levels = np.empty(stack.shape, dtype=np.uint8)
    whole = np.percentile(volume[where], (1, 99))
    for values, inside, into in zip(stack, within, levels, strict=True):
        many = np.count_nonzero(inside) >= _FEWEST_SLICE_VOXELS
        low, high = np.percentile(values[inside], (1, 99)) if many else whole
        step = float(high - low) / (_BINS - 1) or 1.0
        scaled = values.astype(np.float32)
        scaled -= np.float32(low)
        scaled /= np.float32(step)
        np.rint(scaled, out=scaled)
        into[...] = np.clip(scaled, 0, _BINS - 1, out=scaled)
    return np.moveaxis(levels, 0, axis)


def _information(one: Levels, other: Levels) -> float:
    """Mutual information of two sets of bins, in nats."""
    pairs = one.astype(np.int32) * _BINS + other
    counts = np.bincount(pairs, minlength=_BINS * _BINS).reshape(_BINS, _BINS)
    joint = counts / counts.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / expected[seen])).sum())


def _judged(
    overlap: float,
    still: float | None,
    shifted: dict[tuple[int, int, int], float],
    mirrored: float,
    spacing_mm: tuple[float, float, float],
) -> Pairing:
    if still is None or still <= 0:
        words = finding(
            "pairing",
            "warn",
            f"overlap {overlap:.2f}; too few voxels, or a constant channel, to compare contents",
            f"{FEWEST_VOXELS} voxels with contents",
            "Look at both channels side by side.",
        )
        return Pairing(words, overlap, 0.0, (0.0, 0.0, 0.0), 0.0, 0.0, 0.0)
    best = max(shifted, key=lambda key: shifted[key])
    shift_gain, mirror_gain = shifted[best] / still - 1, mirrored / still - 1
    x, y, z = (float(step * size) for step, size in zip(best, spacing_mm, strict=True))
    far = [value for key, value in shifted.items() if _is_farthest(key, spacing_mm)]
    gain = still / float(np.mean([*far, mirrored])) - 1
    seen = f"overlap {overlap:.2f}; fits {gain:.0%} better than moved or mirrored"
    moved = f"moved by ({x:.0f}, {y:.0f}, {z:.0f}) mm it fits {shift_gain:+.0%}"
    one_patient = "Check that both channels are of one patient and examination, and register them."
    verdict: Verdict = "veto"
    remedy = one_patient
    if mirror_gain > MIRROR_VETO and 1 + mirror_gain > MIRROR_LEAD * (1 + shift_gain):
        seen = f"a left-right mirrored copy fits {mirror_gain:.0%} better"
        remedy = "Left and right are swapped in one channel: convert it again from the original."
    elif overlap < LEAST_OVERLAP:
        seen = f"the bodies overlap by {overlap:.2f}"
    elif shift_gain > SHIFT_VETO:
        seen, remedy = moved, _REGISTER
    elif gain >= LEAST_GAIN:
        verdict = "warn" if gain < GAIN_WARNING or shift_gain > SHIFT_WARNING else "use"
        seen = f"{seen}; {moved}" if shift_gain > SHIFT_WARNING else seen
        remedy = _REGISTER
    needed = (
        f"overlap of at least {LEAST_OVERLAP}, no better fit when moved or mirrored, and a fit "
        f"at least {LEAST_GAIN:.0%} better than moved by {SHIFTS_MM[-1]:g} mm or mirrored"
    )
    words = finding("pairing", verdict, seen, needed, remedy)
    return Pairing(words, overlap, still, (x, y, z), shift_gain, mirror_gain, gain)


def _is_farthest(key: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> bool:
    """Whether it is one of the six longest tried shifts."""
    axes = np.flatnonzero(key)
    longest = [max(1, round(SHIFTS_MM[-1] / size)) for size in spacing_mm]
    return len(axes) == 1 and abs(key[int(axes[0])]) == longest[int(axes[0])]
