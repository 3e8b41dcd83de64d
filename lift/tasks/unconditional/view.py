"""The field of view of new volumes: slices, their distance, and what is shown of a slice.

Along the slices a body goes on with its border (`lift.tasks.unconditional.sampling.slice_places`).
Within slices pixels are cut off, or added with the background's level, 0, about the middle; nothing
is resampled.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lift.config.decoder import DecoderConfig
from lift.config.plan import UnconditionalPlan
from lift.errors import ConfigError

Floats = NDArray[np.float32]
SLICES: Final = (2, 2048)
"""Fewest and most slices of a volume."""
SPACING_MM: Final = (0.05, 50.0)
"""Least and largest distance of slices."""
_PIXELS: Final = (1, 4096)
_SAME: Final = 1e-3
_BACKGROUND: Final = 0.0


@dataclass(frozen=True)
class Wanted:
    """The requested view. None: not given.

    Attributes:
        slices: of a volume.
        slice_spacing_mm: their distance.
        field_of_view_mm: along the slices; or along them, then the slices' height and width.
    """

    slices: int | None = None
    slice_spacing_mm: float | None = None
    field_of_view_mm: tuple[float, ...] | None = None


@dataclass(frozen=True)
class View:
    """What a volume shows.

    Attributes:
        slices: of the volume.
        slice_spacing_mm: their distance.
        rows: of a slice.
        columns: of a slice.
        pixel_mm: side of a pixel.
    """

    slices: int
    slice_spacing_mm: float
    rows: int
    columns: int
    pixel_mm: float

    @property
    def field_of_view_mm(self) -> tuple[float, float, float]:
        """Along the slices, height and width: numbers times distances."""
        return (
            self.slices * self.slice_spacing_mm,
            self.rows * self.pixel_mm,
            self.columns * self.pixel_mm,
        )

    def shown(self, slices: Floats) -> Floats:
        """Slices (n, h, w) cut, or continued with background, to (n, rows, columns)."""
        found = slices
        for axis, side in ((1, self.rows), (2, self.columns)):
            have = found.shape[axis]
            first = (have - side) // 2
            kept = np.take(found, range(max(0, first), min(have, first + side)), axis=axis)
            around = [(0, 0)] * 3
            around[axis] = (max(0, -first), side - kept.shape[axis] - max(0, -first))
            found = np.pad(kept, around, constant_values=_BACKGROUND)
        return found

    def moved_mm(self, image: tuple[int, int]) -> tuple[float, float]:
        """How far the middle lies from that of the decoder's image, along height and width.

        Half a pixel where an odd number of pixels was cut off or added; so every pixel stays where
        it was.
        """
        rows, columns = (
            ((have - side) // 2 + (side - have) / 2) * self.pixel_mm
            for have, side in zip(image, (self.rows, self.columns), strict=True)
        )
        return rows, columns


def parse_field_of_view(text: str) -> tuple[float, ...]:
    """`MM` or `MMxMMxMM` as one or three positive numbers.

    Raises:
        ConfigError: it is neither.
    """
    words = re.split("[xX]", text)
    try:
        sides = tuple(float(word) for word in words)
    except ValueError:
        sides = ()
    if len(sides) not in (1, 3) or not all(math.isfinite(side) and side > 0 for side in sides):
        raise ConfigError(
            "cannot read the field of view",
            where="--field-of-view",
            seen=f"{text!r}; needed: one length in mm, or three as in 120x192x160",
            remedy="Nothing was written. Give the length along the slices, or that, height and "
            "width.",
        )
    return sides


def view_of(wanted: Wanted, plan: UnconditionalPlan, decoder: DecoderConfig) -> View:
    """The view that is asked for; any two of slices, distance and length give the third.

    Without a length it is the plan's, but for a given distance, which keeps the plan's number of
    slices. With a length alone the distance is the plan's. With a length and a distance there are
    as many slices as come nearest to the length.

    Raises:
        ConfigError: the three contradict each other, or a number is beyond its bounds.
    """
    count, spacing = wanted.slices, wanted.slice_spacing_mm
    sides = wanted.field_of_view_mm
    if sides is None:
        count = plan.slices if count is None else count
        spacing = plan.slices * plan.slice_spacing_mm / count if spacing is None else spacing
    elif count is None:
        spacing = plan.slice_spacing_mm if spacing is None else spacing
        count = round(sides[0] / spacing)
    elif spacing is None:
        spacing = sides[0] / count
    elif abs(count * spacing - sides[0]) > _SAME * sides[0]:
        raise ConfigError(
            "slices, spacing and field of view contradict each other",
            where="--slices, --spacing, --field-of-view",
            seen=f"{count} slices of {spacing:g} mm are {count * spacing:g} mm; "
            f"the field of view is {sides[0]:g} mm",
            remedy="Nothing was written. Leave one of the three out: it follows from the others.",
        )
    _check("slices", count, SLICES)
    _check("mm between slices", spacing, SPACING_MM)
    rows, columns = decoder.image
    if sides is not None and len(sides) > 1:
        rows, columns = (round(side / decoder.pixel_mm) for side in sides[1:])
        _check("rows", rows, _PIXELS)
        _check("columns", columns, _PIXELS)
    return View(count, spacing, rows, columns, decoder.pixel_mm)


def _check(what: str, value: float, bounds: tuple[float, float]) -> None:
    least, most = bounds
    if not least <= value <= most:
        raise ConfigError(
            "new volumes cannot have this field of view",
            where="--slices, --spacing, --field-of-view",
            seen=f"{value:g} {what}; possible: {least:g} to {most:g}",
            remedy="Nothing was written. Change one of them.",
        )
