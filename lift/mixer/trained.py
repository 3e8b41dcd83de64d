"""The interface of every trained part: named parameters that are sent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lift.device import device_of


class TrainedPart(nn.Module):
    """A module whose trainable parameters are sent, aggregated and loaded by name."""

    @property
    def device(self) -> torch.device:
        """Where this part is, and so where everything that goes into it must be."""
        return device_of(self)

    def parameter_count(self) -> int:
        """Number of trainable parameters, which is the size of an update."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def values(self) -> dict[str, Tensor]:
        """Name -> trainable tensor (detached copies on the CPU), sorted by name."""
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return {
            name: named[name].detach().to("cpu", torch.float32).clone() for name in sorted(named)
        }

    def load_values(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite the trainable tensors; names and shapes must match exactly.

        Raises:
            ValueError: a name is missing or extra, or a shape differs.
        """
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if set(named) != set(values):
            raise ValueError(f"mixer values do not fit: names {sorted(set(named) ^ set(values))}")
        with torch.no_grad():
            for name, parameter in named.items():
                if parameter.shape != values[name].shape:
                    raise ValueError(
                        f"mixer values do not fit: {name} is {tuple(values[name].shape)}, "
                        f"needed {tuple(parameter.shape)}"
                    )
                parameter.copy_(values[name])
