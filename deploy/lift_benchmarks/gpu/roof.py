"""What the device can do at most, measured; and what a network asks of it, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lift_benchmarks.gpu.machine import Machine


@dataclass(frozen=True)
class Roof:
    """Measured rates.

    Attributes:
        tflops: number format -> 1e12 floating-point operations a second, of a matrix product.
        copy_gb_s: bytes read and written by a copy within the device, 1e9 a second.
    """

    tflops: dict[torch.dtype, float]
    copy_gb_s: float


def measure_roof(machine: Machine, *, side: int, copied_bytes: int) -> Roof:
    """Rates of square matrix products and of a copy.

    Args:
        machine: the device.
        side: of the matrices.
        copied_bytes: of the tensor that is copied.
    """
    tflops = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        one = torch.ones(side, side, dtype=dtype, device=machine.device)
        out = torch.empty_like(one)
        taken = machine.seconds(partial(torch.mm, one, one, out=out))
        tflops[dtype] = 2 * side**3 / taken / 1e12
    source = torch.ones(copied_bytes, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    copy_s = machine.seconds(lambda: target.copy_(source))
    return Roof(tflops, 2 * copied_bytes / copy_s / 1e9)


class Work(TorchDispatchMode):
    """Counts what is computed inside the block, operation by operation; tensors may be on `meta`.

    Attributes:
        flops: of convolutions and matrix products, 2 for a multiplication and an addition.
        moved_bytes: of all operations' inputs and results, as if each were read and written once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.flops = 0
        self.moved_bytes = 0
        self._operations: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # a view moves nothing
        if not func.is_view:
            count = flop_registry.get(func.overloadpacket)
            flops = 0 if count is None else int(count(*args, **kwargs, out_val=result))
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self._operations.append((flops, moved))
            self.flops += flops
            self.moved_bytes += moved
        return result

    def least_s(self, roof: Roof, dtype: torch.dtype) -> float:
        """Seconds below the roof: each operation is bound by its arithmetic or by its bytes."""
        flops_s, bytes_s = roof.tflops[dtype] * 1e12, roof.copy_gb_s * 1e9
        return sum(max(flops / flops_s, moved / bytes_s) for flops, moved in self._operations)


def work_of(run: Callable[[], object]) -> Work:
    """What one call does; the tensors that it makes itself are on `meta`."""
    work = Work()
    with torch.device("meta"), torch.no_grad(), work:
        run()
    return work
