"""Sites with labels and a decoder, and the settings of the smallest experiment on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lift.cohort.patients import Patient
from lift.config.decoder import DecoderPretrainConfig
from lift.tasks.unconditional.pretraining import pretrain_decoder
from lift_benchmarks.downstream.config import PairSegmenterSettings
from tests.end_to_end.tiny_run import SHAPE, changed, make_patient, patient_name, write_nifti
from tests.lift.unconditional.tiny_decoder import CHANNEL, CPU, pca_data, plan_data, write_settings

PUBLIC = 20
SITES = {"east": 24, "west": 24, "small": 6}
GAUSSIAN = {"positions": 6, "covariance": "sketch", "columns": 64}
SMALL = PairSegmenterSettings(
    width=4, steps=80, volumes_per_step=2, learning_rate=0.1, synthetic_share=0.5
)


def ball(rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """A test's body with a bright ball in it somewhere, and the ball."""
    body = make_patient(rng)[CHANNEL]
    places = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    middle = np.array(SHAPE) / 2 + rng.uniform(-1, 1, 3) * (3, 4, 0.5)
    away = (places - middle[:, None, None, None]) * np.array([2.0, 2.0, 3.0])[:, None, None, None]
    inside = np.sqrt((away**2).sum(0)) < rng.uniform(10, 13)
    return np.where(inside, 1500, body), inside.astype(np.uint8)


@dataclass(frozen=True)
class World:
    """Three sites with labels, and settings."""

    folder: Path
    bundle: Path

    def root(self, site: str) -> Path:
        return self.folder / site

    def label(self, patient: str) -> Path:
        return self.folder / "labels" / f"{patient}.nii.gz"

    def patient(self, site: str, index: int) -> Patient:
        name = f"{site}-{patient_name(index)}"
        path = self.root(site) / f"{name}-{CHANNEL}.nii.gz"
        return Patient(name, name, {CHANNEL: path}, None)

    def config(self, file: str = "tiny", **changes: object) -> Path:
        data: dict[str, object] = {
            "name": "tiny",
            "data_statement": "Random ellipsoids made by a test; no patient was scanned.",
            # random ellipsoids are no pair for the image checks
            "image_checks": False,
            "generator": {"bundle": str(self.bundle)},
            "sites": [
                {
                    "name": site,
                    "data": {
                        "layout": "table",
                        "root": str(self.root(site)),
                        "table": str(self.root(site) / "table.csv"),
                    },
                }
                for site in SITES
            ],
            "plan": plan_data(
                split={"train": 0.85, "validation": 0.0},
                unconditional__trajectory="gaussian",
                unconditional__gaussian=GAUSSIAN,
                federation__rounds=0,
            ),
            "device": "cpu",
        }
        return write_settings(self.folder / f"{file}.yaml", changed(data, changes))

    def settings(self, file: str = "settings", **changes: object) -> Path:
        data: dict[str, object] = {
            "threads": 1,
            "seeds": 1,
            "pairs": 12,
            "segmenter": SMALL.model_dump(mode="json"),
            "data_sets": {
                "tiny": {
                    "site": "small",
                    "few": [2],
                    "labels": str(self.label("{patient}")),
                    "reach_mm": 12.0,
                    "waves": [12, 12],
                }
            },
        }
        return write_settings(self.folder / f"{file}.yaml", changed(data, changes))


def make_world(folder: Path) -> World:
    """Write all that is needed into a folder."""
    for index in range(PUBLIC):
        name = patient_name(index)
        voxels, _ = ball(np.random.default_rng([80, index]))
        write_nifti(folder / "public" / name / f"{name}-{CHANNEL}.nii.gz", voxels)
    data = pca_data(folder / "public", network__axes=24)
    pretraining = DecoderPretrainConfig.from_data(data, "test")
    pretrain_decoder(pretraining, folder / "decoder", work=folder / "work", device=CPU)
    world = World(folder, folder / "decoder")
    for number, (site, patients) in enumerate(SITES.items()):
        rows = [f"patient,{CHANNEL}"]
        for index in range(patients):
            voxels, label = ball(np.random.default_rng([90 + number, index]))
            patient = world.patient(site, index)
            write_nifti(patient.channels[CHANNEL], voxels)
            write_nifti(world.label(patient.id), label, dtype=np.uint8)
            rows.append(f"{patient.id},{patient.channels[CHANNEL].name}")
        (world.root(site) / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return world
