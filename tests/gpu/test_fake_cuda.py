"""The fake CUDA device itself: it refuses what a real one refuses, and gives the CPU's numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.gpu.fake_cuda import CUDA, FakeCuda, fake_cuda


def test_two_devices_do_not_meet_in_one_operation() -> None:
    host = torch.ones(3)
    with fake_cuda():
        there = host.to("cuda")
        refused: tuple[Callable[[], object], ...] = (
            lambda: there + host,
            lambda: host @ there,
            lambda: torch.cat([there, host]),
            lambda: host[torch.zeros(2, dtype=torch.int64, device="cuda")],
            lambda: nn.functional.linear(there, torch.ones(2, 3)),
            lambda: nn.Linear(3, 2)(there),
        )
        for wrong in refused:
            with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
                wrong()
        # a number may come from the host, and so may an index
        assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]
        assert there[torch.tensor([0, 1])].shape == (2,)


def test_numpy_sees_no_tensor_of_the_device() -> None:
    with fake_cuda():
        there = torch.ones(3, device="cuda")
        refused: tuple[Callable[[], object], ...] = (there.numpy, lambda: np.asarray(there))
        for wrong in refused:
            with pytest.raises(TypeError, match="can't convert cuda:0"):
                wrong()
        assert there.cpu().numpy().tolist() == [1.0, 1.0, 1.0]


def test_reads_and_uploads_are_counted_and_work_on_the_device_is_not() -> None:
    with fake_cuda() as device:
        there = torch.arange(4.0).to("cuda")
        assert (sum(device.uploads.values()), sum(device.reads.values())) == (1, 0)
        total = (there * there).sum() + torch.zeros((), device="cuda")
        assert sum(device.reads.values()) == 0
        reading: tuple[Callable[[], object], ...] = (
            total.item,
            total.tolist,
            total.cpu,
            total.__bool__,
        )
        for reads, read in enumerate(reading, 1):
            read()
            assert sum(device.reads.values()) == reads
        assert device.reads.keys() == {"a test"}


def test_gradients_cross_to_the_device_and_back() -> None:
    host = torch.arange(3.0, requires_grad=True)
    with fake_cuda():
        layer = nn.Linear(3, 1).to("cuda")
        weight = layer.weight.cpu().detach()
        layer(host.to("cuda")).cpu().sum().backward()
        assert layer.weight.device == CUDA
        assert isinstance(layer.weight.grad, FakeCuda)
        assert layer.weight.grad.tolist() == [[0.0, 1.0, 2.0]]
    assert host.grad is not None
    assert torch.equal(host.grad, weight[0])


def test_training_on_it_is_training_on_the_cpu() -> None:
    def trained(device: str) -> list[float]:
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Conv3d(1, 2, 3), nn.SiLU(), nn.Flatten(), nn.Linear(2, 1))
        layer = layer.to(device)
        x = torch.rand(2, 1, 3, 3, 3).to(device)
        optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            optimiser.zero_grad()
            loss = layer(x).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
        return losses

    expected = trained("cpu")
    with fake_cuda():
        assert trained("cuda") == expected


def test_a_tensor_larger_than_the_device_does_not_fit() -> None:
    with fake_cuda(largest=10):
        fits = torch.ones(2, 5, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(11, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            fits.repeat(2, 1)


def test_outside_the_block_there_is_no_device() -> None:
    before = (torch.zeros, torch.autocast, nn.Module.to, torch.cuda.is_available)
    with fake_cuda():
        assert torch.cuda.is_available()
    assert (torch.zeros, torch.autocast, nn.Module.to, torch.cuda.is_available) == before
