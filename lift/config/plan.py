"""The plan: everything that determines the result of a run, in one frozen model.

The server sends the plan with round 0; a site validates it against its own policy and
stores it. Its canonical JSON has one SHA-256, which every message and checkpoint names.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lift.config.base import VERSION, Settings
from lift.config.privacy import (
    NoPrivacy,
    PatientGradients,
    Privacy,
    SiteLevel,
    StatisticsOnce,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Percentile = Annotated[float, Field(ge=0, le=100)]
Spacing = Annotated[float, Field(ge=0.2, le=20)]
MOST_ROUNDS: Final = 10**6
"""No message, journal or ledger names a later round: a number of any length fills a disk."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

MixerKind = Literal[
    "zrefine",
    "zrefine_lite",
    "pyramid",
    "zdiff",
    "zconv",
    "pooled_bigru",
    "control_2d",
    "trajectory_mapper",
]


class PercentileRule(Settings):
    """MR: clip to two percentiles, of the whole volume or inside the mask, then to [0, 1].

    Source: method 3.2.
    """

    rule: Literal["percentile"] = "percentile"
    """Chooses this rule."""
    low: float = Field(default=0.1, ge=0, le=100)
    """Lower percentile."""
    high: float = Field(default=99.9, ge=0, le=100)
    """Upper percentile."""
    inside: Literal["volume", "mask"] = "volume"
    """volume: percentiles of all voxels, background included; mask: of those inside the mask, so
    that neither the amount of air nor what the mask leaves out moves the scale."""
    written_maximum: float = Field(default=1000.0, gt=0)
    """MR has no unit. The normalised value 1 of a synthetic volume is written as this number."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high (seen: {self.low} and {self.high})")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # without a default that came later: plans of before keep their digests
        data: dict[str, Any] = handler(self)
        if self.inside == "volume":
            data.pop("inside", None)
        return data


class WindowRule(Settings):
    """CT: clip to a window in Hounsfield units, then to [0, 1] (method 4.1)."""

    rule: Literal["window"] = "window"
    """Chooses this rule."""
    low: float = Field(default=-1024.0, ge=-32768)
    """Lower end, HU."""
    high: float = Field(default=3000.0, le=32767)
    """Upper end, HU; CT is written as whole numbers of 16 bits."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high (seen: {self.low} and {self.high})")
        return self


class WhiteMatterRule(Settings):
    """MR of the brain: one gain per volume, so that white matter has the same value in all.

    White matter is a peak of the smoothed histogram inside the mask; 0 stays 0, and what comes
    out above 1 is clipped. Lesions and background do not move the peak. In a mask with scalp, fat
    may be a peak too: the rule is for brains without skull, or with little fat.
    Source: Shinohara et al. 2014 (WhiteStripe), Reinhold et al. 2019 (arXiv:1812.04652).
    """

    rule: Literal["white_matter"] = "white_matter"
    """Chooses this rule."""
    peak: Literal["highest", "largest"]
    """highest: the peak of the highest values, for channels like T1; largest: that of the most
    voxels, for channels like T2 and FLAIR."""
    level: float = Field(default=0.4, ge=0.01, le=0.99)
    """Where the peak comes to lie; 1 is the peak's value divided by this number, so a channel
    whose brightest tissue is far above white matter (T2: fluid) needs a low one."""
    written_maximum: float = Field(default=1000.0, gt=0)
    """MR has no unit. The normalised value 1 of a synthetic volume is written as this number."""


