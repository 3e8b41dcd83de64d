"""Five mistakes with devices, planted in the product: each makes a check of this suite fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lift.errors import QuorumError
from lift.mixer.trained import TrainedPart
from lift.tasks import registry
from tests.end_to_end.tiny_run import TinyRun
from tests.gpu.checks import (
    check_features_of_both_precisions,
    check_no_read_between_steps,
    check_paired,
)


def test_a_tensor_left_on_the_cpu(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lift.tasks.paired.windows.to_device", lambda tensor, device: tensor)
    with pytest.raises(QuorumError, match=r"east \(internal\)"):
        check_paired(tmp_path, tiny)


def test_a_numpy_view_of_a_tensor_on_the_device(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def values(part: TrainedPart) -> dict[str, Tensor]:
        named = dict(part.named_parameters())
        return {name: torch.from_numpy(named[name].detach().numpy().copy()) for name in named}

    monkeypatch.setattr(TrainedPart, "values", values)
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        check_paired(tmp_path, tiny)


def test_a_generator_on_the_wrong_device(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = registry.load_generator

    def load_on_the_cpu(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "device": torch.device("cpu")})

    monkeypatch.setattr("tests.gpu.world.load_generator", load_on_the_cpu)
    with pytest.raises(AssertionError, match=r"on \['cpu'\]"):
        check_paired(tmp_path, tiny)


def test_a_cached_feature_of_another_precision(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lift.tasks.paired.site_cohort.feature_precision", lambda device: "float32")
    with pytest.raises(AssertionError, match="stood for both"):
        check_features_of_both_precisions(tmp_path, tiny)


def test_a_number_read_in_the_loop_of_steps(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lift.tasks.paired import training

    loss_of = training.batch_loss

    def watched(*args: Any) -> Tensor:
        loss = loss_of(*args)
        assert loss.item() < 1e9
        return loss

    monkeypatch.setattr(training, "batch_loss", watched)
    with pytest.raises(AssertionError, match=r"lift/tasks/paired/training\.py"):
        check_no_read_between_steps(tmp_path, tiny)
