"""cWDM's network: size and cost against the published figures and against sums by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lift.errors import ConfigError
from lift_benchmarks.bench.cwdm import STEPS, CwdmUnet
from lift_benchmarks.bench.flops import count_flops, cwdm_flops_per_step, unet2d_flops_per_slice

# Every residual block as (log2 of its grid's stride, channels in, channels out), written out
# from the published settings and not from the module under test.
BLOCKS = (
    *((0, 64, 64), (0, 64, 64)),
    *((1, 64, 64), (1, 64, 128), (1, 128, 128)),
    *((2, 128, 128), (2, 128, 128), (2, 128, 128)),
    *((3, 128, 128), (3, 128, 256), (3, 256, 256)),
    *((4, 256, 256), (4, 256, 256), (4, 256, 256)),
    *((4, 256, 256), (4, 256, 256)),
    *((4, 512, 256), (4, 512, 256), (4, 512, 256), (3, 256, 256)),
    *((3, 512, 256), (3, 512, 256), (3, 384, 256), (2, 256, 256)),
    *((2, 384, 128), (2, 256, 128), (2, 256, 128), (1, 128, 128)),
    *((1, 256, 128), (1, 256, 128), (1, 192, 128), (0, 128, 128)),
    *((0, 192, 64), (0, 128, 64), (0, 128, 64)),
)


def parameters_by_hand() -> int:
    total = (64 * 256 + 256) + (256 * 256 + 256)  # time
    total += 27 * 32 * 64 + 64 + 2 * 64 + 27 * 64 * 8 + 8  # stem, last norm, head
    for _, c_in, c_out in BLOCKS:
        total += 2 * c_in + 27 * c_in * c_out + c_out
        total += 256 * c_out + c_out
        total += 2 * c_out + 27 * c_out * c_out + c_out
        if c_in != c_out:
            total += c_in * c_out + c_out
    return total


def flops_by_hand(voxels: int) -> int:
    multiplications = 64 * 256 + 256 * 256 + 27 * voxels * (32 * 64 + 64 * 8)
    for level, c_in, c_out in BLOCKS:
        kernel = 27 * (c_in + c_out) + (c_in if c_in != c_out else 0)
        multiplications += kernel * c_out * voxels // 8**level + 256 * c_out
    return 2 * multiplications


def test_cwdm_has_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in CwdmUnet().parameters())
    assert count / 1e6 == pytest.approx(81.51, abs=0.005)
    assert count == parameters_by_hand()


def test_one_step_on_a_brats_volume_costs_its_known_flops() -> None:
    step = cwdm_flops_per_step()
    assert step / 1e12 == pytest.approx(7.169, abs=0.0005)
    assert STEPS * step / 1e15 == pytest.approx(7.17, abs=0.005)


@settings(max_examples=4)
@given(st.tuples(*[st.integers(1, 12)] * 3))
def test_flops_per_step_equal_the_sum_by_hand(sixteenths: tuple[int, int, int]) -> None:
    height, width, depth = (16 * side for side in sixteenths)
    assert cwdm_flops_per_step((height, width, depth)) == flops_by_hand(height * width * depth)


@pytest.mark.parametrize("size", [(112, 112, 78), (0, 16, 16), (16, 8, 16)])
def test_grids_that_cannot_be_halved_four_times_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="multiple of 16") as refusal:
        cwdm_flops_per_step(size)
    assert " x ".join(map(str, size)) in refusal.value.seen
    assert refusal.value.where
    assert refusal.value.remedy


def test_a_denoising_step_returns_eight_bands_that_depend_on_volume_and_time() -> None:
    torch.manual_seed(1)
    network = CwdmUnet().eval()
    noisy = torch.randn(1, 32, 16, 16, 16)
    with torch.no_grad():
        early = network(noisy, torch.tensor([900]))
        late = network(noisy, torch.tensor([3]))
        other = network(noisy.flip(1), torch.tensor([900]))
    assert early.shape == (1, 8, 16, 16, 16)
    assert early.isfinite().all()
    assert not torch.allclose(early, late, atol=1e-4)
    assert not torch.allclose(early, other, atol=1e-4)


@given(
    c_in=st.integers(1, 9),
    c_out=st.integers(1, 9),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    size=st.tuples(st.integers(5, 40), st.integers(5, 40)),
)
def test_a_multiplication_and_its_addition_are_two_flops(
    c_in: int, c_out: int, kernel: int, stride: int, size: tuple[int, int]
) -> None:
    network = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2)
    height, width = (-(-side // stride) for side in size)
    expected = 2 * kernel**2 * c_in * c_out * height * width
    assert unet2d_flops_per_slice(network, c_in, size) == expected


def test_flops_of_two_calls_add() -> None:
    def product() -> Tensor:
        return torch.empty(3, 5) @ torch.empty(5, 7)

    assert count_flops(product) == 2 * 3 * 5 * 7
    assert count_flops(lambda: F.relu(product()) + product()) == 2 * count_flops(product)


def test_counting_leaves_a_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    # 238 x 238 outputs: the convolution is not padded, and the default slice is 240 x 240
    assert unet2d_flops_per_slice(network, 2) == 2 * 238 * 238 * (9 * 2 * 4 + 4)
    after = network.state_dict()
    assert network.training
    assert all(value.device.type == "cpu" for value in after.values())
    assert all(torch.equal(before[name], after[name]) for name in before)
