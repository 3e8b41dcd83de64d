"""Settings of the frozen slice decoder: its network, its bundle's card, its pre-training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from lift.config.base import VERSION, Settings
from lift.config.generator import PretrainCohort
from lift.config.plan import Digest, Name, NormalisationRule, Positive, PreprocessingPlan, TaskKind

Side = Annotated[int, Field(ge=16, le=1024)]
Hidden = Annotated[int, Field(ge=8, le=4096)]
STYLE_LATENTS: Final = 2
"""Latents of a volume's grey scale in a PCA decoder."""


class _DecoderImage(Settings):
    """The grid on which a decoder makes slices."""

    image: tuple[Side, Side]
    """Rows and columns of a slice."""
    pixel_mm: Positive
    """Side of its pixels."""


class PcaDecoderConfig(_DecoderImage):
    """Principal axes of public slices whose grey scale is taken out: a closed form.

    A slice's latent vector holds the scores of the axes, then two numbers of its whole volume's
    grey scale (its mean and the logarithm of its standard deviation).
    """

    name: Literal["pca"]
    """Chooses this decoder."""
    axes: int = Field(ge=2, le=1024)
    """Principal axes that are kept."""

    @property
    def latent(self) -> int:
        """Numbers of a slice's latent vector."""
        return self.axes + STYLE_LATENTS

    @property
    def volume_latents(self) -> int:
        """How many of them, the last ones, are the same for all slices of a volume."""
        return STYLE_LATENTS


class SliceDecoderConfig(_DecoderImage):
    """A frozen network from a latent vector to a slice.

    `dense` layers are cheap for small slices; `convolutional` ones, which double the sides
    twice from a quarter, keep the number of weights small for large slices.
    """

    name: Literal["slice_decoder"] = "slice_decoder"
    """Chooses this decoder."""
    layers: Literal["dense", "convolutional"] = "dense"
    """Fully connected layers, or transposed convolutions."""
    latent: int = Field(default=64, ge=4, le=512)
    """Numbers of a slice's latent vector, standard normal over public slices."""
    hidden: tuple[Hidden, ...] = Field(default=(128, 256), min_length=1, max_length=4)
    """Units of the hidden layers; the last are channels at a quarter of the resolution when
    convolutional."""

    @property
    def volume_latents(self) -> int:
        """Latents that are the same for all slices of a volume: none."""
        return 0

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if any(side % 8 for side in self.image):
            raise ValueError(f"the image's sides must be multiples of 8 (seen: {self.image})")
        return self


DecoderConfig = Annotated[PcaDecoderConfig | SliceDecoderConfig, Field(discriminator="name")]

PyramidName = Literal["texture", "shape"]


class PublicFeaturesCard(Settings):
    """The public files beside the weights: what every site needs for the drifting loss."""

    encoder_seed: int = Field(ge=0, lt=2**63)
    """Of the random pyramid that encodes slices in training."""
    encoder_form: PyramidName = "texture"
    """Its sizes."""
    standardisation_digest: Digest
    """Digest of `standardisation.safetensors`."""
    projection_digest: Digest
    """Digest of `projection.safetensors`."""
    moments_digest: Digest | None = None
    """Of the moments of public volumes; null in bundles of format 1, which have none."""


