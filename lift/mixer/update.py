"""Updates: the change by a site's training, as named tensors.

An update is `new - old` of the mixer's trainable tensors. It is the only thing that
training sends.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lift.errors import NonFiniteUpdateError

Values = Mapping[str, Tensor]


def difference(new: Values, old: Values) -> dict[str, Tensor]:
    """The update new - old, float32, names sorted; names and shapes must be the same.

    Raises:
        ValueError: a name or a shape differs.
        NonFiniteUpdateError: the update holds NaN or infinity (training diverged).
    """
    check_same_form(new, old)
    update = {name: new[name].float() - old[name].float() for name in sorted(new)}
    if not is_finite(update):
        raise NonFiniteUpdateError(
            "the update is not finite",
            seen="training at this site diverged: the mixer holds NaN or infinity",
            remedy="Nothing was sent. Lower training.learning_rate in the plan.",
        )
    return update


def add(values: Values, update: Values, *, scale: float = 1.0) -> dict[str, Tensor]:
    """The sum values + scale * update, taken in float64 and rounded to float32 once."""
    check_same_form(values, update)
    return {
        name: (values[name].double() + scale * update[name].double()).float()
        for name in sorted(values)
    }


def norm(update: Values) -> float:
    """Joint L2 norm of all tensors, as one float64 vector."""
    total = sum(float(tensor.double().square().sum()) for _, tensor in sorted(update.items()))
    return float(total**0.5)


def is_finite(update: Values) -> bool:
    """Whether every number is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in update.values())


def check_same_form(first: Values, second: Values) -> None:
    """Raise ValueError, naming the first difference, unless names and shapes agree."""
    if set(first) != set(second):
        raise ValueError(f"tensor names differ: {sorted(set(first) ^ set(second))}")
    for name in sorted(first):
        if first[name].shape != second[name].shape:
            raise ValueError(
                f"shape of '{name}' differs: {tuple(first[name].shape)} and "
                f"{tuple(second[name].shape)}"
            )
