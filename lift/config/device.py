"""The name of a device in settings and on command lines."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator

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


DeviceName = Annotated[str, AfterValidator(check_device_name)]
"""auto: the GPU when there is one."""
