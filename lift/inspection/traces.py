"""Detect duplicate volumes, and text burnt into the pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lift.inspection.finding import Finding, finding

Box = tuple[slice, slice]
Name = tuple[str, str]
"""Patient and channel."""

LEAST_REPEATS: Final = 0.5
"""Share of the slices that show one and the same outline pattern: noise and anatomy change from
slice to slice, an overlay does not."""

FEWEST_REPEATS: Final = 4
"""Slices: with fewer, chance repeats too."""

FEWEST_MARKS: Final = 3
"""Separate patterns: one bright block is a marker, a letter needs company."""

FEWEST_PIXELS: Final = 30
"""Of all marks together, in one slice."""

LEAST_BRIGHTNESS: Final = 0.5
"""Of the 99th percentile of the body, over air: overlays are drawn near white."""

LEAST_EDGE: Final = 0.35
"""Of the same, from a mark's pixel to the darkest within two pixels: strokes end at once, blurred
things (ghosts, cushions) do not."""

MOST_SIDE: Final = 0.25
"""Of the picture: a longer mark is a table or a frame."""

_REACH: Final = 5
_COUNTED: Final = 1 << 20


@dataclass(frozen=True)
class Overlay:
    """Patterns that look like burnt-in text.

    Attributes:
        finding: verdict and words.
        marks: separate patterns outside the body.
        repeats: share of the slices that show them alike.
    """

    finding: Finding
    marks: int
    repeats: float


def content_digest(voxels: NDArray[Any]) -> str:
    """A SHA-256 of what is shown, whatever the number format, scale or order of storage.

    Values count by their rank, in float32: volumes whose values differ by type, slope and
    offset, or by any curve that keeps their order, have one digest. So have volumes stored with
    flipped or swapped axes: a left-right mirrored copy is the same patient. Volumes that lost
    values in between (stored in 8 bits, cropped, resampled) have another one.

    Raises:
        ValueError: empty, or values that are not finite.
    """
    values = np.asarray(voxels).astype(np.float32)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("a digest needs finite voxels")
    ranks = _ranks(values)
    keys = []
    for axis in range(ranks.ndim):
        profile = ranks.sum(
            tuple(i for i in range(ranks.ndim) if i != axis), dtype=np.int64
        ).tolist()
        # the direction in which the sums of the slices come first in the alphabet
        if profile[::-1] < profile:
            ranks, profile = np.flip(ranks, axis), profile[::-1]
        keys.append((len(profile), profile, axis))
    ranks = np.ascontiguousarray(np.transpose(ranks, [axis for _, _, axis in sorted(keys)]))
    return hashlib.sha256(repr(ranks.shape).encode() + ranks.tobytes()).hexdigest()


def _ranks(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """The place of each voxel's value among the distinct ones, from 0."""
    low, high = float(values.min()), float(values.max())
    if high - low < _COUNTED:
        whole = values.astype(np.int32)
        if np.array_equal(whole, values):
            # a table instead of sorting: most files hold 12 bits
            whole -= np.int32(low)
            present = np.bincount(whole.ravel()) > 0
            return np.asarray((np.cumsum(present, dtype=np.int32) - 1)[whole], dtype=np.int32)
    ranks = np.unique(values, return_inverse=True)[1]
    return np.asarray(ranks.reshape(values.shape), dtype=np.int32)


def check_duplicates(
    digests: Mapping[Name, str], parts: Mapping[str, str] | None = None
) -> dict[Name, Finding]:
    """A veto for every volume whose voxels are there under another name too; the others: nothing.

    Args:
        digests: (patient, channel) -> its :func:`content_digest`.
        parts: patient -> its part of the split: the words say when a duplicate joins two parts.
    """
    owners: dict[str, list[Name]] = {}
    for name, digest in sorted(digests.items()):
        owners.setdefault(digest, []).append(name)
    found = {}
    for names in owners.values():
        if len(names) < 2:
            continue
        seen = "the same voxels under several names: " + ", ".join("/".join(one) for one in names)
        joined = {(parts or {}).get(patient, "") for patient, _ in names}
        words = finding(
            "duplicates",
            "veto",
            seen + ("; in several parts of the split" if len(joined) > 1 else ""),
            "every volume once",
            "Keep one and take the others out: a patient counts once, and must not be trained on "
            "and tested with; a channel copied onto another teaches nothing.",
        )
        found.update(dict.fromkeys(names, words))
    return found


def burnt_in_text(voxels: NDArray[Any], mask: NDArray[Any], *, axis: int = 2) -> Overlay:
    """Whether bright, sharp, small patterns outside the body stay alike from slice to slice.

    A suspicion, not a reading of text: text over the body, and text that changes in every
    slice, is not found.

    Args:
        voxels: (x, y, z), finite.
        mask: non-zero in the body.
        axis: the axis across the slices.

    Raises:
        ValueError: the shapes differ or are not 3D.
    """
    if voxels.ndim != 3 or mask.shape != voxels.shape:
        raise ValueError("voxels and mask must be 3D and of one shape")
    stack = np.moveaxis(np.asarray(voxels, dtype=np.float32), axis, 0)
    body = np.moveaxis(mask != 0, axis, 0)
    if not body.any() or body.all():
        return _overlay(0, 0.0)
    air = float(np.median(stack[~body]))
    white = float(np.percentile(stack[body], 99))
    # three pixels off the body: its own edge is bright and sharp too
    near = ndimage.binary_dilation(body.any(0), iterations=3)
    bright = (stack > air + LEAST_BRIGHTNESS * (white - air)) & ~near
    often = bright.mean(0)
    steady = often >= max(LEAST_REPEATS, FEWEST_REPEATS / len(stack))
    mean = stack.mean(0)
    steady &= mean - ndimage.minimum_filter(mean, _REACH) >= LEAST_EDGE * (white - air)
    labels, count = ndimage.label(steady, structure=np.ones((3, 3)))
    boxes: list[Box] = [
        (rows, columns)
        for rows, columns in ndimage.find_objects(labels, count)
        if max(side.stop - side.start for side in (rows, columns)) <= MOST_SIDE * max(steady.shape)
    ]
    lined = _longest_line(boxes)
    pixels = sum(int(steady[box].sum()) for box in lined)
    if len(lined) < FEWEST_MARKS or pixels < FEWEST_PIXELS:
        return _overlay(0, 0.0)
    return _overlay(len(lined), float(np.mean([often[box][steady[box]].mean() for box in lined])))


def _longest_line(boxes: list[Box]) -> list[Box]:
    """The most boxes that lie in one row, or in one column, of the picture."""
    best: list[Box] = []
    for side in range(2):
        for one in boxes:
            middle = (one[side].start + one[side].stop - 1) / 2
            lined = [box for box in boxes if box[side].start <= middle < box[side].stop]
            best = max(best, lined, key=len)
    return best


def _overlay(marks: int, repeats: float) -> Overlay:
    seen = (
        f"{marks} small sharp marks in one line outside the body, alike in {repeats:.0%} of the "
        "slices"
        if marks
        else "no such marks"
    )
    words = finding(
        "burnt-in text",
        "warn" if marks else "use",
        seen,
        "no text in the pixels",
        "Look at the corners of the slices: names or dates there must not leave the hospital.",
    )
    return Overlay(words, marks, repeats)
