"""Settings of the frozen generator: its network, its bundle's card, its pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lift.config.base import VERSION, Settings
from lift.config.cohort import CohortData
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import Digest, Name, NormalisationRule, Positive, PreprocessingPlan, TaskKind

ChannelCount = Annotated[int, Field(ge=1, le=2048)]


class _SliceNetworkConfig(Settings):
    n_source: int = Field(ge=1, le=8)
    """Source channels at one slice."""
    context_slices: int = Field(default=0, ge=0, le=4)
    """Neighbouring source slices on either side that are input too (2.5D); 0 is plain 2D."""

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: all sources of all 2 * context_slices + 1 slices."""
        return self.n_source * (2 * self.context_slices + 1)

    @property
    def card_version(self) -> Literal[1, 2]:
        """The format of a card that holds this network: older programs refuse one too new."""
        return 1


class UNetConfig(_SliceNetworkConfig):
    """Our residual 2D U-Net with taps; every mixer can work on it."""

    name: Literal["unet"] = "unet"
    """Chooses this network."""
    width: int = Field(default=12, ge=4, le=256, multiple_of=2)
    """Channels at full resolution."""
    multipliers: tuple[Annotated[int, Field(ge=1, le=32)], ...] = Field(
        default=(1, 2, 4, 4), min_length=2, max_length=6
    )
    """Channels of each level, in units of `width`; each level halves the resolution."""
    normalise_over: Literal["picture", "mask"] = Field(
        default="picture", exclude_if=lambda over: over == "picture"
    )
    """What group norm takes its statistics over, slice by slice: the whole picture, or the mask
    alone. With `mask` nothing outside the mask has an influence, and only its box is computed."""

    @model_validator(mode="after")
    def _first_level_is_width(self) -> Self:
        if self.multipliers[0] != 1:
            raise ValueError("multipliers must start with 1: the first level has `width` channels")
        return self

    @property
    def card_version(self) -> Literal[1, 2]:
        """See the base."""
        return 2 if self.normalise_over == "mask" else 1


class MonaiBasicUNetConfig(_SliceNetworkConfig):
    """MONAI's BasicUNet with instance norm; exposes no taps."""

    name: Literal["monai_basic_unet"] = "monai_basic_unet"
    """Chooses this network."""
    features: tuple[
        ChannelCount, ChannelCount, ChannelCount, ChannelCount, ChannelCount, ChannelCount
    ] = (32, 32, 64, 128, 256, 32)
    """Channels of the five encoder levels and of the last decoder level."""


class MonaiUNetConfig(_SliceNetworkConfig):
    """MONAI's UNet with instance norm and stride 2 between levels; exposes no taps."""

    name: Literal["monai_unet"] = "monai_unet"
    """Chooses this network."""
    channels: tuple[ChannelCount, ...] = Field(
        default=(32, 64, 128, 256), min_length=2, max_length=6
    )
    """Channels of each level."""
    residual_units: int = Field(default=2, ge=0, le=8)
    """Residual units of each level; 0 gives plain convolutions."""


class MonaiSegResNetConfig(_SliceNetworkConfig):
    """MONAI's SegResNet with group norm of 8 groups; exposes no taps."""

    name: Literal["monai_segresnet"] = "monai_segresnet"
    """Chooses this network."""
    width: int = Field(default=16, ge=16, le=256, multiple_of=8)
    """Channels at full resolution; they double at each level."""
    blocks: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(
        default=(1, 2, 2, 4), min_length=2, max_length=6
    )
    """Residual blocks of each encoder level."""


# MONAI's nets with batch norm (AttentionUnet, FlexibleUNet) are left out on purpose: a slice's
# result must not depend on its batch, neither in pre-training nor afterwards.
NetworkConfig = Annotated[
    UNetConfig | MonaiBasicUNetConfig | MonaiUNetConfig | MonaiSegResNetConfig,
    Field(discriminator="name"),
]


class TapShape(Settings):
    """Channels and in-plane stride of one tap."""

    channels: int = Field(ge=1)
    """Channels of the tap."""
    stride: int = Field(ge=1)
    """Its in-plane stride, in pixels of the slice."""