class NyulRule(Settings):
    """MR: piecewise linear, so that percentiles inside the mask lie where they do on public data.

    The standard scale is part of the plan: `lift landmarks` learns it on public volumes, never on
    a site's patients. Beyond the outer landmarks their segments go on, clipped to [0, 1].
    Source: Nyul & Udupa 1999; Nyul, Udupa & Zhang 2000.
    """

    rule: Literal["nyul"] = "nyul"
    """Chooses this rule."""
    percentiles: tuple[Percentile, ...] = Field(
        default=(1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99), min_length=2, max_length=101
    )
    """Percentiles inside the mask, increasing."""
    landmarks: tuple[Fraction, ...]
    """Target value of each percentile, increasing."""
    written_maximum: float = Field(default=1000.0, gt=0)
    """MR has no unit. The normalised value 1 of a synthetic volume is written as this number."""

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if len(self.landmarks) != len(self.percentiles):
            raise ValueError(
                f"there are {len(self.percentiles)} percentiles and {len(self.landmarks)} landmarks"
            )
        for name, numbers in (("percentiles", self.percentiles), ("landmarks", self.landmarks)):
            if any(high <= low for low, high in itertools.pairwise(numbers)):
                raise ValueError(f"{name} must increase (seen: {numbers})")
        return self


AnyRule = PercentileRule | WhiteMatterRule | NyulRule | WindowRule
NormalisationRule = Annotated[AnyRule, Field(discriminator="rule")]


TaskKind = Literal["paired", "unconditional"]
"""Kinds of task; each has an entry in `lift.tasks.registry`."""


class TaskPlan(Settings):
    """Source channels and target channel."""

    kind: TaskKind = "paired"
    """paired: the target from its registered sources; unconditional: new volumes of the target."""
    source: tuple[Name, ...] = Field(default=(), max_length=8)
    """Channel names in the order in which the generator takes them; none when unconditional."""
    target: Name
    """Name of the channel to synthesise."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Channels that a patient's volume is read from: the sources, or the target itself."""
        return self.source or (self.target,)

    @property
    def channels(self) -> tuple[str, ...]:
        """Every channel that a patient must have."""
        return (*self.source, self.target)

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        if (self.kind == "paired") != bool(self.source):
            needed = "at least one source" if self.kind == "paired" else "no source"
            raise ValueError(f"a task of kind {self.kind} has {needed} (seen: {len(self.source)})")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [*self.source, self.target]
        if len(set(names)) != len(names):
            raise ValueError("source and target channels must be distinct")
        return self


class OwnGrid(Settings):
    """Keep each patient's own grid. All channels must share it already."""

    kind: Literal["own"] = "own"
    """Chooses this grid."""


class FirstSourceGrid(Settings):
    """Use the grid of the first input. The other channels, and a mask, are resampled.

    For channels that are registered and stored on grids of their own, such as a 1 mm T1 beside a
    FLAIR of 5 mm slices.
    """

    kind: Literal["first_source"] = "first_source"
    """Chooses this grid."""


class SpacingGrid(Settings):
    """Use one spacing for all patients, along the axes of the first input, then resample back.

    For sites whose grids differ so much that one generator cannot serve them. Resampling blurs:
    leave it out where grids are alike.
    """

    kind: Literal["spacing"] = "spacing"
    """Chooses this grid."""
    spacing_mm: tuple[Spacing | None, Spacing | None, Spacing | None]
    """Along x, y and z of the patient, mm; null keeps the first input's own along that axis."""

    @model_validator(mode="after")
    def _changes_an_axis(self) -> Self:
        if self.spacing_mm == (None, None, None):
            raise ValueError(
                "spacing_mm is null along every axis: use the kind `own`, or `first_source` where "
                "channels lie on several grids"
            )
        return self


GridRule = Annotated[OwnGrid | FirstSourceGrid | SpacingGrid, Field(discriminator="kind")]


