"""Checks of one channel before it is used: values, field of view, grid, CT and MR units.

Each is a pure function of arrays and answers with one :class:`~lift.inspection.finding.Finding`.
Pairs, faces, duplicates and burnt-in text are in the modules beside this one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from lift.inspection.finding import Finding, Verdict, finding

LEAST_FOREGROUND: Final = 0.005
"""Share of the voxels; the smallest mask that `lift.cohort.preprocessing` takes."""

DOUBTFUL_FOREGROUND: Final = 0.03
"""A brain fills 10 to 30% of its usual field of view; far less is a wrong mask more often."""

MOST_FOREGROUND: Final = 0.95
"""Share of the voxels; the largest mask that `lift.cohort.preprocessing` takes."""

MOST_GREY_SPREAD: Final = 0.1
"""Quartile distance of a grey background, of the values' range; of tissue at the border of a tight
crop it is 0.3 to 0.5."""

BRIGHTEST_GREY: Final = 0.8
"""Of the same range: from here on the contrast is inverted, where air is among the brightest."""

DARKEST_GREY: Final = 0.1
"""Of the values' range: air of magnitude images lies at 0 to 0.02, with strong noise at 0.06; the
grey background of signed or offset images at 0.2 to 0.6."""

LEAST_EXTENT_MM: Final = 20.0
"""Of the body along each axis: less is a localiser or a stack with most of its slices lost."""

MOST_END_AREA: Final = 0.35
"""Area of the body in an end slice over its largest: a neck has 0.35 to 0.6, a whole vertex less
than 0.1."""

SPACING_MM: Final = (0.2, 10.0)
"""Voxel sizes of clinical CT and MR; outside it the unit is not mm or the header is empty."""

MOST_TILT_DEG: Final = 35.0
"""Of each axis against the nearest anatomical one: from 45 degrees its name is arbitrary."""

MOST_SHEAR_DEG: Final = 1.0
"""By which two axes may miss a right angle; gantry tilt has 5 to 25."""

AIR_HU: Final = (-1100.0, -850.0)
"""Air, with noise and beam hardening."""

LEAST_AIR: Final = 0.002
"""Share of air: around, or in, every body that is not cropped tightly."""

MOST_ABOVE_FLOOR: Final = 0.02
"""Of the values' range, from the lowest ones to what lies around the body: air is the floor."""

SOFT_TISSUE_HU: Final = (-150.0, 150.0)
"""Fat to enhanced tissue."""

LEAST_SOFT_TISSUE: Final = 0.02
"""Share of soft tissue in any body part."""

METAL_HU: Final = 2900.0
"""Above enamel and dense cortex, near the 3071 of a 12-bit scale."""

MOST_METAL: Final = 5e-4
"""Share: a filling in one tooth is below, an implant with its streaks above."""

PADDING_HU: Final = -1500.0
"""Below air there is nothing: scanners fill the corners outside their circle with it."""

FEWEST_LEVELS: Final = 32
"""Distinct values of an image: label maps have fewer, 8-bit images over 100."""

LEAST_LIKENESS: Final = 0.2
"""Correlation of neighbouring voxels: 0.7 and more in images with strong noise, 0 in noise."""

LEAST_BORDER: Final = 0.9
"""Share of the border that is bright in an inverted volume; a shoulder may reach into it."""

MOST_BORDER_SPREAD: Final = 0.2
"""Quartile distance of an inverted border over its height above the dark part: air is uniform,
tissue at the border of a tight crop is not."""

MOST_PLATEAU: Final = 0.6
"""Share of equal neighbours in bright regions: real volumes have 0.25 at most, label maps 0.7."""

DOUBTFUL_PLATEAU: Final = 0.4
"""Of thousands of tiny labels, and of images enlarged by repeating voxels."""

LEAST_JUMPS: Final = 0.004
"""Share of neighbours that differ by three quarters of the range: 0.001 in real volumes, 0.007 and
more where a phase wraps."""

LEAST_EVEN: Final = 0.3
"""The rarest eighth of the range over the mean one: a phase has all angles, an image few bright
voxels."""

_RANGE: Final = (0.1, 99.9)
_JUMP: Final = 0.75
_SAME_VALUE: Final = 1e-4

MOST_NEGATIVE: Final = 0.01
"""Share of MR voxels far below 0: a magnitude image has none, spline ringing a few."""

_NOISE_BOX: Final = 5


