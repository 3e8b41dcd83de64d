"""The data card: what a site's cohort looks like, in rounded counts of closed lists of values.

A card holds no text of any header: words are those of this module, numbers are rounded here. A
count is of persons, rounded **down** to a multiple of the floor that the site sets, and a value
that fewer persons than the floor have does not appear at all.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from lift.config.base import VERSION, Settings
from lift.config.plan import Name

Vendor = Literal[
    "siemens", "ge", "philips", "canon", "fujifilm", "hitachi", "united_imaging", "other"
]
Modality = Literal["MR", "CT"]
Persons = Annotated[int, Field(ge=0, le=10**6)]
MOST_VALUES: Final = 64
"""Different values in one histogram."""
_WORDS: Final[tuple[tuple[str, Vendor], ...]] = (
    ("siemens", "siemens"),
    ("ge", "ge"),
    ("general electric", "ge"),
    ("philips", "philips"),
    ("canon", "canon"),
    ("toshiba", "canon"),
    ("fujifilm", "fujifilm"),
    ("hitachi", "hitachi"),
    ("united imaging", "united_imaging"),
    ("uih", "united_imaging"),
)


class VendorCount(Settings):
    """How many persons have a volume of one maker's scanner."""

    vendor: Vendor
    persons: Persons


class ValueCount(Settings):
    """How many persons have a volume with one rounded value."""

    value: float = Field(ge=0, le=10_000)
    persons: Persons


Histogram = Annotated[tuple[ValueCount, ...], Field(max_length=MOST_VALUES)]


class ChannelCard(Settings):
    """One channel of the task at one site."""

    channel: Name
    modality: Modality
    persons: Persons
    """With a volume of this channel that can be read."""
    vendors: Annotated[tuple[VendorCount, ...], Field(max_length=8)] = ()
    """Where a file or its BIDS sidecar says so."""
    field_strengths_t: Histogram = ()
    """Tesla, to 0.5; where a file or its BIDS sidecar says so."""
    slice_spacings_mm: Histogram = ()
    """Of the stored grid, across the slices, to 0.5 mm."""
    acquired_spacings_mm: Histogram = ()
    """Of the slices as they were acquired, to 0.5 mm: larger than stored means interpolated."""
    pixel_spacings_mm: Histogram = ()
    """Of the stored grid, in the slice plane, to 0.25 mm."""
    slices: Histogram = ()
    """To a multiple of 16."""
    matrix: Histogram = ()
    """Larger side of a slice, to a multiple of 32 pixels."""


class DataCard(Settings):
    """What one site reports about its cohort, if it chooses to."""

    format_version: Annotated[Literal[1], VERSION] = 1
    site: Name
    made: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    """Day of the last check of the volumes, UTC."""
    floor: int = Field(ge=2, le=1000)
    """Every count is rounded down to a multiple of this. Smaller counts do not appear."""
    persons: Persons
    usable: Persons
    """With a volume set that was not vetoed."""
    warned: Persons
    """Of these: with a warning."""
    vetoed: Persons
    """Without any such set."""
    train: Persons
    """In this part of the default split: usable persons, here and below."""
    validation: Persons
    test: Persons
    channels: Annotated[tuple[ChannelCard, ...], Field(max_length=9)]

    @model_validator(mode="after")
    def _is_rounded(self) -> Self:
        counts = [self.persons, self.usable, self.warned, self.vetoed]
        counts += [self.train, self.validation, self.test]
        for channel in self.channels:
            counts.append(channel.persons)
            counts += [cell.persons for cell in channel.vendors]
            for _, histogram in histograms(channel):
                counts += [cell.persons for cell in histogram]
        if any(count % self.floor for count in counts):
            raise ValueError(f"every count must be a multiple of the floor, {self.floor}")
        return self


def histograms(channel: ChannelCard) -> tuple[tuple[str, tuple[ValueCount, ...]], ...]:
    """Names, for a reader, and content of a channel's histograms of numbers."""
    return (
        ("field strength (T)", channel.field_strengths_t),
        ("slice spacing, stored (mm)", channel.slice_spacings_mm),
        ("slice spacing, acquired (mm)", channel.acquired_spacings_mm),
        ("pixel spacing (mm)", channel.pixel_spacings_mm),
        ("slices", channel.slices),
        ("matrix (pixels)", channel.matrix),
    )


def vendor_of(text: str) -> Vendor | None:
    """The maker that a header's free text names, as a word of the closed list; None: no text."""
    said = " ".join(re.findall(r"[a-z]+", text.lower()))
    if not said:
        return None
    for word, vendor in _WORDS:
        if re.search(rf"\b{word}\b", said):
            return vendor
    return "other"