class PreprocessingPlan(Settings):
    """From files to slices. Every step can be inverted for the results."""

    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    """The slice plane. Depth is perpendicular to it (axial: inferior to superior)."""
    grid: GridRule = OwnGrid()
    """own: as stored; first_source: channels onto the first input's grid; spacing: all onto one
    spacing. Results are written on the first input's own grid in any case."""
    normalisation: dict[Name, NormalisationRule] = Field(default_factory=dict)
    """Rule by channel; one that is not named gets `window` if it is `ct`, else `percentile`.

    percentile: two percentiles; white_matter: a gain by the white matter's peak; nyul: a standard
    histogram; window: Hounsfield units. The generator must have been trained with the same."""
    mask: Literal["nonzero", "body", "file"] = "nonzero"
    """nonzero: non-zero in all sources; body: Otsu on the mean normalised source (by the rule
    `percentile` of the whole volume where the source's own looks inside the mask); file: the
    cohort's own mask. The largest component, filled, is kept of the first two."""
    crop_margin: int = Field(default=4, ge=0, le=64)
    """In-plane voxels kept around the mask's bounding box."""
    crop_multiple: int = Field(default=8, ge=1, le=64)
    """The in-plane size is padded up to a multiple of this (the generator's stride)."""
    lowest_slice_spacing_mm: Positive = 0.5
    """Smallest through-plane spacing of a volume, in mm."""
    highest_slice_spacing_mm: Positive = 6.5
    """Largest through-plane spacing of a volume, in mm."""

    def rule(self, channel: str) -> AnyRule:
        """The normalisation rule of one channel."""
        default = WindowRule() if channel == "ct" else PercentileRule()
        return self.normalisation.get(channel, default)


class SplitPlan(Settings):
    """Split by patient, from a keyed hash of the patient's id. Stable when patients are added."""

    train: Fraction = 0.7
    """Share of the persons that are training patients."""
    validation: Fraction = 0.15
    """Share of the persons that are validation patients; the others are test patients."""
    key: str = "lift"
    """Key of the hash. Another key gives another, independent split."""
    held_out: tuple[str, ...] = ()
    """Test patients (`SITE/PATIENT`), for leave-one-patient-out. If given, these and no others are
    test patients, regardless of their hash."""
    most_training: int | None = Field(default=None, ge=1)
    """Largest number of training patients per site, the first by their hash. The others are not
    used at all. Null: all. Use it to test the effect of fewer patients."""

    @model_validator(mode="after")
    def _leaves_test(self) -> Self:
        if self.train <= 0 or self.train + self.validation > 1:
            raise ValueError("train must be above 0 and train + validation at most 1")
        return self


class MixerPlan(Settings):
    """Architecture and sizes of the mixer."""

    kind: MixerKind = "zrefine"
    """Architecture of the mixer; `trajectory_mapper` belongs to an unconditional task."""
    width: int = Field(default=8, ge=1, le=256)
    """Hidden channels (zrefine, zrefine_lite, control_2d; pyramid: at its finest scale) or GRU
    units (pooled_bigru)."""
    radius: int = Field(default=3, ge=1, le=8)
    """Reach of the zdiff kernel along depth, in slices."""
    ridge: float = Field(default=1e-3, gt=0)
    """Ridge of the z-filter fit, relative to the mean diagonal of its normal matrix."""
    contrast: Literal["none", "affine", "curves"] = "curves"
    """What brings the prediction to a patient's grey scale before the mixer (`lift.mixer.curves`).

    In training these are the patient's own curves; afterwards the site's, shrunk toward those of
    all sites as far as its patients want it. `affine` is a gain and an offset in place of curves;
    with `none` the mixer learns the contrast too.
    """


class LossPlan(Settings):
    """scale * (pixel loss + dz_weight * loss of the through-plane difference + MS-SSIM term)."""

    pixel: Literal["l2", "l1"] = "l2"
    """Pixel loss: mean squared (l2) or mean absolute (l1) difference."""
    scale: Positive = 10.0
    """Factor of the whole loss."""
    dz_weight: float = Field(default=0.5, ge=0)
    """Weight of the loss of differences between neighbouring slices."""
    ms_ssim_weight: float = Field(default=0.0, ge=0)
    """Weight of 1 - MS-SSIM (3 scales, window 7); needs windows of at least 64 pixels."""


