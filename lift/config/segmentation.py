"""Settings of a segmenter that judges volumes in a simulation."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lift.config.base import Settings
from lift.config.plan import Positive


class SegmenterSettings(Settings):
    """A small U-Net on three neighbouring slices."""

    width: int = Field(default=16, ge=1, le=64)
    """Channels of the finest of three levels; the next ones have 2 and 4 times as many."""
    steps: int = Field(default=400, ge=1)
    """Optimiser steps."""
    volumes_per_step: int = Field(default=4, ge=2, le=64)
    """Volumes whose slices make a batch."""
    learning_rate: Positive = 0.01
    """Learning rate of the first step; it falls as a cosine."""


class SegmentationSettings(Settings):
    """A segmenter of real targets that is asked to segment predicted ones: column `dice`."""

    labels: str = ""
    """Label files, with `{site}` and `{patient}`; what is above 0 counts."""
    tissue: str = ""
    """In place of files: a tissue of the phantoms' own truth, such as wm or oedema."""
    segmenter: SegmenterSettings = SegmenterSettings()
    """The segmenter, which is trained on the training patients of all sites."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.labels) == bool(self.tissue):
            raise ValueError("give labels, or for phantoms tissue")
        if self.labels and "{patient}" not in self.labels:
            raise ValueError("labels must hold {patient}")
        return self