def check_foreground(mask: NDArray[Any]) -> Finding:
    """Whether the body is a believable part of the volume."""
    share = float(np.count_nonzero(mask)) / max(1, mask.size)
    verdict: Verdict = "use" if share >= DOUBTFUL_FOREGROUND else "warn"
    verdict = verdict if share >= LEAST_FOREGROUND else "veto"
    return finding(
        "foreground",
        verdict,
        f"{share:.2%} of the voxels are body",
        f"at least {LEAST_FOREGROUND:.1%}, usually more than {DOUBTFUL_FOREGROUND:.0%}",
        "Look at the volume: it may be empty, badly masked or almost all background.",
    )


def check_background(voxels: NDArray[Any], mask: NDArray[Any]) -> Finding:
    """Whether the background of an MR channel is dark, so that a body mask can tell it from tissue.

    Signed images (phase-sensitive inversion recovery), and images with an offset, have a grey one.
    Inverted images are those of :func:`check_mr`.

    Args:
        voxels: (x, y, z), finite.
        mask: non-zero in the body.
    """
    needed = f"a dark background, and a body that fills at most {MOST_FOREGROUND:.0%} of the volume"
    values = np.asarray(voxels, dtype=np.float32)
    share = float(np.count_nonzero(mask)) / max(1, mask.size)
    low, high = np.percentile(values, (0.5, 99.5))
    low = min(float(low), 0.0)
    # means of neighbours: signed noise averages out to the grey that it lies around
    sides = (_sides(ndimage.uniform_filter(values, _NOISE_BOX)) - low) / max(high - low, 1e-12)
    lower, level, upper = np.percentile(sides, (25, 50, 75))
    is_grey = level > DARKEST_GREY and upper - lower < MOST_GREY_SPREAD
    if is_grey and not _is_inverted(values):
        return finding(
            "background",
            "veto" if share > MOST_FOREGROUND else "warn",
            f"the background lies at {level:.0%} of the values' range, and a body mask covers "
            f"{share:.0%} of the volume",
            needed,
            "The image is signed or has an offset (phase-sensitive inversion recovery is such a "
            "sequence): export the magnitude image, or set what lies around the body to 0.",
        )
    return finding(
        "background",
        "warn" if share > MOST_FOREGROUND else "use",
        f"a body mask covers {share:.0%} of the volume",
        needed,
        "There is no background: the volume was cropped tightly, or its background is not dark. A "
        "plan whose mask is `body` cannot use it; one with masks in files can.",
    )


def check_field_of_view(
    mask: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    *,
    axis: int = 2,
    may_be_cut: tuple[bool, bool] = (True, False),
) -> Finding:
    """Whether the body is large enough, and not cut off by the first or last slice.

    Args:
        mask: (x, y, z), non-zero in the body.
        spacing_mm: voxel size.
        axis: the axis across the slices.
        may_be_cut: whether the body may go on beyond the first and the last slice: of a head
            (RAS+, the default) below, of a trunk at both ends.
    """
    inside = mask != 0
    needed = (
        f"a body of at least {LEAST_EXTENT_MM:g} mm whose end slices have at most "
        f"{MOST_END_AREA:.0%} of its largest area"
    )
    extents = []
    for one in range(3):
        places = np.flatnonzero(inside.any(tuple(i for i in range(3) if i != one)))
        extents.append(float((places[-1] - places[0] + 1) * spacing_mm[one]) if len(places) else 0)
    if min(extents) < LEAST_EXTENT_MM:
        seen = "the body measures {:.0f} x {:.0f} x {:.0f} mm".format(*extents)
        return finding("field of view", "veto", seen, needed, "Use a series with all its slices.")
    areas = inside.sum(tuple(i for i in range(3) if i != axis))
    ends = [float(areas[i]) / float(areas.max()) for i in (0, -1)]
    named = [
        f"the {name} slice holds {share:.0%}"
        for name, share, is_open in zip(("first", "last"), ends, may_be_cut, strict=True)
        if share > MOST_END_AREA and not is_open
    ]
    seen = " and ".join(named) + " of the largest area" if named else "the body ends inside"
    return finding(
        "field of view",
        "warn" if named else "use",
        seen,
        needed,
        "Anatomy is cut off there, or slices were lost: compare with the original series.",
    )