class TrainingPlan(Settings):
    """Local training of one round."""

    steps: int = Field(default=40, ge=1)
    """Optimiser steps that each site takes in a round."""
    patients_per_step: int = Field(default=4, ge=1, le=64)
    """Random patients in one step, with one window each."""
    window: tuple[int, int, int] = (10, 48, 48)
    """Slices, rows and columns of a window."""
    learning_rate: Positive = 5e-3
    """Learning rate of AdamW, after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    warmup_steps: int = Field(default=20, ge=0)
    """Linear warm-up at the start of the run."""
    gradient_clip: Positive = 1.0
    """Largest joint L2 norm of the gradient of one step."""
    proximal: float = Field(default=0.0, ge=0)
    """FedProx: mu of mu/2 * ||mixer - received mixer||^2 (Li et al. 2020, arXiv:1812.06127)."""
    loss: LossPlan = LossPlan()
    """What is minimised."""

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if min(self.window) < 1:
            raise ValueError("every side of the window must be at least 1")
        if self.loss.ms_ssim_weight > 0 and min(self.window[1:]) < 64:
            raise ValueError("MS-SSIM needs windows of at least 64 x 64 pixels")
        return self


class MapperPlan(Settings):
    """Sizes of the trajectory mapper (method 5.3)."""

    latent: int = Field(default=64, ge=1, le=1024)
    """Length of the latent vector of a volume."""
    width: int = Field(default=256, ge=8, le=2048)
    """Hidden units of each layer."""
    layers: int = Field(default=3, ge=1, le=8)
    """Hidden layers."""
    octaves: int = Field(default=4, ge=1, le=8)
    """Fourier octaves of the position along the body."""
    variation_channels: int = Field(default=8, ge=0, le=64)
    """Channels of the slow random variation along the body. 0: none."""
    variation_length: float = Field(default=0.15, gt=0, le=2)
    """Its correlation length, as a share of the body."""


class GaussianPlan(Settings):
    """The Gaussian of slice latents along the body: a Markov chain over positions."""

    positions: int = Field(default=24, ge=2, le=256)
    """Positions along the body; latents between two of them are interpolated."""
    axes: int = Field(default=32, ge=1, le=256)
    """Latents, from the first on, whose joint covariance is kept; each of the others is a chain of
    its own. The grey scale's latents and the body's length are always with the joint ones."""
    covariance: Literal["markov", "sketch"] = "markov"
    """markov: of neighbouring positions, so that the body is a chain. sketch: of whole
    trajectories, by random columns: truer shapes, megabytes, and 20 training patients of a site at
    least."""
    columns: int = Field(default=128, ge=2, le=1024)
    """Rank of the sketch."""
    tied: bool = False
    """One covariance within a position and one with the next for all positions, after each
    position's own mean: far fewer numbers, which noise needs."""
    tail: bool = True
    """False: nothing is gathered of the latents that are not joint, and they are 0 in every new
    volume: their mean over public slices."""

    @model_validator(mode="after")
    def _a_sketch_has_no_positions_to_tie(self) -> Self:
        if self.covariance == "sketch" and self.tied:
            raise ValueError("covariance: sketch cannot be tied, and so has no form under privacy")
        return self


