"""A slice decoder of seconds, from random ellipsoids, and what tests need around it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import yaml

from lift.config.decoder import DecoderPretrainConfig
from lift.config.plan import Plan
from lift.tasks.registry import with_generator
from lift.tasks.unconditional.bundle import load_decoder
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.pretraining import pretrain_decoder
from tests.cache import cached
from tests.end_to_end import tiny_run
from tests.end_to_end.tiny_run import changed, make_patient, patient_name, write_nifti

CPU = torch.device("cpu")
CHANNEL = "t1n"
PUBLIC_PATIENTS = 20


def write_bodies(folder: Path, seed: int, patients: int) -> Path:
    """Ellipsoids in BraTS layout, one channel each."""
    for index in range(patients):
        voxels = make_patient(np.random.default_rng([seed, index]))[CHANNEL]
        name = patient_name(index)
        write_nifti(folder / name / f"{name}-{CHANNEL}.nii.gz", voxels)
    return folder


def pretrain_data(public: Path, **changes: object) -> dict[str, object]:
    """Settings of `lift pretrain`, as YAML would hold them."""
    data: dict[str, object] = {
        "kind": "unconditional",
        "network": {
            "name": "slice_decoder",
            "image": [24, 16],
            "pixel_mm": 4.0,
            "latent": 6,
            "hidden": [16, 24],
        },
        "target": CHANNEL,
        "cohorts": [{"layout": "brats", "root": str(public)}],
        "training_data": "Random ellipsoids made by a test.",
        "licence": "Apache-2.0",
        # so few steps make nothing that a PCA does not make better
        "allow_weaker_than_pca": True,
        "steps": 400,
        "learning_rate": 5e-3,
        "batch_slices": 32,
        "encoder_channels": 4,
        "position_bins": [2, 2, 2],
        "dimension": 6,
        "anchors": 8,
        "random_features": 64,
        "validation_share": 0.1,
        "threads": 1,
        "seed": 5,
    }
    return changed(data, changes)


def pca_data(public: Path, **changes: object) -> dict[str, object]:
    """Settings of `lift pretrain` for a PCA decoder with as many latents."""
    of_training = {
        "allow_weaker_than_pca",
        "steps",
        "learning_rate",
        "batch_slices",
        "encoder_channels",
    }
    data = {name: value for name, value in pretrain_data(public).items() if name not in of_training}
    data["network"] = {"name": "pca", "image": [24, 16], "pixel_mm": 4.0, "axes": 4}
    return changed(data, changes)


def write_settings(path: Path, data: dict[str, object]) -> Path:
    """The settings as a YAML file."""
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def make_decoder(folder: Path) -> Path:
    """The tiny decoder's bundle, `folder/decoder`, from volumes in `folder/public`."""
    cached(folder, "decoder", _write_decoder, [Path(__file__), Path(tiny_run.__file__)])
    return folder / "decoder"


def make_pca(public: Path, folder: Path) -> Path:
    """The bundle, `folder/decoder`, of a PCA decoder."""
    config = DecoderPretrainConfig.from_data(pca_data(public), "test")
    pretrain_decoder(config, folder / "decoder", work=folder / "work", device=CPU)
    return folder / "decoder"


def plan_data(**changes: object) -> dict[str, object]:
    """An unconditional plan of seconds: a mapper alone, drawn by drifting statistics."""
    data: dict[str, object] = {
        "task": {"kind": "unconditional", "target": CHANNEL},
        "seed": 3,
        "threads": 1,
        "mixer": {"kind": "trajectory_mapper"},
        "unconditional": {
            "trajectory": "free",
            "mapper": {"latent": 8, "width": 16, "layers": 1, "variation_channels": 2},
            "volumes_per_step": 4,
            "groups_per_step": 2,
            "slices": 12,
            "slice_spacing_mm": 3.0,
        },
        "training": {"steps": 2, "warmup_steps": 1},
        "federation": {"rounds": 2, "deadline_s": 120.0},
        "privacy": {"mode": "none"},
    }
    return changed(data, changes)


def tiny_plan(decoder: FrozenDecoder, **changes: object) -> Plan:
    """The plan with the decoder's fingerprint and digest."""
    return with_generator(Plan.from_data(plan_data(**changes), "test"), decoder)


def tiny_decoder(folder: Path) -> FrozenDecoder:
    """The decoder of a bundle."""
    return load_decoder(folder, expected_fingerprint=None, device=CPU)


def _write_decoder(folder: Path) -> None:
    public = write_bodies(folder / "public", 77, PUBLIC_PATIENTS)
    config = DecoderPretrainConfig.from_data(pretrain_data(public), "test")
    pretrain_decoder(config, folder / "decoder", work=folder / "work", device=CPU)
    shutil.rmtree(folder / "work")
