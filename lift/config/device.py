"""The name of a device in settings and on command lines."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator

EVERY_GPU: Final = "cuda:all"
"""All GPUs that torch sees."""
_NUMBERED: Final = re.compile(r"cuda:(0|[1-9][0-9]?)")
_KNOWN: Final = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?")


def check_device_name(name: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N`; whether the machine has it is not asked here.

    Raises:
        ValueError: anything else.
    """
    if _KNOWN.fullmatch(name):
        return name
    if name == "mps":
        # no float64, which sums and statistics need, and few deterministic kernels
        raise ValueError("Apple's GPUs cannot compute this (they have no float64); give cpu")
    raise ValueError("a device is auto, cpu, cuda or cuda:N (N: the GPU's number, from 0)")


def check_device_names(names: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """One device, `cuda:all`, or several GPUs by their numbers.

    Raises:
        ValueError: anything else.
    """
    if isinstance(names, str):
        return names if names == EVERY_GPU else check_device_name(names)
    if not names or len(set(names)) < len(names) or not all(map(_NUMBERED.fullmatch, names)):
        # a CPU computes in other number formats: sites on both would be of two kinds
        raise ValueError("several devices are different GPUs by number, as in [cuda:0, cuda:1]")
    return names


DeviceName = Annotated[str, AfterValidator(check_device_name)]
"""auto: the GPU when there is one."""
DeviceNames = Annotated[str | tuple[str, ...], AfterValidator(check_device_names)]
"""One device, or several GPUs."""
