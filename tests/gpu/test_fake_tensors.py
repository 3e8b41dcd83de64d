"""The five paths on fake tensors of a CUDA device, and mistakes that each of them must notice."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Final

# MONAI and Opacus make tensors when they are imported: not among fake ones
import monai.networks.nets.basic_unet
import monai.networks.nets.segresnet
import monai.networks.nets.unet  # noqa: F401
import opacus.grad_sample  # noqa: F401
import pytest
import torch
from torch import Tensor

from lift.config.generator import NetworkConfig
from lift.config.plan import MixerKind
from tests.gpu import paths
from tests.gpu.fake_cuda import CUDA
from tests.gpu.fake_tensors import fake_tensors
from tests.lift.mixer_cases import KINDS

ATTRACTIONS: Final = ("samples", "anchors", "random_features", "moments")


@pytest.mark.parametrize("config", paths.NETWORKS, ids=lambda config: config.name)
def test_frozen_generator(config: NetworkConfig) -> None:
    paths.check_generator(config)


@pytest.mark.parametrize("kind", KINDS)
def test_mixer(kind: MixerKind) -> None:
    paths.check_mixer(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_training_step(kind: MixerKind) -> None:
    paths.check_training_step(kind)


@pytest.mark.parametrize("attraction", ATTRACTIONS)
def test_drifting_step(attraction: str) -> None:
    paths.check_drifting_step(attraction)


@pytest.mark.parametrize("kind", KINDS)
def test_synthesis(kind: MixerKind) -> None:
    paths.check_synthesis(kind)


# path -> its check, and a function of the product in it that gives a tensor on the device
PATHS: Final[dict[str, tuple[Callable[[], object], str]]] = {
    "generator": (
        lambda: paths.check_generator(paths.NETWORKS[0]),
        "lift.generator.networks:UNet.decode",
    ),
    "mixer": (lambda: paths.check_mixer("zrefine"), "lift.mixer.zrefine:replicate_depth"),
    "training": (
        lambda: paths.check_training_step("zrefine_lite"),
        "lift.tasks.paired.training:paired_loss",
    ),
    "drifting": (
        lambda: paths.check_drifting_step("anchors"),
        "lift.tasks.unconditional.drifting.loss:clip_length",
    ),
    "synthesis": (
        lambda: paths.check_synthesis("zrefine_lite"),
        "lift.tasks.paired.synthesis:to_device",
    ),
}


def to_the_cpu(tensor: Tensor) -> Tensor:
    return tensor.to("cpu")


def through_numpy(tensor: Tensor) -> Tensor:
    return torch.from_numpy(tensor.detach().numpy())


def with_the_cpu_s_generator(tensor: Tensor) -> Tensor:
    noise = torch.rand(tensor.shape, generator=torch.Generator(), device=tensor.device)
    return tensor + 0.0 * noise


@pytest.mark.parametrize(
    ("mistake", "seen"),
    [
        # a convolution looks at formats first; of a loss on the CPU each step's is read
        (to_the_cpu, r"cuda:0 and cpu|Input type \(float\) and bias|paired/training\.py"),
        (through_numpy, "can't convert cuda:0 device type tensor to numpy"),
        (with_the_cpu_s_generator, "Expected a 'cuda' device type for generator"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_a_planted_mistake_is_noticed(
    path: str, mistake: Callable[[Tensor], Tensor], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, name = PATHS[path]
    function = pkgutil.resolve_name(name)
    monkeypatch.setattr(
        name.replace(":", "."), lambda *args, **options: mistake(function(*args, **options))
    )
    with pytest.raises((RuntimeError, TypeError, AssertionError), match=seen):
        check()


def test_numbers_are_made_up_and_reads_of_the_device_counted() -> None:
    with fake_tensors() as seen:
        here, there = torch.ones(2), torch.ones(2, device=CUDA)
        assert torch.tensor([3, 4]).tolist() == [3, 4]
        assert here.sum().item() == 1.0
        assert not seen.reads
        assert bool((there > 0).all())
        assert there.tolist() == [1.0, 1.0]
        assert there.cpu().numpy().tolist() == [0.0, 0.0]
        assert seen.reads.total() == 3
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            there + here


def test_outside_the_block_nothing_is_fake() -> None:
    before = (torch.nn.Module.to, torch.cuda.is_bf16_supported)
    with fake_tensors():
        pass
    assert (torch.nn.Module.to, torch.cuda.is_bf16_supported) == before
    assert torch.ones(2).sum().item() == 2.0
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(2, device="xla")[0]
