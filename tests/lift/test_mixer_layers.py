"""A convolution through slices, as it runs without gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lift.mixer.layers import apply_volume_conv, volume_conv

UNFOLDED = "aten::slow_conv3d"
HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def made(depth: int, batch: int = 1) -> tuple[nn.Conv3d, Tensor]:
    torch.manual_seed(depth)
    return volume_conv(3, 5), torch.randn(batch, 3, depth + 2, 6, 7)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 9])
def test_its_result_is_the_layers_own(depth: int, batch: int) -> None:
    conv, x = made(depth, batch)
    with torch.no_grad():
        found = apply_volume_conv(conv, x)
        torch.testing.assert_close(found, conv(x), rtol=0, atol=1e-5)
    assert found.shape == (batch, 5, depth, 6, 7)


def test_gradients_go_through_the_layer_itself() -> None:
    conv, x = made(4)
    seen: list[nn.Module] = []
    conv.register_forward_hook(lambda module, *_: seen.append(module))
    apply_volume_conv(conv, x).sum().backward()  # type: ignore[no-untyped-call]
    assert seen == [conv]
    assert conv.weight.grad is not None


@pytest.mark.skipif(not HAS_ONEDNN, reason="torch has one kernel here")
def test_no_neighbourhoods_are_unfolded() -> None:
    conv, x = made(8)

    def kernels(run: Callable[[Tensor], Tensor]) -> set[str]:
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
            run(x)
        return {event.key for event in seen.key_averages()}

    # the layer alone is the case that this is for
    assert UNFOLDED in kernels(conv)
    assert UNFOLDED not in kernels(partial(apply_volume_conv, conv))
