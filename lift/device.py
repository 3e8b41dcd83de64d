"""Device, precision and threads of torch."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import Tensor

from lift.config.device import EVERY_GPU, check_device_name
from lift.errors import ConfigError, DeviceMemoryError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# names and numbers of glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# blocks of a training window are smaller, those of a streamed large volume larger: the latter
# must go back, or the peak would hold them twice
_KEPT_BYTES = 32 << 20


def resolve_device(name: str) -> torch.device:
    """The device to compute on; `auto` is the GPU where there is one, else the CPU.

    Args:
        name: `auto`, `cpu`, `cuda`, or `cuda:N` for one of several GPUs.

    Raises:
        ConfigError: a GPU was asked for that torch does not see.
    """
    try:
        check_device_name(name)
    except ValueError as error:
        raise ConfigError(
            "cannot compute on this device",
            where="device",
            seen=f"'{name}'; {error}",
            remedy="Nothing was started. Correct `device`.",
        ) from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    device = torch.device("cuda" if name == "auto" else name)
    if (device.index or 0) >= count:
        raise ConfigError(
            "cannot compute on this GPU",
            where="device",
            seen=f"device is '{name}'; CUDA devices that torch sees: {count}",
            remedy="Check the driver and the container's GPU access, or set device: cpu.",
        )
    return device


def resolve_devices(names: str | Sequence[str]) -> tuple[torch.device, ...]:
    """The devices that sites are spread over: one, or several GPUs.

    Args:
        names: as for :func:`resolve_device`; or `cuda:all`, or `cuda:N` several times.

    Raises:
        ConfigError: a GPU was asked for that torch does not see.
    """
    if names == EVERY_GPU:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        # without any, the first one's message says what is missing
        names = [f"cuda:{number}" for number in range(max(count, 1))]
    return tuple(resolve_device(name) for name in ([names] if isinstance(names, str) else names))


class AtOnce:
    """Rows sent to the device at once: all, reduced when its memory is full.

    Then it is half as many for the rest of the work. A CPU raises no such error.

    Args:
        rows: at first.
        device: for the log and the message.
        setting: a smaller value of it makes one row smaller; for the message, empty: none does.
    """

    def __init__(self, rows: int, device: torch.device, setting: str = "") -> None:
        self._rows = rows
        self._device = device
        self._setting = setting

    def attempt(self, compute: Callable[[int], T]) -> T:
        """`compute(rows)`, again with half the rows each time that it does not fit.

        Raises:
            DeviceMemoryError: one row alone does not fit.
        """
        while True:
            try:
                return compute(self._rows)
            except torch.OutOfMemoryError:
                pass
            if self._rows <= 1:
                raise memory_error(self._device, self._setting)
            # only here, after the exception, is what the failed attempt held free
            torch.cuda.empty_cache()
            self._rows = -(-self._rows // 2)
            logger.warning(
                "event=device_memory_full device=%s rows_at_once=%d", self._device, self._rows
            )


def memory_error(device: torch.device | str, setting: str = "") -> DeviceMemoryError:
    """Return the error for a full device memory when the work cannot be split further.

    Args:
        device: whose memory is full.
        setting: of the plan or of the pre-training; less is needed where it is smaller.
    """
    smaller = f" Less is needed with a smaller {setting}." if setting else ""
    return DeviceMemoryError(
        "the memory of the device is full",
        where="device",
        seen=f"{device} cannot hold the least part of this work",
        remedy="Finished rounds and features are kept. End other programs on the device, name "
        f"another GPU (device: cuda:1), or set device: cpu; then run again.{smaller}",
    )


def training_autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 on a GPU that computes in it, else float32, in which a mixer trains on a CPU.

    float16 is no choice: without a scaled loss a third to a half of the gradients inside a mixer
    are below its smallest number and become 0.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def inference_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Half precision (float16, as the feature cache stores taps) on a GPU; nothing on a CPU."""
    if feature_precision(device) == "float16":
        return torch.autocast(device.type, dtype=torch.float16)
    return nullcontext()


def feature_precision(device: torch.device) -> Literal["float16", "float32"]:
    """The precision in which :func:`inference_autocast` lets a frozen generator compute."""
    return "float16" if device.type == "cuda" else "float32"


def device_of(part: object) -> torch.device:
    """Return the device of a module's tensors; the CPU if there are none."""
    if isinstance(part, torch.nn.Module):
        for tensor in (*part.parameters(), *part.buffers()):
            return tensor.device
    return torch.device("cpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; towards a GPU through pinned memory, without waiting."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fix_threads(threads: int) -> None:
    """Fix this process's CPU threads and choose deterministic kernels.

    On one kind of CPU, the same computation then gives the same bits. Where a GPU is present,
    an operation that has no deterministic kernel warns instead of stopping the run: bits are
    promised for CPUs only.
    """
    # cuBLAS reads this when it starts; without it, deterministic matrix products are refused
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    # the same switch as `use_deterministic_algorithms`, which would import torch's compiler
    torch.set_deterministic_debug_mode("warn" if torch.cuda.is_available() else "error")
    # nothing here reads memory before writing it; filling it would cost a pass by tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module object
    _keep_freed_memory()


def busy_notice(threads: int) -> str:
    """Return a warning if other processes use the cores of this machine, else empty.

    Threads that wait for each other suffer most: two on two busy cores were seen to be nine times
    slower than one.
    """
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads < 2 or load <= cores:
        return ""
    return (
        f"this machine is busy: {load:.1f} processes want its {cores} cores. The plan's {threads} "
        "threads wait for each other, which may take many times as long as 1 thread "
        "(plan.threads; another number gives other bits)"
    )


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks; elsewhere nothing happens.

    By default each large tensor is mapped, cleared by the kernel, and unmapped again: a
    third of the time of a training step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 4 * _KEPT_BYTES)
