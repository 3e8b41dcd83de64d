"""The drifting loss: a scalar whose gradient is the force on the generated features.

For each row x_i of a group, with weight w_i in the generated mean,

    loss = sum_i w_i |x_i - stop(clip(x_i) + F_i)|^2 / 2,   d loss / d x_i = -w_i F_i inside.

F, taken at clip(x_i), is eta * net force (`drift`), -d MMD^2 / d x_i / w_i (`mmd`), or both added
(`hybrid`). Features beyond the projection's radius have their goal inside it: a generator far
outside is pulled inwards instead of losing its gradient to the clip. The weights give every
volume, and every window of a volume, the same say.

The drift's part is about constant by construction: watch the figures, not the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lift.tasks.unconditional.drifting.attraction import Attraction, RandomFeatures
from lift.triplanar.features import Rows
from lift.triplanar.standardise import RADIUS, clip_length

LossKind = Literal["drift", "mmd", "hybrid"]


@dataclass(frozen=True)
class DriftingLoss:
    """The loss of one step.

    Attributes:
        kind: `drift`, `mmd` or `hybrid`.
        attraction: source of the drift; not used by `mmd`.
        random_features: source of the MMD; not used by `drift`.
        eta: length of the drift's step, in mean distances; 0.5 at first, 0.2 later.
        mmd_weight: factor of the MMD's force.
        radius: features are clipped to this length before any force is computed.
    """

    kind: LossKind
    attraction: Attraction | None = None
    random_features: RandomFeatures | None = None
    eta: float = 0.5
    mmd_weight: float = 1.0
    radius: float = RADIUS

    def __post_init__(self) -> None:
        if self.kind not in {"drift", "mmd", "hybrid"}:
            raise ValueError(f"the loss is drift, mmd or hybrid (seen: {self.kind})")
        if self.kind != "mmd" and self.attraction is None:
            raise ValueError(f"{self.kind} needs an attraction")
        if self.kind != "drift" and self.random_features is None:
            raise ValueError(f"{self.kind} needs random features")

    def __call__(self, groups: Mapping[int, Rows]) -> tuple[Tensor, dict[str, float]]:
        """The loss, a mean over groups, and figures for the log (means over groups too).

        Figures: `loss`; `outside`, share of rows beyond the radius; `drift_rms_S` for each width
        or temperature S, the force before normalisation; `mmd2_S`, the squared MMD. The last two
        fall as generated and real features meet.

        Raises:
            ValueError: no group, or groups of different volumes or numbers of windows.
        """
        order = tuple(sorted(groups))
        if not order:
            raise ValueError("the loss needs at least one group")
        owner = groups[order[0]].owner
        if any(not torch.equal(groups[group].owner, owner) for group in order):
            raise ValueError("all groups need the same volumes, with the same number of windows")
        x = torch.stack([groups[group].features for group in order])
        here = x.detach()
        inside = clip_length(here, self.radius)
        force = torch.zeros_like(inside)
        figures = {"outside": (here.norm(dim=2) > self.radius).float().mean()}
        if self.attraction is not None and self.kind != "mmd":
            net = self.attraction.net(inside, owner, order)
            force = force + self.eta * net.force
            for width, rms in zip(self.attraction.widths, net.rms.mean(1), strict=True):
                figures[f"drift_rms_{width:g}"] = rms
        if self.random_features is not None and self.kind != "drift":
            descent, mmd2 = self.random_features.mmd_force(inside, owner, order)
            force = force + self.mmd_weight * descent
            for width, value in zip(self.random_features.widths, mmd2.mean(1), strict=True):
                figures[f"mmd2_{width:g}"] = value
        square = (x - (inside + force)).square().sum(2)
        loss = (row_weights(owner).to(square) * square).sum() / (2 * len(order))
        figures["loss"] = loss.detach()
        # one transfer from the device, not one a figure
        values = torch.stack(list(figures.values())).tolist()
        return loss, dict(zip(figures, values, strict=True))


def row_weights(owner: Tensor) -> Tensor:
    """1 / (volumes * windows of the row's volume), (n,), float64: weights that sum to 1."""
    windows = torch.bincount(owner).double()
    return 1 / (len(windows) * windows[owner])
