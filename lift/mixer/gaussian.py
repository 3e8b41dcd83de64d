"""The Gaussian trajectory: latents along the body from moments, and a residual that is learned.

Volumes are drawn from a Markov chain over positions (`lift.tasks.unconditional.moments`); between
two positions latents are interpolated. On top of it a small network may learn a residual from a
position's latents and its place, which is 0 at first: at first this *is* the Gaussian, as a mixer
at first is its z-filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from lift.config.plan import MapperPlan
from lift.mixer.trained import TrainedPart
from lift.mixer.trajectory import position_code

_SMALL: Final = 1e-4


@dataclass(frozen=True)
class GaussianNoise:
    """The random numbers of some volumes, standard normal.

    Attributes:
        joint: (b, K, D); of whole trajectories (b, 1, columns).
        tail: (b, K, tail), or (b, 1, 0).
    """

    joint: Tensor
    tail: Tensor

    def to(self, device: torch.device) -> GaussianNoise:
        """The same on another device."""
        return GaussianNoise(self.joint.to(device), self.tail.to(device))


class GaussianTrajectory(TrainedPart):
    """See the module.

    Args:
        positions: K.
        joint: places of the joint state's latents among the decoder's; its last number, the
            body's length, is none of them.
        tail: places of the other latents.
        residual: sizes of the learned network; None: there is none.
        rest: places of latents that are 0 but for the residual.
        columns: of a Gaussian of whole trajectories, whose latents are all tail; 0: a chain.
    """

    mean: Tensor
    first: Tensor
    step: Tensor
    noise: Tensor
    tail_sd: Tensor
    tail_step: Tensor
    factor: Tensor
    _order: Tensor

    def __init__(
        self,
        positions: int,
        joint: tuple[int, ...],
        tail: tuple[int, ...],
        residual: MapperPlan | None,
        rest: tuple[int, ...] = (),
        columns: int = 0,
    ) -> None:
        super().__init__()
        k, d, t = positions, len(joint) + 1, len(tail)
        self.positions, self.joint, self.tail, self.rest = k, joint, tail, rest
        self.columns = columns
        shapes: dict[str, tuple[int, ...]] = {"mean": (k, d + t)}
        if columns:
            shapes["factor"] = (k * (d + t), columns)
        else:
            shapes |= {"first": (d, d), "step": (k - 1, d, d), "noise": (k - 1, d, d)}
            shapes |= {"tail_sd": (k, t), "tail_step": (k - 1, t)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        latents = len(joint) + t + len(rest)
        order = torch.tensor((*joint, *tail, *rest)).argsort()
        self.register_buffer("_order", order, persistent=False)
        self.octaves = 0
        self.residual: nn.Sequential | None = None
        if residual is not None:
            self.octaves = residual.octaves
            size = latents + 1 + 2 * residual.octaves
            layers: list[nn.Module] = []
            for _ in range(residual.layers):
                layers += [nn.Linear(size, residual.width), nn.SiLU()]
                size = residual.width
            out = nn.Linear(size, latents)
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
            self.residual = nn.Sequential(*layers, out)

    def load_gaussian(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the Gaussian, by the names of its tensors.

        Raises:
            ValueError: a name is missing or extra, or a shape differs.
        """
        own = {n: b for n, b in self.named_buffers() if not n.startswith("_")}
        if set(own) != set(tensors):
            raise ValueError(f"the Gaussian does not fit: names {sorted(set(own) ^ set(tensors))}")
        for name, buffer in own.items():
            if buffer.shape != tensors[name].shape:
                raise ValueError(
                    f"the Gaussian does not fit: {name} is {tuple(tensors[name].shape)}, needed "
                    f"{tuple(buffer.shape)}"
                )
        with torch.no_grad():
            for name, buffer in own.items():
                buffer.copy_(tensors[name])

    def draw(self, volumes: int, generator: torch.Generator) -> GaussianNoise:
        """All that is random in `volumes` new volumes, on the CPU: whatever their slices."""
        k = self.positions
        if self.columns:
            factors = torch.randn(volumes, 1, self.columns, generator=generator)
            return GaussianNoise(factors, torch.zeros(volumes, 1, 0))
        return GaussianNoise(
            torch.randn(volumes, k, len(self.joint) + 1, generator=generator),
            torch.randn(volumes, k, len(self.tail), generator=generator),
        )

    def states(self, noise: GaussianNoise) -> Tensor:
        """Joint state and tail at all positions, (b, K, D + tail)."""
        d = len(self.joint) + 1
        if self.columns:
            whole = (noise.joint[:, 0] @ self.factor.mT).view(-1, *self.mean.shape) + self.mean
            whole[:, :, d - 1] = whole[:, :1, d - 1]
            return whole
        state = noise.joint[:, 0] @ self.first.mT
        rest = noise.tail[:, 0]
        found = [torch.cat([state, rest * self.tail_sd[0]], dim=1)]
        for k in range(self.positions - 1):
            state = state @ self.step[k].mT + noise.joint[:, k + 1] @ self.noise[k].mT
            carried = self.tail_step[k]
            rest = (
                carried * rest + (1 - carried.square()).clamp_min(0).sqrt() * noise.tail[:, k + 1]
            )
            found.append(torch.cat([state, rest * self.tail_sd[k + 1]], dim=1))
        states = torch.stack(found, dim=1) + self.mean
        # the length is one number of a volume, whatever rounding along the chain does to it
        states[:, :, d - 1] = states[:, :1, d - 1]
        return states

    def lengths(self, noise: GaussianNoise) -> Tensor:
        """The length of each volume's body, (b,), in the units of the moments."""
        return self.states(noise)[:, 0, len(self.joint)]

    def gaussian(self, noise: GaussianNoise, position: Tensor) -> Tensor:
        """Slice latents before anything is learned, (b, z, L); arguments as in :meth:`forward`."""
        states = self.states(noise)
        place = position.clamp(0, 1) * (self.positions - 1)
        lower = place.long().clamp_max(self.positions - 2)
        share = (place - lower)[None, :, None]
        between = states[:, lower] * (1 - share) + states[:, lower + 1] * share
        joint = len(self.joint)
        still = between.new_zeros(*between.shape[:2], len(self.rest))
        latents = torch.cat([between[..., :joint], between[..., joint + 1 :], still], dim=2)
        return latents[..., self._order]

    def forward(self, noise: GaussianNoise, position: Tensor) -> Tensor:
        """Slice latents, (b, z, L).

        Args:
            noise: of b volumes.
            position: of z slices along the body, in [0, 1], (z,), the same for all volumes.
        """
        return self.refined(self.gaussian(noise, position), position)

    def refined(self, latents: Tensor, position: Tensor) -> Tensor:
        """The Gaussian's slice latents with what was learned, (b, z, L).

        Args:
            latents: from :meth:`gaussian`.
            position: as there.
        """
        if self.residual is None:
            return latents
        code = position_code(position, self.octaves).expand(len(latents), -1, -1)
        learned: Tensor = self.residual(torch.cat([latents, code], dim=2))
        return latents + learned

    def outside(self, latents: Tensor, position: Tensor) -> float:
        """How far latents lie from the Gaussian: RMS of their distance from its mean, each in units
        of its own standard deviation there; about 1 inside.

        Args:
            latents: (b, z, L).
            position: of the z slices.
        """
        d = len(self.joint) + 1
        if self.columns:
            spread = self.factor.square().sum(1).view_as(self.mean)[:, d:]
        else:
            variance = [self.first.square().sum(1)]
            covariance = self.first @ self.first.mT
            for step, noise in zip(self.step, self.noise, strict=True):
                covariance = step @ covariance @ step.mT + noise @ noise.mT
                variance.append(covariance.diagonal())
            spread = torch.cat([torch.stack(variance)[:, : d - 1], self.tail_sd.square()], dim=1)
        mean = torch.cat([self.mean[:, : d - 1], self.mean[:, d:]], dim=1)
        nearest = (position.clamp(0, 1) * (self.positions - 1)).round().long()
        # of the others nothing is known
        known = latents[..., [*self.joint, *self.tail]]
        distance = (known - mean[nearest]).square() / spread[nearest].clamp_min(1e-6)
        return float(distance.mean().sqrt())


def held_inside(latents: Tensor, gaussian: Tensor) -> Tensor:
    """How far a batch's latents have moved in mean and spread from the Gaussian's own, a scalar.

    The mean over places of the squared shift of the mean, and of the logarithm of the variance,
    over the batch. Both batches come from one noise, so that what is learned is seen, not chance.

    Args:
        latents: what the mapper gives, (b, z, L).
        gaussian: the same volumes before anything was learned.
    """
    shift = (latents - gaussian).mean(0)
    spread = (latents.var(0) + _SMALL).log() - (gaussian.var(0) + _SMALL).log()
    return shift.square().mean() + spread.square().mean()