class UnconditionalPlan(Settings):
    """New volumes: a Gaussian of latent trajectories, and a mapper on top of it (method 5.4)."""

    trajectory: Literal["gaussian", "free"] = "gaussian"
    """gaussian: moments of latents along the body, gathered once, are the source of volumes; with
    `federation.rounds: 0` they are all there is, otherwise the mapper learns a residual, which is
    0 at first. free: a mapper alone, which nothing keeps near real latents."""
    gaussian: GaussianPlan = GaussianPlan()
    """The Gaussian of slice latents along the body."""
    site_styles: bool = False
    """Write each site's mean grey scale, under its name, beside the Gaussian, for `lift generate
    --style SITE`: everyone who has the mixer knows it. A site's policy has to allow it."""
    prior_weight: float = Field(default=1.0, ge=0)
    """How strongly the latents of the mapper are held at the mean and spread of the Gaussian."""
    mapper: MapperPlan = MapperPlan()
    """Sizes of the trajectory mapper."""
    loss: Literal["drift", "mmd", "hybrid"] = "hybrid"
    """drift: mean-shift field; mmd: gradient of the squared MMD; hybrid: both, added."""
    attraction: Literal["anchors", "random_features", "moments", "samples"] = "anchors"
    """Where the drift pulls: sums over all sites (the first three), or the site's own samples,
    which never leave it. The MMD takes the sums of random features."""
    volumes_per_step: int = Field(default=16, ge=2, le=256)
    """Generated volumes of one optimiser step."""
    groups_per_step: int = Field(default=4, ge=1, le=64)
    """Tri-planar groups compared in one step, chosen at random each time."""
    windows_per_step: int = Field(default=2, ge=1, le=16)
    """Windows per generated volume and group, at random places."""
    slices: int = Field(default=36, ge=8, le=1024)
    """Slices of a generated volume in training. Later, any number is possible."""
    slice_spacing_mm: Positive = 1.0
    """Slice spacing in training. Slices times spacing is the length of the generated body."""
    eta: Positive = 0.5
    """Step length of the drift, in mean distances of features."""
    mmd_weight: Positive = 8.0
    """Factor of the MMD's force in the hybrid loss."""
    queue: int = Field(default=512, ge=8, le=4096)
    """Feature vectors that the attraction `samples` keeps per group."""
    projection_digest: Digest | None = None
    """SHA-256 of the public projection. Default: from the generator's bundle."""
    moments_digest: Digest | None = None
    """SHA-256 of the public moments, from which noisy moments are taken and on which they fall
    back: under stats-once, filled in from the bundle where it has them."""

    @model_validator(mode="after")
    def _loss_has_its_source(self) -> Self:
        if self.attraction == "samples" and self.loss != "drift":
            raise ValueError("the attraction `samples` sends no sums, and mmd needs them: loss")
        return self

    @model_validator(mode="after")
    def _styles_have_their_moments(self) -> Self:
        if self.site_styles and self.trajectory != "gaussian":
            raise ValueError(
                "site_styles are means of moments, and `trajectory: free` gathers none: choose "
                "`trajectory: gaussian`"
            )
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # without a default that came later: plans of before keep their digests
        data: dict[str, Any] = handler(self)
        if not self.site_styles:
            data.pop("site_styles", None)
        if self.moments_digest is None:
            data.pop("moments_digest", None)
        return data


class AggregationPlan(Settings):
    """How the server turns updates into the next mixer."""

    weights: Literal["patients", "uniform"] = "patients"
    """FedAvg by training patients (McMahan et al. 2017, arXiv:1602.05629), or one site one vote."""
    largest_share: float = Field(default=0.6, gt=0, le=1)
    """Largest weight of one site, as a share. The rest goes to the others in proportion."""
    optimiser: Literal["none", "momentum", "adam"] = "none"
    """Server optimiser (Reddi et al. 2021, arXiv:2003.00295)."""
    learning_rate: Positive = 1.0
    """Step size of the server. 1 without an optimiser is plain averaging."""
    momentum: Fraction = 0.9
    """Decay of the first moment (momentum, adam)."""
    second_momentum: Fraction = 0.99
    """Decay of the second moment (adam)."""
    epsilon: Positive = 1e-3
    """Added to the root of the second moment (adam)."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay per round of the moving average that is released. 0 releases the last mixer."""
    largest_norm_ratio: float | None = Field(default=2.0, ge=1)
    """Largest norm of an update, as a multiple of the round's (lower) median norm; a larger update
    is scaled down to it. null: off. It never applies in the privacy modes `patient-central` and
    `site`, whose noise needs a bound that no data move."""
    fall_tolerance_db: Positive | None = 1.0
    """How far the sites' validation PSNR may fall below its best (dB, median over the sites of the
    change); a larger fall is treated as `on_fall` says. null: off. It never applies under
    a privacy mode, nor for new volumes, which have no validation PSNR."""
    on_fall: Literal["go-back", "stop", "go-on"] = "go-back"
    """go-back: take the best mixer again and go on without the site whose updates since then were
    farthest from the others' mean; stop: take the best mixer again, then stop for a decision;
    go-on: record the fall alone."""

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # without a default that came later: plans of before keep their digests
        data: dict[str, Any] = handler(self)
        for name in ("largest_norm_ratio", "fall_tolerance_db", "on_fall"):
            if data.get(name) == type(self).model_fields[name].default:
                data.pop(name, None)
        return data


