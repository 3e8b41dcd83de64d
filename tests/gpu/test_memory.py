"""Training in a full device memory: the same numbers in smaller parts, or what to set."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lift.errors import DeviceMemoryError
from lift.generator.pretraining import train_on_arrays
from lift.mixer.base import Mixer
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.private.engines import ClippedSum, PatientLoop
from lift.tasks.paired.private.training import row_losses
from lift.tasks.paired.training import draw_batches, train_round
from tests.gpu.checks import cosine
from tests.gpu.fake_cuda import CUDA, fake_cuda
from tests.lift.small_world import small_cohort, small_generator, small_plan
from tests.lift.test_pretraining import DISCS, settings

FULL = "event=device_memory_full device=cuda:0 rows_at_once="
PLAN = small_plan(training={"patients_per_step": 4})


def test_pretraining_takes_the_same_steps_in_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(steps=3, window=[24, 16], validation_share=0.0)

    def trained(name: str, largest: int | None) -> dict[str, Tensor]:
        with fake_cuda(largest=largest):
            found = train_on_arrays(config, DISCS, work=tmp_path / name, device=CUDA)
            return {n: tensor.cpu() for n, tensor in found.network.state_dict().items()}

    expected = trained("whole", None)
    assert FULL not in caplog.text
    # of four slices of 24 x 16 with 12 channels two fit
    found = trained("parts", 10_000)
    assert f"{FULL}2" in caplog.text
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)
    with pytest.raises(DeviceMemoryError, match="with a smaller window"):
        trained("none", 2000)


def summed(mixer: Mixer, largest: int | None) -> ClippedSum:
    """One patient's clipped gradient, of four windows."""
    cohort = small_cohort(small_generator().to(CUDA))
    windows = list(draw_batches(mixer, cohort, PLAN.training, (1, 1, "north", 1), at_once=1))
    with fake_cuda(largest=largest):
        return PatientLoop().sum_of_clipped_gradients(
            mixer, [windows], row_losses(PLAN.training), 1.0
        )


def test_a_patient_s_gradient_is_the_same_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    with fake_cuda():
        mixer = plan_mixer(PLAN, small_generator().to(CUDA))
        expected = summed(mixer, None)
        assert 0 < expected.norms[0] < math.inf
        # of four windows of 5 x 8 x 8 with 29 channels two fit
        found = summed(mixer, 20_000)
    assert f"{FULL}2" in caplog.text
    # the device adds up in bfloat16
    totals = [{n: t.numpy() for n, t in each.total.items()} for each in (found, expected)]
    assert cosine(*totals) > 0.9999


def test_a_window_that_does_not_fit_ends_the_training_and_says_what_to_set() -> None:
    with fake_cuda() as device:
        generator = small_generator().to(CUDA)
        mixer = plan_mixer(PLAN, generator)
        cohort = small_cohort(generator)
        start = mixer.values()
        device.largest = 5000
        with pytest.raises(DeviceMemoryError, match=r"with a smaller training\.window"):
            train_round(mixer, start, cohort, PLAN, round_index=1, site="north")


def test_of_one_patient_it_ends_nothing_and_the_site_s_log_says_what_to_set(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with fake_cuda():
        found = summed(plan_mixer(PLAN, small_generator().to(CUDA)), 5000)
    assert found.norms == (math.inf,)
    assert not any(bool(tensor.any()) for tensor in found.total.values())
    assert "event=patient_adds_nothing" in caplog.text
    assert "with a smaller training.window" in caplog.text
