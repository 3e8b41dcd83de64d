"""Networks and arrays of the sizes that the benchmark talks about; values are random."""

from __future__ import annotations

from typing import Literal

import nibabel
import numpy as np

from lift.cohort.preprocessing import CropBox, Prepared
from lift.config.generator import GeneratorDescription, UNetConfig
from lift.config.plan import MixerPlan, Plan, TaskPlan, TrainingPlan
from lift.config.privacy import NoPrivacy
from lift.generator.bundle import make_card
from lift.generator.features import Features
from lift.generator.networks import FrozenGenerator, build_network
from lift.mixer.base import Mixer
from lift.tasks.paired.building import plan_mixer
from lift.volumes.volume import FileGrid, Volume

SOURCES = ("t1n", "t1c", "t2w")
BRATS_SLICES, BRATS_SIDE = 155, 240


def example_generator(
    width: int, multipliers: tuple[int, ...], over: Literal["picture", "mask"] = "picture"
) -> FrozenGenerator:
    """A frozen U-Net with random weights: cost does not depend on them."""
    config = UNetConfig(
        width=width, multipliers=multipliers, n_source=len(SOURCES), normalise_over=over
    )
    network = build_network(config, seed=0)
    description = GeneratorDescription(
        network=config,
        source=SOURCES,
        target="t2f",
        training_data="none: random weights, for measuring cost",
        licence="Apache-2.0",
    )
    return FrozenGenerator(network, make_card(network, description, trained_steps=0))


def example_plan(*, steps: int = 4) -> Plan:
    """The default mixer on three sources."""
    return Plan(
        task=TaskPlan(source=SOURCES, target="t2f"),
        mixer=MixerPlan(kind="zrefine"),
        training=TrainingPlan(steps=steps),
        privacy=NoPrivacy(mode="none"),
    )


def example_mixer(generator: FrozenGenerator) -> Mixer:
    """The default mixer for a generator."""
    return plan_mixer(example_plan(), generator).eval()


def example_features(generator: FrozenGenerator, shape: tuple[int, int, int]) -> Features:
    """Random features of a volume of (slices, rows, columns)."""
    rng = np.random.default_rng(0)
    depth, height, width = shape

    def draw(channels: int) -> np.ndarray:
        return rng.random((depth, channels, height, width), dtype=np.float32)

    return Features(
        source=draw(len(SOURCES)),
        pred=draw(1),
        target=draw(1),
        mask=np.ones((depth, 1, height, width), np.uint8),
        taps={
            name: draw(generator.taps[name].channels).astype(np.float16)
            for name in ("feat", "enc0")
        },
        pooled={},
        slice_spacing_mm=1.0,
    )


def example_prepared(shape: tuple[int, int, int]) -> Prepared:
    """A random patient of (slices, rows, columns), all of it inside the mask."""
    depth, height, width = shape
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    grid = FileGrid(
        shape=(width, height, depth),
        affine=np.eye(4),
        orientation=np.array([[0, 1], [1, 1], [2, 1]]),
        dtype=np.dtype(np.int16),
        slope=1.0,
        inter=0.0,
        header=image.header,
    )
    return Prepared(
        source=rng.random((depth, len(SOURCES), height, width), dtype=np.float32),
        target=None,
        mask=np.ones((depth, 1, height, width), np.float32),
        spacing_mm=(1.0, 1.0, 1.0),
        reference=Volume(np.zeros((2, 2, 2), np.int16), np.eye(4), grid, "0" * 64),
        crop=CropBox(shape, (0, 0, 0), shape),
        target_scale=None,
        plane="axial",
    )