def derived_deadline_s(slowest_round_s: float) -> float:
    """Deadline of a plan without one: three times the slowest round, plus one minute."""
    return 3.0 * slowest_round_s + 60.0


class FederationPlan(Settings):
    """Rounds, quorum, deadlines and message format."""

    rounds: int = Field(default=6, ge=0, le=MOST_ROUNDS)
    """Training rounds, in addition to round 0, which gathers the statistics. 0 is allowed for an
    unconditional task whose trajectory is gaussian, which needs only these."""
    quorum_sites: int = Field(default=0, ge=0)
    """Sites that must answer. 0: all."""
    quorum_patients: Fraction = 1.0
    """Share of all patients that the answers must cover. A site counts with the patients that it
    declared (`lift-server add-site --patients`), else with the training patients that it claims."""
    deadline_s: Positive | None = 3600.0
    """Seconds after which a round closes with the answers received so far. null derives it from
    timed dry runs of the sites (three times the slowest, plus one minute); round 0 gets one day."""
    grace_s: float = Field(default=15.0, ge=0, le=3600)
    """Seconds. Once the quorum is met, a round closes when the missing sites have been off-line for
    so long. At the deadline, sites that are connected have so long more. Round 0 waits for its
    deadline."""
    patient_count_step: int = Field(default=1, ge=1, le=1000)
    """Sites round their numbers of patients up to a multiple of this. Weights use these numbers."""
    update_dtype: Literal["float32", "float16"] = "float32"
    """Number format in which updates travel."""
    largest_update_norm: Positive = 1e2
    """Largest joint L2 norm of an update. The review refuses larger ones. Honest ones of the demo
    have 1 to 2; AdamW moves n numbers by about learning_rate x steps x sqrt(n) at most."""


