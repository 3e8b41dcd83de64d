"""Where torch computes: the device that was asked for, its precision, and its memory."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from lift.config.site import SiteSettings
from lift.device import (
    AtOnce,
    busy_notice,
    feature_precision,
    resolve_device,
    training_autocast,
)
from lift.errors import ConfigError, DeviceMemoryError
from tests.gpu.fake_cuda import fake_cuda


def test_features_of_a_gpu_have_a_precision_of_their_own() -> None:
    assert feature_precision(torch.device("cpu")) == "float32"
    assert feature_precision(torch.device("cuda")) == "float16"


def test_device_is_the_one_asked_for() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    else:
        assert resolve_device("auto") == torch.device("cpu")
        with pytest.raises(ConfigError, match="device: cpu"):
            resolve_device("cuda")


def test_one_of_several_gpus_may_be_named() -> None:
    with fake_cuda(devices=2):
        assert resolve_device("cpu") == torch.device("cpu")
        assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
        assert resolve_device("cuda:1") == torch.device("cuda", 1)
        with pytest.raises(ConfigError, match="CUDA devices that torch sees: 2"):
            resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "words"),
    [("mps", "Apple's GPUs"), ("gpu", "auto, cpu, cuda or cuda:N"), ("cuda:01", "cuda:N")],
)
def test_another_device_is_refused_in_settings_and_on_the_command_line(
    name: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve_device(name)
    data = {"name": "east", "data": {"layout": "brats", "root": "data"}, "device": name}
    with pytest.raises(ConfigError, match=words):
        SiteSettings.from_data(data, "test")


def test_training_is_in_bfloat16_where_the_gpu_has_it() -> None:
    x = torch.rand(3, 4)
    with training_autocast(torch.device("cpu")):
        assert (x @ x.T).dtype == torch.float32
    with fake_cuda():
        y = x.to("cuda")
        with training_autocast(y.device):
            assert (y @ y.T).dtype == torch.bfloat16
        without = mock.patch("torch.cuda.is_bf16_supported", return_value=False)
        with without, training_autocast(y.device):
            assert (y @ y.T).dtype == torch.float32


def test_work_that_does_not_fit_is_halved_for_good() -> None:
    asked: list[int] = []

    def compute(rows: int) -> int:
        asked.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError
        return rows

    at_once = AtOnce(7, torch.device("cuda"))
    with fake_cuda():
        assert (at_once.attempt(compute), at_once.attempt(compute)) == (2, 2)
        assert asked == [7, 4, 2, 2]
        with pytest.raises(DeviceMemoryError) as caught:
            AtOnce(1, torch.device("cuda")).attempt(lambda rows: compute(rows + 2))
    assert caught.value.exit_code == 2
    assert "device: cpu" in caught.value.remedy


@pytest.mark.parametrize(
    ("load", "threads", "told"),
    [(0.2, 2, False), (3.0, 2, False), (9.5, 2, True), (9.5, 1, False), (3.5, 4, True)],
)
def test_a_busy_machine_is_said_where_threads_would_wait_for_each_other(
    load: float, threads: int, told: bool
) -> None:
    with (
        mock.patch("os.cpu_count", return_value=3),
        mock.patch("os.getloadavg", return_value=(load, 0.0, 0.0)),
    ):
        notice = busy_notice(threads)
    assert bool(notice) == told
    assert not told or f"{load:.1f} processes want its 3 cores" in notice
