"""Mappers that must not pass for real: each is a negative control of the judge.

`rejected/phantom-t1-mapper.npz` holds twenty volumes of the mapper that the preset phantom-t1
trained before there was a Gaussian: twenty rounds of drifting, all aims of that time met. PHANTOM
data; grey values are rounded to 63 steps, as are those of the real phantoms beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
import yaml

from lift.config.decoder import DecoderPretrainConfig
from lift.metrics.judge import classifier_figures
from lift.metrics.volume_sets import ImageVolume, MeasuredSet, measure_volumes
from lift.mixer.finished import FinishedMixer, write_mixer
from lift.records.metrics import Measure
from lift.report.aims import aims_of
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.grid import same_view
from lift.tasks.unconditional.learning import plan_mapper
from lift.tasks.unconditional.pretraining import read_public_volumes
from lift.triplanar.encoder import RandomPyramid
from lift.triplanar.groups import GroupLayout
from tests.lift.unconditional.mapper_volumes import mapper_volumes
from tests.lift.unconditional.tiny_decoder import pretrain_data, tiny_plan, write_bodies

COUNT: Final = 24
REJECTED: Final = Path(__file__).parent / "rejected" / "phantom-t1-mapper.npz"
STEPS: Final = 63
SPACING_MM: Final = (4.35, 3.5, 3.5)
SCANNERS: Final = {"north": 40, "harbour": 24, "valley": 16}
PRETRAINING: Final = Path(__file__).parents[3] / "configs" / "pretrain" / "phantom-t1n-slices.yaml"
LAYOUT: Final = GroupLayout(2, 2, 2, windows=1)


def measured(volumes: Sequence[ImageVolume]) -> MeasuredSet:
    return measure_volumes(volumes, layout=LAYOUT, encoder=RandomPyramid(5))


def real_volumes(
    config: DecoderPretrainConfig, folder: Path, made: Sequence[ImageVolume]
) -> list[ImageVolume]:
    """Volumes of the settings' cohorts, in the generated ones' field of view."""
    slices, spacing_mm = made[0].voxels.shape[0], made[0].spacing_mm
    bodies = [
        same_view(volume.body, slices, spacing_mm[0])
        for volume in read_public_volumes(config, folder)
    ]
    return [ImageVolume(body.voxels[0, 0].clamp(0, 1), body.spacing_mm) for body in bodies]


def missed(made: Sequence[ImageVolume], real: Sequence[ImageVolume]) -> set[str]:
    """Metrics whose aims these volumes miss, of those that need no other row."""
    found = classifier_figures(measured(made), measured(real), seed=1, repeats=4)
    row = {name: Measure(value=figure.value) for name, figure in found.items()}
    return {aim.metric for aim in aims_of({"federated": row}) if aim.outcome == "missed"}


@pytest.fixture(scope="module")
def untrained(decoder: FrozenDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = tiny_plan(decoder)
    path = tmp_path_factory.mktemp("mapper") / "mixer.safetensors"
    values = plan_mapper(plan, decoder).values()
    write_mixer(path, FinishedMixer(values, torch.empty(0), plan, (), phantom=True))
    return path


def test_an_untrained_mapper_is_told_from_real_volumes(
    untrained: Path, decoder_bundle: Path, tmp_path: Path
) -> None:
    made = mapper_volumes(untrained, decoder_bundle, count=COUNT)
    config = DecoderPretrainConfig.from_data(
        pretrain_data(write_bodies(tmp_path / "bodies", 91, 2 * COUNT)), "test"
    )
    real = real_volumes(config, tmp_path, made)
    assert missed(made, real[:COUNT]) == {"auc_content", "auc_texture"}
    assert missed(real[COUNT:], real[:COUNT]) == set()


def rounded(voxels: torch.Tensor) -> torch.Tensor:
    return (voxels.clamp(0, 1) * STEPS).round() / STEPS


def test_the_former_preset_s_mapper_stays_rejected(tmp_path: Path) -> None:
    with np.load(REJECTED, allow_pickle=False) as stored:
        volumes = torch.from_numpy(stored["volumes"].astype(np.float32)) / STEPS
    made = [ImageVolume(voxels, SPACING_MM) for voxels in volumes]
    settings = yaml.safe_load(PRETRAINING.read_text(encoding="utf-8"))
    cohort = settings["cohorts"][0] | {"seed": 77}
    settings["cohorts"] = [
        cohort | {"scanner": name, "patients": patients} for name, patients in SCANNERS.items()
    ]
    real = [
        ImageVolume(rounded(volume.voxels), volume.spacing_mm)
        for volume in real_volumes(
            DecoderPretrainConfig.from_data(settings, "test"), tmp_path, made
        )
    ]
    order = np.random.default_rng(0).permutation(len(real))
    one, other = ([real[i] for i in half] for half in np.split(order, 2))
    assert missed(made, one) == {"auc_content", "auc_texture"}
    assert missed(other, one) == set()