def check_grid(affine: NDArray[np.float64]) -> Finding:
    """Whether voxel size, tilt and angles are those of a scanner's grid.

    Args:
        affine: voxel -> mm, (4, 4), brought to RAS+ as `lift.volumes.volume` does.
    """
    needed = (
        f"voxels of {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm, tilted by at most "
        f"{MOST_TILT_DEG:g} degrees, axes at right angles"
    )
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    sizes = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(matrix).all() or sizes.min() < SPACING_MM[0] or sizes.max() > SPACING_MM[1]:
        seen = "voxels of {:.3g} x {:.3g} x {:.3g} mm".format(*sizes)
        return finding("grid", "veto", seen, needed, "Check the unit and convert it again.")
    axes = matrix / sizes
    # (0,1), (0,2), (1,2)
    crossed = [abs(float(axes[:, i] @ axes[:, j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    shear = float(np.rad2deg(np.arcsin(min(1.0, max(crossed)))))
    if shear > MOST_SHEAR_DEG:
        seen = f"two axes miss the right angle by {shear:.1f} degrees (gantry tilt)"
        return finding("grid", "veto", seen, needed, "Resample it to a grid with right angles.")
    tilt = float(np.rad2deg(np.arccos(np.clip(np.abs(np.diag(axes)).min(), 0, 1))))
    return finding(
        "grid",
        "use" if tilt <= MOST_TILT_DEG else "warn",
        f"tilted by {tilt:.0f} degrees",
        needed,
        "Check which way the slices lie; reorient or resample it along the patient's axes.",
    )


def check_ct(voxels: NDArray[Any]) -> Finding:
    """Whether the values are Hounsfield units.

    Args:
        voxels: any shape, finite; the whole volume with its air.
    """
    needed = "HU: air near -1000, soft tissue near 0, at most 3071"
    values = np.asarray(voxels, dtype=np.float32)

    def share(low: float, high: float) -> float:
        return float(np.count_nonzero((values >= low) & (values <= high))) / max(1, values.size)

    lowest, highest = float(values.min()), float(values.max())
    if lowest >= 0:
        eight_bit = highest <= 255
        seen = f"all values from {lowest:g} to {highest:g}, none below 0"
        remedy = (
            "It was windowed to 8 bits and its HU are lost: export the original series."
            if eight_bit
            else "The rescale intercept (often -1024) was not applied: convert it again."
        )
        return finding("CT values", "veto", seen, needed, remedy)
    soft, air = share(*SOFT_TISSUE_HU), share(*AIR_HU)
    if soft < LEAST_SOFT_TISSUE:
        seen = f"{soft:.1%} between {SOFT_TISSUE_HU[0]:g} and {SOFT_TISSUE_HU[1]:g}"
        remedy = "The scale is not HU: check slope and intercept, and convert it again."
        return finding("CT values", "veto", seen, needed, remedy)
    around = _floor(values) if air < LEAST_AIR else None
    if around is not None and around > PADDING_HU:
        seen = f"what lies around the body is at {around:.3g}"
        remedy = "The scale is not HU: check slope and intercept, and convert it again."
        return finding("CT values", "veto", seen, needed, remedy)
    notes, remedies = [], []
    if air < LEAST_AIR:
        notes.append(f"{air:.2%} air near -1000")
        remedies.append("Check slope and intercept, or that it was cropped on purpose.")
    padding = share(-np.inf, PADDING_HU)
    if padding > 0:
        notes.append(f"{padding:.1%} padding below {PADDING_HU:g}")
        remedies.append("Replace padding by -1000.")
    metal = share(METAL_HU, np.inf)
    if metal > MOST_METAL:
        notes.append(f"{metal:.2%} above {METAL_HU:g} (metal)")
        remedies.append("Look for implants and streaks; leave the patient out if they matter.")
    seen = "; ".join(notes) if notes else f"{air:.0%} air, {soft:.0%} soft tissue"
    return finding("CT values", "warn" if notes else "use", seen, needed, " ".join(remedies))


def check_mr(voxels: NDArray[Any]) -> Finding:
    """Whether the values are a magnitude image: no labels, no CT, dark air.

    Args:
        voxels: (x, y, z), finite.
    """
    needed = "a magnitude image: many levels, none far below 0, air darker than tissue"
    values = np.asarray(voxels)
    levels = len(np.unique(values[:: max(1, values.shape[0] // 64)]))
    if levels < FEWEST_LEVELS:
        levels = len(np.unique(values))
    if levels < FEWEST_LEVELS:
        seen = f"{levels} distinct values"
        remedy = "This is a mask or a label map: choose the image itself."
        return finding("MR values", "veto", seen, needed, remedy)
    plateau = _plateau(values)
    if plateau > DOUBTFUL_PLATEAU:
        seen = f"{plateau:.0%} of bright voxels are equal to their neighbours"
        remedy = (
            "This is a label map, or a mask: choose the image itself. An image that was enlarged "
            "without interpolation looks so too."
        )
        verdict: Verdict = "veto" if plateau > MOST_PLATEAU else "warn"
        return finding("MR values", verdict, seen, needed, remedy)
    if _wraps(values):
        seen = "the values fill their range evenly and jump from its one end to the other"
        remedy = "This is a phase image: choose the magnitude image."
        return finding("MR values", "veto", seen, needed, remedy)
    likeness = _likeness(values)
    if likeness < LEAST_LIKENESS:
        seen = f"neighbouring voxels have nothing in common (correlation {likeness:.2f})"
        remedy = "This is noise without an image, or its rows were mixed up: convert it again."
        return finding("MR values", "veto", seen, needed, remedy)
    if _is_inverted(values):
        seen = "the border is uniform and brighter than what it surrounds"
        remedy = "The contrast is inverted: export the original series."
        return finding("MR values", "veto", seen, needed, remedy)
    high = float(np.percentile(values, 99))
    below = float(np.count_nonzero(values < -0.05 * max(high, 1e-12))) / values.size
    return finding(
        "MR values",
        "warn" if below > MOST_NEGATIVE else "use",
        f"{levels} or more levels, {below:.1%} below 0",
        needed,
        "It is a difference, a phase image, z-scored, or a CT: check the channel's name.",
    )


def _floor(values: NDArray[np.float32]) -> float | None:
    """What a CT shows around the body, when that is uniform and the lowest of all.

    None where tissue reaches the sides, and for 0 alone: a background that somebody cut out.
    """
    low, high = np.percentile(values, (0.5, 99.5))
    lower, middle, upper = np.percentile(_sides(values), (25, 50, 75))
    most = low + MOST_ABOVE_FLOOR * (high - low)
    is_cut_out = lower == upper == 0
    return float(middle) if upper <= most and not is_cut_out else None


def _likeness(values: NDArray[Any]) -> float:
    """The largest correlation of voxels with their neighbours, of the three axes."""
    best = -1.0
    for axis in range(3):
        rows = np.moveaxis(values, axis, 0)[:, ::2, ::2].astype(np.float64)
        one, other = rows[:-1] - rows[:-1].mean(), rows[1:] - rows[1:].mean()
        norm = float(np.sqrt((one * one).sum() * (other * other).sum()))
        best = max(best, float((one * other).sum()) / norm if norm > 0 else 1.0)
    return best


def _background(values: NDArray[Any]) -> Any:
    """The value that the sides of the volume have most."""
    found, counts = np.unique(_sides(values), return_counts=True)
    return found[counts.argmax()]


def _plateau(values: NDArray[Any]) -> float:
    """The share of voxels above the mean that equal the next one, along the axis with the fewest.

    Labels are constant over whole regions, however many they are; an image has noise.
    """
    bright = (values > values.mean()) & (values != _background(values))
    low, high = np.percentile(values, _RANGE)
    same = _SAME_VALUE * float(high - low)
    shares = []
    for axis in range(3):
        rows, counted = np.moveaxis(values, axis, 0), np.moveaxis(bright, axis, 0)[:-1]
        steps = np.abs(np.subtract(rows[1:], rows[:-1], dtype=np.float32))
        shares.append(float(((steps <= same) & counted).sum()) / max(1, int(counted.sum())))
    return min(shares)


def _wraps(values: NDArray[Any]) -> bool:
    """Whether the values are angles: all about as frequent, and neighbours at both ends."""
    low, high = (float(end) for end in np.percentile(values, _RANGE))
    jumps, pairs = 0, 0
    for axis in range(3):
        rows = np.moveaxis(values, axis, 0)
        steps = np.abs(np.subtract(rows[1:], rows[:-1], dtype=np.float32))
        jumps += int(np.count_nonzero(steps > _JUMP * (high - low)))
        pairs += steps.size
    if jumps < LEAST_JUMPS * pairs or high <= low:
        return False
    counts, _ = np.histogram(values[values != _background(values)], bins=8, range=(low, high))
    return bool(counts.min() > LEAST_EVEN * counts.mean())


def _sides(values: NDArray[Any]) -> NDArray[np.float64]:
    """The voxels at the ends along x and y: at those along z the body may go on."""
    ends = [np.take(values, (0, -1), axis=axis).ravel() for axis in range(2)]
    return np.concatenate(ends).astype(np.float64)


def _is_inverted(values: NDArray[Any]) -> bool:
    """Whether nearly all of the volume's sides is among the brightest, as air would not be."""
    border = _sides(values)
    threshold = float(threshold_otsu(values))
    dark = float(values[values <= threshold].mean())
    low, middle, high = np.percentile(border, (25, 50, 75))
    uniform = high - low < MOST_BORDER_SPREAD * (middle - dark)
    lowest, highest = np.percentile(values, (0.5, 99.5))
    brightest = middle - lowest >= BRIGHTEST_GREY * (highest - lowest)
    return bool(np.mean(border > threshold) > LEAST_BORDER and uniform and brightest)