class DecoderCard(Settings):
    """The content of a decoder bundle's `generator.json`."""

    task_kind: ClassVar[TaskKind] = "unconditional"

    format_version: Annotated[Literal[1, 2], VERSION] = 2
    """Version of the bundle's format."""
    kind: Literal["unconditional"]
    """Distinguishes this card from that of a paired generator."""
    network: DecoderConfig
    """Architecture of the decoder."""
    source: tuple[Name, ...] = Field(default=(), max_length=0)
    """Always empty: nothing goes in but a latent vector."""
    target: Name
    """The channel that the network makes."""
    plane: Literal["axial", "coronal", "sagittal"]
    """The slice plane."""
    normalisation: dict[Name, NormalisationRule]
    """The target's rule, as in pre-training."""
    body_length_mm: Positive
    """Mean length of the public bodies across the slice plane."""
    features: PublicFeaturesCard
    """The public files beside the weights."""
    training_data: str = Field(min_length=1)
    """Statement: which data the weights were trained on."""
    licence: str = Field(min_length=1)
    """Licence of the weights."""
    fingerprint: Digest
    """SHA-256 of the architecture and the weights as they are stored."""
    made_with: str = Field(min_length=1)
    """Version of this package that wrote the bundle."""
    trained_steps: int = Field(ge=0)
    """Optimiser steps; 0 for a closed form."""
    validation_psnr_db: float | None = None
    """Of reconstructed slices of validation patients; null when there were none."""
    pca_psnr_db: float | None = None
    """The same of a PCA with as many latents, fitted on the same slices."""
    weaker_than_pca: bool = False
    """It is not better than that PCA by the margin; its settings allowed this."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if set(self.normalisation) != {self.target}:
            raise ValueError("normalisation must name the target and nothing else")
        if (self.format_version > 1) != (self.features.moments_digest is not None):
            raise ValueError("format 2 names public moments, and format 1 names none")
        return self


_OF_TRAINING: Final = frozenset(
    {
        "allow_weaker_than_pca",
        "steps",
        "batch_slices",
        "learning_rate",
        "noise_variance",
        "shift_px",
        "gamma_sd",
        "encoder_channels",
        "checkpoint_steps",
    }
)
"""Settings that a closed form does not have."""


class DecoderPretrainConfig(Settings):
    """Settings of `lift pretrain` for an unconditional generator."""

    kind: Literal["unconditional"]
    """Distinguishes these settings from those of a paired generator."""
    network: DecoderConfig
    """Architecture of the decoder."""
    target: Name
    """The channel to learn."""
    preprocessing: PreprocessingPlan = PreprocessingPlan()
    """From files to slices, as in the plans that use the bundle."""
    cohorts: tuple[PretrainCohort, ...] = Field(min_length=1)
    """Public data; a phantom cohort is written first."""
    training_data: str = Field(min_length=1)
    """Statement: which data the weights were trained on."""
    licence: str = Field(min_length=1)
    """Licence of the weights."""
    allow_weaker_than_pca: bool = False
    """Write a trained decoder that is hardly better than a PCA with as many latents, or worse;
    without this it is refused."""
    steps: int = Field(default=3000, ge=1)
    """Optimiser steps."""
    batch_slices: int = Field(default=64, ge=2, le=4096)
    """Slices of a step."""
    learning_rate: Positive = 2e-3
    """Learning rate of the optimiser."""
    noise_variance: Positive = 0.0005
    """Variance of a pixel around the decoded slice: smaller means sharper and less smooth a
    latent space."""
    shift_px: int = Field(default=2, ge=0, le=16)
    """Slices are shifted at random by up to so many pixels."""
    flip: bool | None = None
    """Slices are mirrored left to right, never sagittal ones: a trained network's at random, a
    PCA's as slices of their own. Left out: yes for a trained network, no for a PCA."""
    gamma_sd: float = Field(default=0.15, ge=0, lt=1)
    """Spread of the logarithm of a random exponent: other contrasts than the public ones."""
    encoder_channels: int = Field(default=24, ge=4, le=256)
    """Of the encoder that is needed in training alone."""
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the subjects that are kept for the validation PSNR of the card."""
    encoder_seed: int = Field(default=7, ge=0, lt=2**63)
    """Of the public feature encoder; evaluation uses another one."""
    encoder_form: PyramidName = "shape"
    """Its sizes; evaluation uses `texture`."""
    windows: int = Field(default=6, ge=1, le=32)
    """Windows of each tri-planar group that a real volume gives."""
    position_bins: tuple[int, int, int] = (5, 4, 4)
    """Position bins of the axial, coronal and sagittal groups."""
    step_mm: float = Field(default=0.0, ge=0)
    """Distance between the two slices of an axial window; 0: neighbours."""
    dimension: int = Field(default=36, ge=4, le=64)
    """Principal axes of a group's features."""
    anchors: int = Field(default=64, ge=4, le=256)
    """Anchor cells of a group."""
    statistics: tuple[Literal["anchors", "random_features", "moments"], ...] = (
        "anchors",
        "random_features",
    )
    """Kinds of statistics that sites will send."""
    random_features: int = Field(default=512, ge=16, le=8192, multiple_of=2)
    """Number of random features of a group."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the training."""
    threads: int = Field(default=2, ge=1, le=256)
    """CPU threads. Bit-identical trainings need the same number."""
    checkpoint_steps: int = Field(default=500, ge=1)
    """Steps between checkpoints."""

    @property
    def mirrors(self) -> bool:
        """Whether public slices are mirrored."""
        wanted = self.network.name == "slice_decoder" if self.flip is None else self.flip
        return wanted and self.preprocessing.plane != "sagittal"

    @model_validator(mode="after")
    def _closed_form_takes_no_steps(self) -> Self:
        given = sorted(_OF_TRAINING & self.model_fields_set)
        if self.network.name == "pca" and given:
            raise ValueError(f"a PCA is not trained: leave out {', '.join(given)}")
        return self
