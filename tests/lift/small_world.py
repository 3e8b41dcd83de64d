"""A frozen generator with random weights, small patients, mixers away from their start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from lift.cohort.preprocessing import CropBox, Prepared
from lift.config.generator import GeneratorCard, TapShape, UNetConfig
from lift.config.plan import MixerKind, MixerPlan, Plan
from lift.errors import LiftError
from lift.generator.features import Features, compute_features
from lift.generator.networks import FrozenGenerator, UNet, build_network, network_fingerprint
from lift.mixer.base import FrozenParts, Mixer
from lift.mixer.build import build_mixer
from lift.tasks.paired.building import frozen_parts, plan_mixer
from lift.volumes.volume import FileGrid, Volume

CPU: Final = torch.device("cpu")
SOURCES: Final = ("t1n", "t2w")
TARGET: Final = "t2f"
SIZE: Final = (16, 24)
"""Rows and columns of a prepared patient's slices."""
FILE_SHAPE: Final = (22, 26, 9)


def small_generator(
    *,
    context_slices: int = 0,
    seed: int = 0,
    multipliers: tuple[int, ...] = (1, 2, 2),
    over: Literal["picture", "mask"] = "picture",
) -> FrozenGenerator:
    config = UNetConfig(
        width=4,
        multipliers=multipliers,
        n_source=len(SOURCES),
        context_slices=context_slices,
        normalise_over=over,
    )
    network = build_network(config, seed=seed)
    assert isinstance(network, UNet)
    rules = small_plan().preprocessing
    card = GeneratorCard(
        format_version=config.card_version,
        network=config,
        source=SOURCES,
        target=TARGET,
        taps={n: TapShape(channels=t.channels, stride=t.stride) for n, t in network.taps.items()},
        normalisation={name: rules.rule(name) for name in (*SOURCES, TARGET)},
        training_data="none: random weights",
        licence="Apache-2.0",
        fingerprint=network_fingerprint(config, network.state_dict()),
        made_with="tests",
        trained_steps=0,
    )
    return FrozenGenerator(network, card)


def small_plan(
    kind: MixerKind = "zrefine",
    *,
    generator: FrozenGenerator | None = None,
    target: str = TARGET,
    training: dict[str, object] | None = None,
    preprocessing: dict[str, object] | None = None,
    rounds: int = 2,
) -> Plan:
    data: dict[str, object] = {
        "task": {"source": list(SOURCES), "target": target},
        "seed": 11,
        "threads": 1,
        "generator_fingerprint": None if generator is None else generator.fingerprint,
        "preprocessing": {"crop_multiple": 4, **(preprocessing or {})},
        "mixer": {"kind": kind, "width": 4},
        "training": {
            "steps": 3,
            "patients_per_step": 2,
            "window": [5, 8, 8],
            "warmup_steps": 1,
            **(training or {}),
        },
        "federation": {"rounds": rounds},
        "privacy": {"mode": "none"},
    }
    return Plan.from_data(data, "test")


def random_mixer(plan: Plan, generator: FrozenGenerator, *, seed: int = 4) -> Mixer:
    """The plan's mixer with no parameter at its start and none 0."""
    mixer = plan_mixer(plan, generator)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return mixer


def small_prepared(
    depth: int = 7,
    *,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
    with_target: bool = True,
    spacing_mm: float = 2.0,
) -> Prepared:
    """A random patient whose mask has holes and an empty border column."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((depth, 1, *size)) > 0.2).astype(np.float32)
    mask[..., -1] = 0.0
    grid = FileGrid(
        shape=(size[1], size[0], depth),
        affine=np.eye(4),
        orientation=np.array([[0, 1], [1, 1], [2, 1]], dtype=np.float64),
        dtype=np.dtype(np.int16),
        slope=1.0,
        inter=0.0,
        header=nibabel.Nifti1Header(),
    )
    whole = (depth, *size)
    return Prepared(
        source=rng.random((depth, len(SOURCES), *size), dtype=np.float32),
        target=rng.random((depth, 1, *size), dtype=np.float32) if with_target else None,
        mask=mask,
        spacing_mm=(spacing_mm, 1.0, 1.0),
        reference=Volume(np.zeros((2, 2, 2), np.int16), np.eye(4), grid, "0" * 64),
        crop=CropBox(whole, (0, 0, 0), whole),
        target_scale=None,
        plane="axial",
    )


def features_of(prepared: Prepared, generator: FrozenGenerator, kind: MixerKind) -> Features:
    """What a mixer of this kind finds in the cache."""
    taps, pooled = mixer_needs(MixerPlan(kind=kind, width=4), frozen_parts(generator))
    return compute_features(prepared, generator, taps, pooled)


def small_cohort(
    generator: FrozenGenerator, kind: MixerKind = "zrefine", depths: Sequence[int] = (7, 9, 6)
) -> list[Features]:
    return [
        features_of(small_prepared(depth, seed=seed), generator, kind)
        for seed, depth in enumerate(depths)
    ]


def same_features(one: Features, other: Features) -> bool:
    """Equal types, shapes and bits in every part."""

    def parts(features: Features) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {
            "source": features.source,
            "pred": features.pred,
            "mask": features.mask,
        }
        if features.target is not None:
            found["target"] = features.target
        found |= {f"tap {name}": tap for name, tap in features.taps.items()}
        return found | {f"pooled {name}": rows for name, rows in features.pooled.items()}

    left, right = parts(one), parts(other)
    return (
        one.slice_spacing_mm == other.slice_spacing_mm
        and left.keys() == right.keys()
        and all(
            left[name].dtype == right[name].dtype
            and left[name].shape == right[name].shape
            and left[name].tobytes() == right[name].tobytes()
            for name in left
        )
    )


def write_brats_patient(
    root: Path,
    name: str = "BraTS-GLI-00000-000",
    *,
    channels: Sequence[str] = (*SOURCES, TARGET),
    affine: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> dict[str, Path]:
    """One head-like patient in BraTS layout, channel -> file, stored with the given affine."""
    rng = np.random.default_rng(seed)
    places = [np.linspace(-1, 1, n) for n in FILE_SHAPE]
    x, y, z = np.meshgrid(*places, indexing="ij")
    head = x**2 + y**2 + (0.6 * z) ** 2 < 0.8
    folder = root / name
    folder.mkdir(parents=True)
    files = {}
    for channel in channels:
        voxels = (head * rng.integers(200, 900, FILE_SHAPE)).astype(np.int16)
        stored = np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine
        files[channel] = folder / f"{name}-{channel}.nii.gz"
        nibabel.Nifti1Image(voxels, stored).to_filename(files[channel])
    return files


def assert_four_parts(error: LiftError) -> None:
    assert all((error.what, error.where, error.seen, error.remedy))


def mixer_needs(plan: MixerPlan, frozen: FrozenParts) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the taps, and of the pooled taps, that the plan's mixer asks of the generator."""
    mixer = build_mixer(plan, frozen, seed=0)
    return mixer.tap_names, mixer.pooled_names
