"""The privacy plan: every number that decides a run's epsilon, frozen with the rest of the plan.

The unit is the patient and the neighbour relation is add or remove one patient, always; both
stand in the plan so that whoever reads an epsilon reads what it is of. Nothing here is private:
numbers of patients are the public ones that sites have agreed on, never a cohort's own.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lift.config.base import Settings

PrivacyMode = Literal["none", "patient-local", "patient-central", "stats-once", "site"]
Positive = Annotated[float, Field(gt=0)]
Delta = Annotated[float, Field(gt=0, le=0.01)]
PublicCount = Annotated[int, Field(ge=1, le=10**6)]
FEWEST_SITES: Final = 100
"""Below so many sites the mode `site` is refused: its noise drowns what the sites learn."""


class NoPrivacy(Settings):
    """Nobody adds noise: said in the log, the run record and the report."""

    mode: Literal["none"]
    """Chooses this mode."""


class _Patients(Settings):
    """What all patient-level modes share."""

    unit: Literal["patient"] = "patient"
    """Several volumes of a patient, and all slices of a volume, count together."""
    relation: Literal["add_remove"] = "add_remove"
    """Epsilon compares a cohort with the same cohort and one patient more or less."""
    accountant: Literal["pld"] = "pld"
    """How epsilon is computed: privacy loss distributions."""
    delta: Delta
    """One over ten times the public number of patients, rounded down to a power of ten."""
    public_patients: PublicCount | dict[str, PublicCount]
    """Agreed number of training patients of a site: one for all, or by site. It is what sums are
    divided by and what weighs a site; it need not be right, and it is never derived from a cohort
    without being told to everybody."""

    def patients_of(self, site: str) -> int:
        """The public number of training patients of `site`.

        Raises:
            KeyError: the plan gives numbers by site, and none for this one.
        """
        if isinstance(self.public_patients, int):
            return self.public_patients
        return self.public_patients[site]

    def names(self, site: str) -> bool:
        """Whether the plan has a public number for `site`."""
        return isinstance(self.public_patients, int) or site in self.public_patients


class StartRelease(Settings):
    """The z-filter's normal equations, clipped by patient and noised: where the mixer starts."""

    noise_multiplier: Positive
    """Standard deviation over `clip_norm`."""
    clip_norm: Positive
    """Bound on the joint length of one patient's equations, from public data."""


class GainRelease(Settings):
    """The mean gain of the finished mixer over no mixer, clipped by patient and noised, once."""

    noise_multiplier: Positive
    """Standard deviation over the joint sensitivity of the two numbers that a site sends."""
    clip_db: Positive = 2.0
    """Bound on one patient's gain in dB, from public data; what is above it counts as this much."""


class PatientGradients(_Patients):
    """DP-SGD over patients (Abadi et al. 2016, arXiv:1607.00133).

    `patient-local`: each site adds the full noise before anything leaves; nobody outside the
    hospital need be trusted. `patient-central`: sites send clipped sums and the server adds the
    noise once; the server is trusted, and each round is one step of all sites together.
    """

    mode: Literal["patient-local", "patient-central"]
    """Chooses who adds the noise: each site, or the server."""
    clip_norm: Positive
    """Bound on the joint length of one patient's gradient, from public data."""
    noise_multiplier: Positive
    """Standard deviation of the noise over `clip_norm`."""
    sampling_rate: float = Field(gt=0, le=1)
    """Probability with which each patient takes part in a step, independently of all others."""
    windows_per_volume: int = Field(default=2, ge=1, le=64)
    """Windows that a sampled patient gives from each volume; their losses are averaged first."""
    engine: Literal["loop", "hooks"] = "loop"
    """How gradients by patient are computed: one patient after the other, or by hooks on the
    layers. The numbers agree; the loop bears every mixer."""
    start: StartRelease | None = None
    """None: the mixer starts without the z-filter, and nothing is spent on it."""
    gain: GainRelease | None = None
    """With `patient-local`: what the mixer gains is released at the end, over validation patients,
    and paid for. None: nobody learns whether it helps, and `lift translate` always warns."""

    @model_validator(mode="after")
    def _noise_of_the_gain_is_the_sites(self) -> Self:
        if self.gain is not None and self.mode != "patient-local":
            raise ValueError(
                "the gain's noise is each site's, which trusts nobody: it needs privacy.mode "
                "`patient-local`"
            )
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # a key that came later: plans of before keep their digests
        data: dict[str, Any] = handler(self)
        if data.get("gain") is None:
            data.pop("gain", None)
        return data


class TrajectoryBounds(Settings):
    """What bounds a patient's moments of trajectories, and what they are shrunk toward: public."""

    clip: Positive = 1.25
    """Longest joint state of a volume at one position, in roots of its numbers: as latents have
    variance 1 over public slices, 1 is the length of a usual one."""
    tail_clip: Positive = 1.25
    """Likewise, of the latents that are not joint."""
    deviation_clip: Positive = 0.75
    """Where the bundle has public moments: longest deviation of a joint state from the public mean
    of its position, each number in public standard deviations, in roots of its numbers. It bounds
    what the means are made of; a short one costs less noise than it loses."""
    product_clip: Positive = 1.25
    """Likewise, of what products are made of: a short one would make the spread too small."""
    correlation_length: Positive = 0.2
    """Where there are no public moments and noise hides how neighbouring positions are tied: the
    distance, as a share of the body, over which latents keep 1/e of their deviation from the mean.
    """

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # without defaults that came later: plans of before keep their digests
        data: dict[str, Any] = handler(self)
        for name in ("deviation_clip", "product_clip"):
            if data[name] == type(self).model_fields[name].default:
                del data[name]
        return data


class StatisticsOnce(_Patients):
    """The statistics of an unconditional task, clipped by patient and noised, once for each data
    version: moments of trajectories, and the drifting statistics where there are rounds.

    All that follows is post-processing: rounds cost nothing.
    """

    mode: Literal["stats-once"]
    """Chooses this mode."""
    noise_multiplier: Positive
    """Standard deviation over the joint sensitivity of all that is sent."""
    trajectories: TrajectoryBounds = TrajectoryBounds()
    """Of a plan whose trajectory is gaussian."""

    def for_each_of(self, kinds: int) -> Self:
        """The section for each of some kinds of statistics that are sent together.

        They are one Gaussian mechanism with the plan's noise multiplier: each kind is taken in
        units of sqrt(kinds) times its own sensitivity, so one patient moves all by at most 1.
        """
        return self.model_copy(
            update={"noise_multiplier": self.noise_multiplier * math.sqrt(max(kinds, 1))}
        )


class SiteLevel(Settings):
    """The server clips each site's update and adds noise: hides whether a site took part.

    It protects no patient beyond that, and needs very many sites.
    """

    mode: Literal["site"]
    """Chooses this mode."""
    unit: Literal["site"] = "site"
    """Whose participation is hidden: a site's."""
    relation: Literal["add_remove"] = "add_remove"
    """Epsilon compares a federation with the same one and one site more or less."""
    accountant: Literal["pld"] = "pld"
    """How epsilon is computed: privacy loss distributions."""
    delta: Delta
    """Probability with which epsilon may be exceeded."""
    clip_norm: Positive
    """Bound on the joint length of one site's update."""
    noise_multiplier: Positive
    """Standard deviation of the noise over `clip_norm`."""
    forced: bool = False
    """Run it with fewer than a hundred sites all the same."""


Privacy = Annotated[
    NoPrivacy | PatientGradients | StatisticsOnce | SiteLevel, Field(discriminator="mode")
]
