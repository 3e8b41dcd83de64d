"""Tensors without numbers on a CUDA device that need not be there: torch's own FakeTensorMode.

It knows device, number format and shape of every result, and autocast of a CUDA device is CUDA's.
Three things are added, since torch only stops there:

- a number that the host reads is made up (1, or true). Reads of numbers on the device are counted
  with their place; what has a size that depends on numbers gets the largest size;
- NumPy gets an array of zeros for a tensor of the host, and is refused one on the device;
- a random generator on another device than what it fills is refused: FakeTensorMode takes any.

Where torch's C++ code asks a tensor on the device for its device it is told `xla:0`: without CUDA
it has no guard for a CUDA device, and its autograd engine refuses one. CUDA's autocast takes
tensors of both. Python code sees the CUDA device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from lift.generator import blocks
from lift.generator.blocks import PlaneBox
from lift.tasks.paired import synthesis
from tests.gpu.fake_cuda import CUDA, place

_NUMPY: Final[set[Any]] = {Tensor.numpy, Tensor.__array__}
_ATEN: Final = torch.ops.aten
_TOLD: Final = torch.device("xla", 0)
# c10::DeviceType
_XLA, _META = 9, 14


@dataclass
class Seen:
    """What happened inside the block.

    Attributes:
        reads: PLACE -> how often the host read numbers of the device there.
        formats: of the results of products of matrices and of convolutions on the device.
    """

    reads: Counter[str] = field(default_factory=Counter)
    formats: set[torch.dtype] = field(default_factory=set)


@contextlib.contextmanager
def fake_tensors() -> Iterator[Seen]:
    """Inside the block all tensors are fake, and there is a CUDA device."""
    seen = Seen()
    with contextlib.ExitStack() as stack:
        for owner, name, made in (
            (nn.Module, "to", _module_to),
            # cuDNN's form of the weights of a GRU: nothing of it can be seen here
            (nn.RNNBase, "flatten_parameters", lambda module: None),
            (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
            (torch.cuda, "empty_cache", lambda: None),
            (FakeTensor, "tolist", functools.partialmethod(_list, seen)),
            # small tensors that the host makes of numbers keep them
            (fake_tensor, "CONSTANT_NUMEL_LIMIT", 64),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            # the host finds the box from the mask's numbers, which no fake tensor has
            (synthesis, "mask_box", _whole_box),
            (blocks, "mask_box", _whole_box),
        ):
            stack.enter_context(mock.patch.object(owner, name, made))
        stack.enter_context(_guard())
        stack.enter_context(torch.autograd.set_multithreading_enabled(mode=False))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        stack.enter_context(_Operations(seen))
        stack.enter_context(_Calls())
        yield seen


def _whole_box(mask: Tensor, multiple: int) -> PlaneBox:
    del multiple
    return slice(0, mask.shape[-2]), slice(0, mask.shape[-1])


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Above FakeTensorMode."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return _TOLD if _is_there(args[0]) else args[0].fake_device
        packet = func.overloadpacket
        if kwargs.get("device") == _TOLD:
            # C++ code has it from a tensor on the device
            kwargs["device"] = CUDA
        from_there = any(_is_there(leaf) for leaf in tree_leaves((args, kwargs)))
        made_up = _MADE_UP.get(packet)
        if made_up is not None:
            if from_there:
                self._seen.reads[place()] += 1
            return made_up(*args, **kwargs)
        result = func(*args, **kwargs)
        if from_there and packet in _COPIES and not _is_there(result):
            self._seen.reads[place()] += 1
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != result.device.type:
            raise RuntimeError(
                f"Expected a '{result.device.type}' device type for generator but found "
                f"'{generator.device.type}' (in {place()})"
            )
        if packet in _PRODUCTS and _is_there(result):
            self._seen.formats.add(result.dtype)
        return result


class _Calls(TorchFunctionMode):
    """What FakeTensorMode does not do at the level of torch's Python functions."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _NUMPY:
            (tensor, *_) = args
            if _is_there(tensor):
                raise TypeError(
                    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy "
                    f"the tensor to host memory first (in {place()})"
                )
            return np.zeros(tuple(tensor.shape), _format(tensor))
        if func is Tensor.pin_memory:
            return args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    """Give torch the guard of `meta`, which does nothing, for the device that C++ code is told."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(
        library, "_ZN3c104impl26device_guard_impl_registryE"
    )
    before, guards[_XLA] = guards[_XLA], guards[_META]
    try:
        yield
    finally:
        guards[_XLA] = before


def _list(tensor: FakeTensor, seen: Seen) -> Any:
    if _is_there(tensor):
        seen.reads[place()] += 1
    known = _known(tensor)
    return np.ones(tuple(tensor.shape), _format(tensor)).tolist() if known is None else known


def _format(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _number(tensor: FakeTensor) -> Any:
    known = _known(tensor)
    if known is not None:
        return known
    return tensor.dtype == torch.bool or (1.0 if tensor.dtype.is_floating_point else 1)


def _known(tensor: FakeTensor) -> Any:
    """The numbers of a small tensor that the host has just made of numbers; else None."""
    if tensor.constant is None:
        return None
    with _disable_current_modes():
        return tensor.constant.tolist()


def _counts(tensor: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return tensor.new_ones(max(minlength, 1))


def _distinct(tensor: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    whole = tensor.flatten()
    return whole, torch.zeros_like(tensor), torch.ones_like(whole)


_MADE_UP: Final[dict[Any, Callable[..., Any]]] = {
    _ATEN._local_scalar_dense: _number,
    _ATEN.is_nonzero: lambda tensor: True,
    _ATEN.equal: lambda one, other: one.shape == other.shape,
    _ATEN.bincount: _counts,
    _ATEN._unique2: _distinct,
    _ATEN.unique_consecutive: _distinct,
}
_COPIES: Final = {_ATEN._to_copy, _ATEN.copy_}
_PRODUCTS: Final = {
    _ATEN.convolution,
    _ATEN.convolution_backward,
    _ATEN.mm,
    _ATEN.addmm,
    _ATEN.bmm,
}


def _module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`nn.Module.to`: torch's own exchanges tensors in place, which fake ones cannot."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = parameter.detach().to(*args, **kwargs)
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(*args, **kwargs)
        if isinstance(part, nn.RNNBase):
            part._flat_weights = [getattr(part, name) for name in part._flat_weights_names]
    return module


def _is_there(leaf: Any) -> bool:
    return isinstance(leaf, FakeTensor) and leaf.fake_device.type == "cuda"