class Plan(Settings):
    """Everything that determines the result of one run."""

    version: Annotated[Literal[1], VERSION] = 1
    """Version of the plan's format."""
    task: TaskPlan
    """What is synthesised, and from which sources."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the run. Every random choice is derived from it."""
    threads: int = Field(default=2, ge=1, le=256)
    """CPU threads of the numerical kernels. Bit-identical runs need the same number."""
    generator_fingerprint: Digest | None = None
    """SHA-256 of the frozen generator. Default: from the bundle."""
    preprocessing: PreprocessingPlan = PreprocessingPlan()
    """From files to slices."""
    split: SplitPlan = SplitPlan()
    """Split into training, validation and test patients."""
    mixer: MixerPlan = MixerPlan()
    """The trained part."""
    training: TrainingPlan = TrainingPlan()
    """Settings of the local training at a site."""
    unconditional: UnconditionalPlan | None = None
    """Only for an unconditional task."""
    aggregation: AggregationPlan = AggregationPlan()
    """How the updates of the sites are combined."""
    federation: FederationPlan = FederationPlan()
    """Settings of the rounds: number, quorum, deadlines and message format."""
    privacy: Privacy
    """Required. There is no default; `privacy: {mode: none}` must be written."""

    @model_validator(mode="after")
    def _parts_fit_the_task(self) -> Self:
        unconditional = self.task.kind == "unconditional"
        if unconditional != (self.mixer.kind == "trajectory_mapper"):
            raise ValueError(
                "mixer.kind `trajectory_mapper` belongs to an unconditional task, and only to one "
                f"(task.kind is {self.task.kind}, mixer.kind is {self.mixer.kind})"
            )
        if unconditional != (self.unconditional is not None):
            raise ValueError(
                "the section `unconditional` belongs to an unconditional task, and only to one "
                f"(task.kind is {self.task.kind})"
            )
        gaussian = self.unconditional is not None and self.unconditional.trajectory == "gaussian"
        if self.federation.rounds == 0 and not gaussian:
            raise ValueError(
                "without a round nothing is trained (federation.rounds is 0): only an "
                "unconditional task with `unconditional.trajectory: gaussian` needs none"
            )
        return self

    @model_validator(mode="after")
    def _privacy_fits_the_task(self) -> Self:
        privacy = self.privacy
        if isinstance(privacy, NoPrivacy):
            return self
        if isinstance(privacy, PatientGradients) and self.task.kind == "unconditional":
            raise ValueError(
                "the drifting loss is no sum over patients, so clipping gradients bounds no "
                "patient's influence (privacy.mode): use `stats-once`"
            )
        if (
            isinstance(privacy, PatientGradients)
            and privacy.gain is not None
            and self.mixer.contrast != "none"
        ):
            raise ValueError(
                "privacy.gain needs mixer.contrast: none: a site's curves are fitted to all its "
                "patients, so one patient would move the gain of others, which no noise covers"
            )
        if self.protects_patients and self.split.most_training is not None:
            raise ValueError(
                "with split.most_training one patient displaces another, which no noise covers: "
                "leave it out under privacy"
            )
        if isinstance(privacy, StatisticsOnce) and self.task.kind != "unconditional":
            raise ValueError("privacy.mode `stats-once` belongs to an unconditional task")
        if (
            isinstance(privacy, StatisticsOnce)
            and self.unconditional is not None
            and self.unconditional.trajectory == "gaussian"
            and not self.unconditional.gaussian.tied
        ):
            raise ValueError(
                "a covariance at every position drowns in noise (unconditional.gaussian.tied is "
                "false): under `stats-once` choose `tied: true`, or unconditional.trajectory: free"
            )
        if self.unconditional is not None and self.unconditional.attraction == "samples":
            raise ValueError(
                "the attraction `samples` trains on the patients themselves, which no noise "
                "protects (unconditional.attraction): choose sums, such as `anchors`"
            )
        if self.unconditional is not None and self.unconditional.site_styles:
            raise ValueError(
                "unconditional.site_styles names single sites' means, which are exact only without "
                f"noise (privacy.mode is {privacy.mode}): one site's own numbers are mostly noise "
                "under `stats-once`, and mode `site` hides who took part; leave it out, or choose "
                "`none`"
            )
        if isinstance(privacy, SiteLevel) and self.federation.rounds == 0:
            raise ValueError(
                "privacy.mode `site` adds noise to updates, and without a round there are none "
                "(federation.rounds is 0): use `stats-once`, or `none`"
            )
        if self.federation.deadline_s is None and not isinstance(privacy, SiteLevel):
            raise ValueError(
                "under privacy no site tells how long its rounds take: give federation.deadline_s"
            )
        if privacy.mode == "patient-central" and self.training.steps != 1:
            raise ValueError(
                "privacy.mode `patient-central` takes one step a round: training.steps must be 1, "
                "and aggregation.optimiser and learning_rate say how it is taken"
            )
        return self

    @property
    def protects_patients(self) -> bool:
        """Whether the contribution of each patient is clipped and noised."""
        return not isinstance(self.privacy, NoPrivacy | SiteLevel)

    @property
    def total_steps(self) -> int:
        """Local optimiser steps that a site takes in the whole run."""
        return self.federation.rounds * self.training.steps
