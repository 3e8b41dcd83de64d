"""Checks of foreign state dicts against what a network needs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def without_module_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the leading `module.` that data-parallel training leaves."""
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def first_misfit(given: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> str | None:
    """Return the fault of the first tensor, by name, that is missing, extra or misshapen.

    None when names and shapes agree; number formats and values are not looked at.
    """
    for name in sorted({*given, *needed}):
        if name not in given:
            return f"tensor {name} is missing"
        if name not in needed:
            return f"tensor {name} is not part of the network"
        seen, wanted = list(given[name].shape), list(needed[name].shape)
        if seen != wanted:
            return f"tensor {name} is {seen}; the network needs {wanted}"
    return None
