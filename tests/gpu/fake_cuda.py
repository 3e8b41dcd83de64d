"""A fake CUDA device whose numbers are computed on the CPU.

A tensor on it is a :class:`FakeCuda`, which holds a CPU tensor. As on a real device, an operation
on tensors of two devices is an error, and so is a NumPy view of a tensor on it. Each read of its
numbers from the host is counted with its place: on a real device the host waits there.

Half precision is the CPU's: `torch.autocast("cuda", dtype)` becomes the CPU's autocast of that
dtype. Memory has a limit where a test gives one: a larger tensor is an out-of-memory error.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA: Final = torch.device("cuda", 0)
CPU: Final = torch.device("cpu")
PROJECT: Final = Path(__file__).parents[2]
# their result has a size that depends on the numbers, or is a number: the host must wait
_READS: Final = {
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
}
_COPIES: Final = {"copy_", "_to_copy"}
# a tensor on the device may be indexed by one of the host
_INDEXED: Final = {"index", "index_put", "index_put_", "_unsafe_index"}
# torch's own Python code calls them below the mode
_FACTORIES: Final = (
    "arange",
    "as_tensor",
    "empty",
    "eye",
    "full",
    "linspace",
    "ones",
    "rand",
    "randn",
    "scalar_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
)
_NUMPY: Final[set[Any]] = {Tensor.numpy, Tensor.__array__}


@dataclass
class Device:
    """The fake device while it is there.

    Attributes:
        largest: numbers that one tensor may have; None: any.
        used: NUMBER of a device -> tensors that were made there.
        reads: PLACE -> how often the host read numbers of the device there.
        uploads: PLACE -> how often a tensor went to the device there.
    """

    largest: int | None = None
    used: Counter[int] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)


_present: list[Device] = []


class FakeCuda(Tensor):
    """A tensor on the fake device; a CPU tensor holds its numbers."""

    numbers: Tensor
    gpu: int
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor, index: int) -> FakeCuda:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CPU,
        )
        made.numbers, made.gpu = inner, index
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute in torch's stubs
        return torch.device("cuda", self.gpu)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeCuda({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        _refuse_two_devices(name, args, kwargs)
        _count(name, args)
        index = next(leaf.gpu for leaf in tree_leaves((args, kwargs)) if _is_fake(leaf))
        if kwargs.get("device") is not None:
            # torch's own code takes it from a tensor, and sees the CPU behind it
            kwargs["device"] = CPU
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        mine = {id(_inner(leaf)): leaf for leaf in tree_leaves((args, kwargs)) if _is_fake(leaf)}
        # an operation in place gives back the very tensor that it was given
        return tree_map(lambda leaf: mine.get(id(leaf), _wrapped(leaf, index)), result)


class _Up(torch.autograd.Function):
    """From the host to the device."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: int) -> Any:
        _device().uploads[place()] += 1
        return _wrapped(tensor.detach().clone(), index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _inner(gradient), None


class _Down(torch.autograd.Function):
    """From the device to the host, which waits."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Any:
        _device().reads[place()] += 1
        ctx.index = tensor.device.index
        return _inner(tensor).detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _wrapped(gradient, ctx.index)


class _Calls(TorchFunctionMode):
    """What torch does differently with a CUDA device, at the level of its Python functions."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first: Any = args[0] if args else None
        if func in _NUMPY and _is_fake(first):
            raise TypeError(
                f"can't convert {first.device} device type tensor to numpy. Use Tensor.cpu() to "
                f"copy the tensor to host memory first (in {place()})"
            )
        if func is Tensor.pin_memory:
            return first
        if func is Tensor.cpu:
            return _moved(first, CPU)
        if func is Tensor.cuda:
            return _moved(first, CUDA)
        if func is Tensor.tolist and _is_fake(first):
            return _moved(first, CPU).tolist()
        if func is Tensor.to:
            return _to(first, args[1:], kwargs)
        return _made(func, *args, **kwargs)


@contextlib.contextmanager
def fake_cuda(*, largest: int | None = None, devices: int = 1) -> Iterator[Device]:
    """Inside the block there is a CUDA device, and `device: auto` takes it.

    Args:
        largest: numbers that one tensor may have before the device's memory is full.
        devices: how many torch sees.
    """
    device = Device(largest)
    with contextlib.ExitStack() as stack:
        _present.append(device)
        stack.callback(_present.pop)
        for owner, name, made in (
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: devices),
            (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
            (torch.cuda, "get_device_name", lambda device=None: "fake CUDA device"),
            (torch.cuda, "empty_cache", lambda: None),
            (torch.cuda, "synchronize", lambda device=None: None),
            (torch.cuda, "reset_peak_memory_stats", lambda device=None: None),
            (torch.cuda, "max_memory_allocated", lambda device=None: 0),
            (torch, "autocast", _autocast),
            (clip_grad, "_group_tensors_by_device_and_dtype", _grouped),
            (nn.Module, "to", _module_to),
            (nn.Module, "cpu", lambda module: _module_to(module, CPU)),
            (nn.Module, "cuda", lambda module: _module_to(module, CUDA)),
        ):
            stack.enter_context(mock.patch.object(owner, name, made))
        for name in _FACTORIES:
            made = functools.partial(_made, getattr(torch, name))
            stack.enter_context(mock.patch.object(torch, name, made))
        stack.enter_context(_Calls())
        yield device


def _made(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function makes where its argument `device` says, if it has one."""
    device = kwargs.get("device")
    if device is None:
        return func(*args, **kwargs)
    if not _is_cuda(device):
        return _inner(func(*tree_map(_inner, args), **tree_map(_inner, kwargs)))
    # the one on the device is the leaf, not the one behind it
    needs_gradient = kwargs.pop("requires_grad", False)
    inner = func(*tree_map(_inner, args), **tree_map(_inner, {**kwargs, "device": CPU}))
    return _wrapped(inner, _index(device)).requires_grad_(needs_gradient)


def _refuse_two_devices(name: str, args: Any, kwargs: Any) -> None:
    """A tensor of the host without axes counts as a number, as it does in torch."""
    if name in _COPIES:
        return
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    hosts = [t for t in tensors if not _is_fake(t) and t.dim() > 0]
    if name in _INDEXED and _is_fake(args[0]):
        hosts = [t for t in hosts if t.dtype not in {torch.int32, torch.int64, torch.bool}]
    places = {f"cuda:{t.gpu}" for t in tensors if isinstance(t, FakeCuda)}
    if hosts or len(places) > 1:
        seen = " and ".join([*sorted(places), *(["cpu"] if hosts else [])])
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{seen}! ({name} in {place()})"
        )


def _count(name: str, args: Any) -> None:
    if name in _READS or (name == "copy_" and _is_fake(args[1]) and not _is_fake(args[0])):
        _device().reads[place()] += 1
    if name == "copy_" and _is_fake(args[0]) and not _is_fake(args[1]):
        _device().uploads[place()] += 1


def _to(tensor: Tensor, rest: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """`Tensor.to`, in all its forms."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for given in (*rest, *([kwargs["other"]] if "other" in kwargs else [])):
        if isinstance(given, Tensor):
            device, dtype = given.device, given.dtype
        elif isinstance(given, torch.dtype):
            dtype = given
        elif isinstance(given, str | torch.device):
            device = given
    # a module's vectors have no such format, and torch leaves them as they are
    format_ = kwargs.get("memory_format") if tensor.dim() == 4 else None
    meant = {"dtype": dtype, "memory_format": format_}
    wanted = {name: value for name, value in meant.items() if value is not None}
    if kwargs.get("copy"):
        tensor = tensor.clone()
    if torch.device(device or tensor.device).type == "meta":
        return tensor.to(device, **wanted)
    moved = tensor if device is None else _moved(tensor, torch.device(device))
    # below the mode, or it would end here again
    with torch._C.DisableTorchFunction():
        return moved.to(**wanted) if wanted else moved


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if isinstance(tensor, FakeCuda):
        if _is_cuda(device) and _index(device) == tensor.gpu:
            return tensor
        tensor = _Down.apply(tensor)  # type: ignore[no-untyped-call]
    moved: Tensor = tensor
    if _is_cuda(device):
        moved = _Up.apply(tensor, _index(device))  # type: ignore[no-untyped-call]
    return moved


def _module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`nn.Module.to`: torch's own would put the parameters' numbers into the tensors there are."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    moved = _to(parameter.detach(), args, kwargs)
                if moved.device != parameter.device or moved.dtype != parameter.dtype:
                    part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _to(buffer, args, kwargs)
    return module


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    return _TORCH_AUTOCAST("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


_TORCH_AUTOCAST: Final = torch.autocast


def _grouped(lists: Sequence[Sequence[Tensor]], with_indices: bool = False) -> Any:
    """Torch's own looks at the device in C++ and sees the CPU behind it."""
    (tensors,) = lists
    groups: dict[Any, Any] = {}
    for index, tensor in enumerate(tensors):
        mine, places = groups.setdefault((tensor.device, tensor.dtype), ([[]], []))
        mine[0].append(tensor)
        places.append(index)
    return groups


def _wrapped(leaf: Any, index: int) -> Any:
    if not isinstance(leaf, Tensor) or _is_fake(leaf):
        return leaf
    largest = _device().largest
    if largest is not None and leaf.numel() > largest:
        raise torch.OutOfMemoryError(f"CUDA out of memory ({leaf.numel()} numbers in {place()})")
    _device().used[index] += 1
    return FakeCuda(leaf, index)


def _inner(leaf: Any) -> Any:
    return leaf.numbers if isinstance(leaf, FakeCuda) else leaf


def _is_fake(leaf: Any) -> bool:
    return isinstance(leaf, FakeCuda)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _index(device: Any) -> int:
    return torch.device(device).index or 0


def _device() -> Device:
    # a tensor may outlive its device, in a garbage collector's or a fixture's hands
    return _present[-1] if _present else Device()


def place() -> str:
    """The line of the product that is at work: its file below the project, and number."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PROJECT) and "tests" not in path.parts and ".venv" not in path.parts:
            return f"{path.relative_to(PROJECT).as_posix()}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "a test"
