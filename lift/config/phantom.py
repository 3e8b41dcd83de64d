"""Settings of the phantom cohort: its scanners and its size. Nothing of it is a patient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from lift.config.base import Settings

PHANTOM_MARK: Final = "PHANTOM.json"
"""The file that says of all volumes beside and below it that they are phantoms."""
MR_CHANNELS: Final = ("t1n", "t1c", "t2w", "t2f")


def lies_among_phantoms(folder: Path) -> bool:
    """Whether `PHANTOM.json` lies in the folder, or in one above it."""
    whole = folder.absolute()
    return any((place / PHANTOM_MARK).is_file() for place in (whole, *whole.parents))


Milliseconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class SequenceConfig(Settings):
    """Timing of one MR sequence, in ms; `ti_ms` makes it an inversion recovery."""

    tr_ms: Milliseconds
    """Repetition time, ms."""
    te_ms: Milliseconds
    """Echo time, ms."""
    ti_ms: Milliseconds | None = None
    """Inversion time, ms; null: no inversion."""


class ScannerConfig(Settings):
    """One phantom scanner.

    Relaxation times and equations are those of `lift.cohort.phantom.physics`, from the
    literature. The rates of slice corruption are not: no published rate was at hand, and the
    values of method 6.2's prototypes were taken, before any result was seen.
    """

    field_t: float
    """Field strength, tesla: 1.5 or 3, for which relaxation times are known."""
    t1: SequenceConfig
    """Spin echo before and after contrast (t1n, t1c)."""
    t2: SequenceConfig
    """Timing of the T2-weighted sequence."""
    flair: SequenceConfig
    """Timing of the FLAIR sequence."""
    slice_spacing_mm: float = Field(gt=0, le=10)
    """Through-plane spacing of the delivered grid."""
    flair_thickness_mm: float = Field(gt=0, le=12)
    """Acquired thickness of the FLAIR; where it is not the grid's it is interpolated."""
    bias: float = Field(ge=0, lt=1)
    """Amplitude of the coil's intensity field, as a share of the signal."""
    snr: float = Field(gt=0)
    """White matter signal over the noise of one channel of the complex signal."""
    slice_gain_sd: float = Field(ge=0, lt=0.5)
    """Spread of the gain of single source slices (odd and even slices differ systematically)."""
    lost_slice_rate: Share
    """Share of source slices that keep only 10 to 30% of their signal."""
    slice_noise: float = Field(ge=0, lt=1)
    """Spread of extra noise of single source slices, as a share of white matter."""
    target_slice_gain_sd: float = Field(default=0.01, ge=0, lt=0.5)
    """Slice gain of the target: a series that passed quality control has no lost slice."""
    orientation: Literal["RAS", "LPS", "PSR"] = "RAS"
    """Directions of the stored axes."""
    timing_jitter: float = Field(default=0.03, ge=0, lt=0.5)
    """Spread of TR, TE and TI from patient to patient, as a share."""

    @field_validator("field_t")
    @classmethod
    def _known_field(cls, value: float) -> float:
        if value not in (1.5, 3.0):
            raise ValueError("must be 1.5 or 3")
        return value


def _sequence(tr: float, te: float, ti: float | None = None) -> SequenceConfig:
    return SequenceConfig(tr_ms=tr, te_ms=te, ti_ms=ti)


SCANNERS: Final[dict[str, ScannerConfig]] = {
    "north": ScannerConfig(
        field_t=3.0,
        t1=_sequence(600, 10),
        t2=_sequence(5000, 90),
        flair=_sequence(9000, 120, 2480),
        slice_spacing_mm=3.0,
        flair_thickness_mm=3.0,
        bias=0.20,
        snr=35,
        slice_gain_sd=0.08,
        lost_slice_rate=0.08,
        slice_noise=0.02,
    ),
    "harbour": ScannerConfig(
        field_t=1.5,
        t1=_sequence(500, 14),
        t2=_sequence(4000, 100),
        flair=_sequence(8000, 110, 2360),
        slice_spacing_mm=4.0,
        flair_thickness_mm=5.0,
        bias=0.12,
        snr=25,
        slice_gain_sd=0.10,
        lost_slice_rate=0.10,
        slice_noise=0.03,
        orientation="LPS",
    ),
    "valley": ScannerConfig(
        field_t=3.0,
        t1=_sequence(450, 8),
        t2=_sequence(6000, 110),
        flair=_sequence(10000, 140, 2560),
        slice_spacing_mm=5.0,
        flair_thickness_mm=5.0,
        bias=0.28,
        snr=20,
        slice_gain_sd=0.12,
        lost_slice_rate=0.14,
        slice_noise=0.04,
        orientation="PSR",
    ),
}
"""The three scanners of demo-artefacts."""

PUBLIC: Final = "public"
"""Each patient on a scanner of its own, drawn from ranges that span all of `SCANNERS`."""


class PhantomCohortConfig(Settings):
    """A cohort of phantoms, written as NIfTI files."""

    layout: Literal["phantom"] = "phantom"
    """Chooses this layout."""
    patients: int = Field(ge=1, le=10_000)
    """Number of phantoms."""
    scanner: Literal["north", "harbour", "valley", "public"] | ScannerConfig
    """A scanner that ships, `public` (each phantom on a scanner of its own), or one described
    here."""
    seed: int = Field(ge=0)
    """Seed of the cohort: another seed gives other phantoms."""
    skull_strip: bool | Literal["half"] = True
    """True: 0 outside the brain, as BraTS; False: the whole head; half: every second patient."""
    corruption: bool = True
    """Slice gain, lost slices and slice noise; False gives the phantom without ambiguity."""
    in_plane_mm: float = Field(default=2.0, ge=1.0, le=4.0)
    """In-plane spacing, mm."""
    channels: tuple[Literal["t1n", "t1c", "t2w", "t2f", "mr", "ct"], ...] = MR_CHANNELS
    """MR contrasts (BraTS layout), or mr and ct of the whole head (SynthRAD layout)."""
    target: Literal["t1n", "t1c", "t2w", "t2f", "ct"] = "t2f"
    """The channel that passed quality control: without lost slices."""

    @model_validator(mode="after")
    def _one_layout(self) -> Self:
        head = {"mr", "ct"}
        if set(self.channels) & head and set(self.channels) != head:
            raise ValueError("channels are either mr and ct, or MR contrasts")
        return self
