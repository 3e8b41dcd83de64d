"""Whole federations on a fake CUDA device: they end, and learn what they learn on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lift.config.decoder import DecoderPretrainConfig
from lift.config.plan import MixerKind, Plan
from lift.config.privacy import PatientGradients
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.private.training import clipped_sum, train_round_privately
from lift.tasks.unconditional.pretraining import pretrain_decoder
from tests.end_to_end.tiny_run import TinyRun
from tests.gpu.checks import (
    LEAST_COSINE,
    check_features_of_both_precisions,
    check_no_read_between_steps,
    check_paired,
    check_same,
    cosine,
    paired_plan,
    run_paired,
)
from tests.gpu.fake_cuda import CUDA, fake_cuda
from tests.gpu.world import federate
from tests.lift.mixer_cases import KINDS
from tests.lift.privacy.streams import KnownStream
from tests.lift.small_world import SIZE, small_cohort, small_generator, small_plan
from tests.lift.unconditional.tiny_decoder import CPU, plan_data, pretrain_data, write_bodies

ATTRACTIONS = ("samples", "anchors", "random_features", "moments")
LOCAL: dict[str, object] = {
    "mode": "patient-local",
    "delta": 1e-4,
    "public_patients": 4,
    "clip_norm": 0.05,
    "noise_multiplier": 2.0,
    "sampling_rate": 0.5,
    "engine": "loop",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_mixer_learns_on_the_device_what_it_learns_on_the_cpu(
    tiny: TinyRun, tmp_path: Path, kind: MixerKind
) -> None:
    device = check_paired(tmp_path, tiny, kind)
    assert device.uploads


def test_the_host_reads_nothing_between_the_steps_of_a_round(tiny: TinyRun, tmp_path: Path) -> None:
    check_no_read_between_steps(tmp_path, tiny)


def test_cached_features_are_those_of_one_precision(tiny: TinyRun, tmp_path: Path) -> None:
    check_features_of_both_precisions(tmp_path, tiny)


def test_a_device_with_little_memory_computes_the_same_in_parts(
    tiny: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # one window of 6 x 16 x 16 with 29 channels has 44,544 numbers: two patients' do not fit
    check_paired(tmp_path, tiny, largest=60_000)
    assert "event=device_memory_full device=cuda:0 rows_at_once=1" in caplog.text


def test_patient_local_rounds_end_on_the_device(tiny: TinyRun, tmp_path: Path) -> None:
    plan = paired_plan(privacy=LOCAL)
    with fake_cuda():
        found = run_paired(tmp_path, tiny, plan)
    assert found.devices == {"cuda:0"}
    assert [record.kind for record in found.records] == ["statistics", "train", "train"]
    assert all(set(record.counted) == {"east", "west"} for record in found.records)


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_round_and_a_clipped_sum_are_those_of_the_cpu(kind: MixerKind) -> None:
    # everybody, and windows as large as the volumes: nothing is left to chance
    whole: dict[str, object] = {"window": [9, *SIZE]}
    privacy = PatientGradients.from_data({**LOCAL, "sampling_rate": 1.0}, "test")

    def computed(device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
        generator = small_generator().to(device)
        plan = small_plan(kind, generator=generator, training=whole)
        plan = plan.model_copy(update={"privacy": privacy})
        mixer = plan_mixer(plan, generator)
        start = mixer.values()
        patients = [[features] for features in small_cohort(generator, kind)]
        trained = train_round_privately(
            mixer,
            start,
            patients,
            plan,
            privacy,
            round_index=1,
            site="north",
            stream=KnownStream(),
        )
        change = {n: (trained.values[n] - start[n]).numpy() for n in start}
        return change, clipped_sum(mixer, start, patients, plan, privacy, stream=KnownStream())

    expected, expected_sum = computed(CPU)
    with fake_cuda():
        found, found_sum = computed(CUDA)
    assert cosine(found, expected) > LEAST_COSINE
    assert cosine(found_sum, expected_sum) > LEAST_COSINE


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bodies")
    return {site: write_bodies(folder / site, 50 + i, 6) for i, site in enumerate(("east", "west"))}


@pytest.fixture(scope="module")
def decoder_with_moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moments")
    data = pretrain_data(
        write_bodies(folder / "public", 77, 20),
        steps=40,
        statistics=["anchors", "random_features", "moments"],
    )
    config = DecoderPretrainConfig.from_data(data, "test")
    pretrain_decoder(config, folder / "decoder", work=folder / "work", device=CPU)
    return folder / "decoder"


@pytest.mark.parametrize("attraction", ATTRACTIONS)
def test_every_attraction_draws_on_the_device_as_on_the_cpu(
    decoder_with_moments: Path, bodies: dict[str, Path], tmp_path: Path, attraction: str
) -> None:
    loss = "drift" if attraction == "samples" else "hybrid"
    plan = Plan.from_data(
        plan_data(
            unconditional__attraction=attraction,
            unconditional__loss=loss,
            split={"train": 1.0, "validation": 0.0},
        ),
        "test",
    )
    expected = federate(tmp_path / "cpu", decoder_with_moments, bodies, plan, device="cpu")
    with fake_cuda():
        found = federate(tmp_path / "gpu", decoder_with_moments, bodies, plan)
    check_same(found, expected)
