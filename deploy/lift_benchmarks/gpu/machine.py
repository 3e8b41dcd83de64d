"""The device that is measured: its clock, its memory, its name."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import torch

_REPEATS: Final = 5
_DRIVER_FILE: Final = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Machine:
    """A device, and how long one part may repeat what it measures.

    Attributes:
        device: where everything is measured.
        part_s: seconds after which a part repeats nothing more.
    """

    device: torch.device
    part_s: float

    @property
    def is_gpu(self) -> bool:
        """Whether it has a memory and a clock of its own."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Return when all that was sent to the device is done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        """The median of up to five runs, after one that is not counted."""
        self._once(run)
        began = perf_counter()
        taken = [self._once(run)]
        while len(taken) < _REPEATS and perf_counter() - began < self.part_s:
            taken.append(self._once(run))
        return median(taken)

    def peak_gb(self, run: Callable[[], object]) -> float | None:
        """Most memory that tensors had on the device during one run; None on a CPU."""
        if not self.is_gpu:
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self._once(run)
        return torch.cuda.max_memory_allocated(self.device) / 1e9

    def described(self) -> dict[str, object]:
        """Names and versions for the result."""
        return {
            "device": torch.cuda.get_device_name(self.device) if self.is_gpu else "CPU",
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "driver": _driver() if self.is_gpu else None,
        }

    def _once(self, run: Callable[[], object]) -> float:
        self.wait()
        began = perf_counter()
        run()
        self.wait()
        return perf_counter() - began


def _driver() -> str | None:
    """Version of NVIDIA's kernel module; None where there is no such file."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER_FILE.read_text(encoding="utf-8"))
    except OSError:
        return None
    return None if found is None else found[0]
