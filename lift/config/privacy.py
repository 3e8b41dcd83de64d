"""The privacy plan: all settings that determine epsilon, frozen with the rest of the plan.

The unit is always the patient, and the neighbour relation is always add or remove one patient.
Both are in the plan, so that an epsilon is never read without them. Nothing here is private:
numbers of patients are the public ones that sites have agreed on, never those of a cohort.
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
"""Below this number of sites the mode `site` is refused: its noise hides all that is learned."""


class NoPrivacy(Settings):
    """No noise is added. The log, the run record and the report state this."""

    mode: Literal["none"]
    """Chooses this mode."""


class _Patients(Settings):
    """Settings that all patient-level modes share."""

    unit: Literal["patient"] = "patient"
    """The protected unit. All volumes of a patient, with all slices, count together."""
    relation: Literal["add_remove"] = "add_remove"
    """Epsilon compares a cohort with the same cohort plus or minus one patient."""
    accountant: Literal["pld"] = "pld"
    """How epsilon is computed: with privacy loss distributions."""
    delta: Delta
    """At most 1 / (10 x public number of patients) is usual, rounded down to a power of ten."""
    public_patients: PublicCount | dict[str, PublicCount]
    """Agreed number of training patients of a site: one number for all sites, or one per site.
    Sums are divided by it, and it is the weight of the site. It may be inexact. It is public, so it
    must not be computed from a cohort."""

    def patients_of(self, site: str) -> int:
        """Return the public number of training patients of `site`.

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
    """Start of the mixer: the normal equations of the z-filter, clipped per patient, with noise."""

    noise_multiplier: Positive
    """Standard deviation of the noise divided by `clip_norm`."""
    clip_norm: Positive
    """Bound on the joint norm of one patient's equations, from public data."""


class GainRelease(Settings):
    """Mean gain of the finished mixer over no mixer, clipped per patient, with noise, once."""

    noise_multiplier: Positive
    """Standard deviation of the noise divided by the joint sensitivity of the two numbers sent."""
    clip_db: Positive = 2.0
    """Bound on the gain of one patient in dB, from public data. Larger gains are clipped to it."""


class PatientGradients(_Patients):
    """DP-SGD over patients (Abadi et al. 2016, arXiv:1607.00133).

    `patient-local`: each site adds the full noise before anything leaves, so no one outside the
    hospital has to be trusted. `patient-central`: sites send clipped sums and the server adds the
    noise once. The server is trusted, and each round is one step of all sites together.
    """

    mode: Literal["patient-local", "patient-central"]
    """Who adds the noise: each site, or the server."""
    clip_norm: Positive
    """Bound on the joint norm of one patient's gradient, from public data."""
    noise_multiplier: Positive
    """Standard deviation of the noise divided by `clip_norm`."""
    sampling_rate: float = Field(gt=0, le=1)
    """Probability that a patient takes part in a step, independent of all others."""
    windows_per_volume: int = Field(default=2, ge=1, le=64)
    """Windows from each volume of a sampled patient. Their losses are averaged first."""
    engine: Literal["loop", "hooks"] = "loop"
    """How the gradients of single patients are computed: in a loop over patients, or with hooks on
    the layers. The results agree. The loop works with every mixer."""
    start: StartRelease | None = None
    """None: the mixer starts without the z-filter, at no cost."""
    gain: GainRelease | None = None
    """With `patient-local`: release the gain of the mixer at the end, over validation patients,
    and count it. None: the gain stays unknown, and `lift translate` always warns."""

    @model_validator(mode="after")
    def _noise_of_the_gain_is_the_sites(self) -> Self:
        if self.gain is not None and self.mode != "patient-local":
            raise ValueError(
                "each site adds the noise of the gain itself, so privacy.gain needs privacy.mode "
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
    """Public bounds on a patient's moments of trajectories, and what they are shrunk toward."""

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

    Everything after that is post-processing, so rounds cost nothing.
    """

    mode: Literal["stats-once"]
    """Chooses this mode."""
    noise_multiplier: Positive
    """Standard deviation over the joint sensitivity of all that is sent."""
    trajectories: TrajectoryBounds = TrajectoryBounds()
    """For plans whose trajectory is gaussian."""

    def for_each_of(self, kinds: int) -> Self:
        """The section for each of some kinds of statistics that are sent together.

        They are one Gaussian mechanism with the plan's noise multiplier: each kind is taken in
        units of sqrt(kinds) times its own sensitivity, so one patient moves all by at most 1.
        """
        return self.model_copy(
            update={"noise_multiplier": self.noise_multiplier * math.sqrt(max(kinds, 1))}
        )


class SiteLevel(Settings):
    """The server clips the update of each site and adds noise. Hides whether a site took part.

    It does not protect single patients beyond that, and needs very many sites.
    """

    mode: Literal["site"]
    """Chooses this mode."""
    unit: Literal["site"] = "site"
    """The protected unit: a site."""
    relation: Literal["add_remove"] = "add_remove"
    """Epsilon compares a federation with the same one plus or minus one site."""
    accountant: Literal["pld"] = "pld"
    """How epsilon is computed: with privacy loss distributions."""
    delta: Delta
    """Probability that epsilon is exceeded."""
    clip_norm: Positive
    """Bound on the joint norm of one site's update."""
    noise_multiplier: Positive
    """Standard deviation of the noise divided by `clip_norm`."""
    forced: bool = False
    """Allow fewer than a hundred sites."""


Privacy = Annotated[
    NoPrivacy | PatientGradients | StatisticsOnce | SiteLevel, Field(discriminator="mode")
]