class GeneratorCard(Settings):
    """The content of `generator.json` in a bundle: what the weights are, and their origin."""

    task_kind: ClassVar[TaskKind] = "paired"

    format_version: Annotated[Literal[1, 2], VERSION] = 1
    """Version of the bundle's format: 2 for a network that normalises over the mask."""
    network: NetworkConfig
    """Architecture of the network."""
    source: tuple[Name, ...] = Field(min_length=1, max_length=8)
    """Source channels in the order in which the network takes them."""
    target: Name
    """The channel that the network predicts."""
    taps: dict[Name, TapShape]
    """Tap name -> channels and stride; empty for a network that exposes none."""
    normalisation: dict[Name, NormalisationRule]
    """The rule of every source and of the target, as in pre-training."""
    training_data: str = Field(min_length=1)
    """Statement: which data the weights were trained on."""
    licence: str = Field(min_length=1)
    """Licence of the weights."""
    fingerprint: Digest
    """SHA-256 of the architecture, the parameters and the buffers."""
    made_with: str = Field(min_length=1)
    """Version of this package that wrote the bundle."""
    trained_steps: int = Field(ge=0)
    """Optimiser steps of our pre-training; 0 for imported weights."""
    validation_psnr_db: float | None = None
    """Mean over validation patients of the PSNR inside the mask; null when there were none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.source) != self.network.n_source:
            raise ValueError(
                f"{len(self.source)} source channels are named, "
                f"but the network takes {self.network.n_source}"
            )
        if set(self.normalisation) != {*self.source, self.target}:
            raise ValueError("normalisation must name every source, the target and nothing else")
        if self.format_version != self.network.card_version:
            raise ValueError(f"this network needs format_version {self.network.card_version}")
        return self


class GeneratorChoice(Settings):
    """The frozen generator: a shipped one, or the folder of a bundle."""

    builtin: str | None = None
    """Name of a bundle that ships with the package."""
    bundle: Path | None = None
    """Folder of a bundle, as `lift pretrain` writes it."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.builtin is None) == (self.bundle is None):
            raise ValueError("give exactly one of builtin and bundle")
        return self

    def under(self, folder: Path) -> Self:
        """Return the same choice with a relative bundle path resolved against `folder`."""
        if self.bundle is None:
            return self
        return self.model_copy(update={"bundle": folder / self.bundle})


class GeneratorDescription(Settings):
    """The description of a bundle, also the settings of `lift pretrain --import`."""

    network: NetworkConfig
    """Architecture of the network. Not given where a MONAI bundle is imported: it names its own."""
    source: tuple[Name, ...] = Field(min_length=1, max_length=8)
    """Source channels in the order in which the network takes them."""
    target: Name
    """The channel that the network predicts."""
    preprocessing: PreprocessingPlan = PreprocessingPlan()
    """From files to slices, as in the plans that use the bundle."""
    training_data: str = Field(min_length=1)
    """Statement: which data the weights were trained on."""
    licence: str = Field(min_length=1)
    """Licence of the weights."""

    @model_validator(mode="after")
    def _channels_fit(self) -> Self:
        if len(self.source) != self.network.n_source:
            raise ValueError(
                f"{len(self.source)} source channels are named, "
                f"but network.n_source is {self.network.n_source}"
            )
        if len({*self.source, self.target}) != len(self.source) + 1:
            raise ValueError("source and target channels must be distinct")
        return self


PretrainCohort = Annotated[CohortData | PhantomCohortConfig, Field(discriminator="layout")]


class PretrainConfig(GeneratorDescription):
    """Settings of `lift pretrain`: a bundle's description, and how its weights are made."""

    cohorts: tuple[PretrainCohort, ...] = Field(min_length=1)
    """Public data. A phantom cohort is written first."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_slices: int = Field(default=16, ge=1, le=1024)
    """Slices of a step, each of a random patient."""
    window: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = (128, 128)
    """Most rows and columns that are cut from a slice. Group norm sees the whole picture, so
    windows much smaller than a slice teach the network another statistic than it will meet."""
    learning_rate: Positive = 2e-3
    """Learning rate of the optimiser."""
    loss: Literal["l1", "l2"] = "l1"
    """Pixel loss: mean absolute (l1) or mean squared (l2) difference."""
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the subjects that are kept for the validation PSNR of the card."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the training."""
    threads: int = Field(default=2, ge=1, le=256)
    """CPU threads. Bit-identical trainings need the same number."""
    checkpoint_steps: int = Field(default=100, ge=1)
    """Steps between checkpoints. A restarted training resumes from the last one."""
