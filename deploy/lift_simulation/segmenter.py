"""The segmenter: a small U-Net on three neighbouring slices, its training, and its Dice.

Network, loss and augmentation are MONAI's. Everything random follows from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lift.config.segmentation import SegmenterSettings
from lift.device import device_of, to_device
from lift.randomness import derive_seed

_STRIDE: Final = 4
SLICES_OF_A_VOLUME: Final = 4
"""In a batch; they are changed alike."""
_REACH: Final = 1
"""Neighbouring slices on either side that the network sees."""
_SLICES_AT_ONCE: Final = 32
_LEAST_SPREAD: Final = 1e-3


@dataclass(frozen=True)
class Stack:
    """A volume as the segmenter sees it.

    Attributes:
        slices: at mean 0 and standard deviation 1 (see `stack_of`), the first and the last slice
            once more at the ends, (d + 2, h, w).
        label: 0 or 1, (d, h, w), float32.
    """

    slices: Tensor
    label: Tensor

    def at(self, index: int) -> Tensor:
        """A slice between its neighbours, (3, h, w)."""
        return self.slices[index : index + 2 * _REACH + 1]


@dataclass(frozen=True)
class Source:
    """Volumes to train on, and their share of each batch."""

    stacks: Sequence[Stack]
    share: float


def stack_of(voxels: Tensor, label: Tensor, inside: Tensor | None = None) -> Stack:
    """A volume and its label, ready for the segmenter.

    Args:
        voxels: (d, h, w).
        label: of the same shape.
        inside: where the volume counts: its mean and standard deviation are those in there, and it
            is 0 outside, however much of that the volume holds. None: everywhere.
    """
    values = voxels.double()
    counted = values if inside is None else values[inside > 0]
    spread = counted.std(unbiased=False).clamp_min(_LEAST_SPREAD)
    plain = ((values - counted.mean()) / spread).float()
    if inside is not None:
        plain = plain * (inside > 0)
    ends = torch.cat([plain[:1], plain, plain[-1:]])
    return Stack(ends, label.float())


def build_segmenter(settings: SegmenterSettings, seed: int) -> nn.Module:
    """An untrained segmenter: (n, 3, h, w) to logits (n, 1, h, w), sides multiples of 4.

    Args:
        settings: its width.
        seed: of its first numbers.
    """
    from monai.networks.nets.unet import UNet

    width = settings.width
    widths = (width, 2 * width, 4 * width)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "network"))
        network: nn.Module = UNet(
            2, 2 * _REACH + 1, 1, channels=widths, strides=(2, 2), num_res_units=1
        )
    return network


def train_segmenter(
    sources: Sequence[Source],
    settings: SegmenterSettings,
    *,
    seed: int,
    augmented: bool,
    device: torch.device,
    report: Callable[[int], None] | None = None,
) -> nn.Module:
    """A network that has taken `settings.steps` steps of Adam, its rate falling as a cosine.

    A batch is of several volumes, drawn by the shares of their sources, and has slices at random
    places of each: a volume counts the same whatever its number of slices.

    Args:
        sources: their shares add up to 1.
        settings: of the segmenter.
        seed: of its first numbers, its batches and its augmentation.
        augmented: change the slices of each volume at random, together, as is usual for MR (see
            `augmentation`).
        device: of the training; what is changed at random is changed on the CPU.
        report: called after each step with its number.

    Raises:
        ValueError: a source has no volume, or the shares do not add up to 1.
    """
    from monai.losses.dice import DiceCELoss

    if not all(source.stacks for source in sources):
        raise ValueError("a source has no volume")
    if not math.isclose(sum(source.share for source in sources), 1.0):
        raise ValueError("the shares of the sources must add up to 1")
    network = build_segmenter(settings, seed).to(device)
    loss_of = DiceCELoss(sigmoid=True, batch=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    rng = np.random.default_rng(derive_seed(seed, "batches"))
    change = augmentation(derive_seed(seed, "augmentation")) if augmented else None
    counts = _counts([source.share for source in sources], settings.volumes_per_step)
    for step in range(settings.steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        optimiser.param_groups[0]["lr"] = settings.learning_rate * rate
        images, labels = (to_device(part, device) for part in _batch(sources, counts, rng, change))
        loss = loss_of(network(_padded(images)), _padded(labels))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if report is not None:
            report(step + 1)
    trained: nn.Module = network.eval()
    return trained


def predict(network: nn.Module, stack: Stack) -> Tensor:
    """Where the network finds the label, (d, h, w); computed where the network is."""
    _, height, width = stack.label.shape
    device = device_of(network)
    windows = stack.slices.unfold(0, 2 * _REACH + 1, 1).movedim(3, 1)
    with torch.no_grad():
        found = [
            network(_padded(to_device(part.contiguous(), device)))[:, 0, :height, :width] > 0
            for part in torch.split(windows, _SLICES_AT_ONCE)
        ]
    return torch.cat(found).cpu()


def dice(found: Tensor, label: Tensor) -> float:
    """2 |A and B| / (|A| + |B|) of two masks of one shape; 1 where both are empty.

    Source: Dice 1945, doi:10.2307/1932409.
    """
    a, b = found > 0, label > 0
    both, either = int((a & b).sum()), int(a.sum()) + int(b.sum())
    return 2 * both / either if either else 1.0


Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def augmentation(seed: int) -> Change:
    """Random turns, sizes, shifts, blur, noise and gamma of slices (c, h, w) and their labels.

    Amounts are those that are usual for MR (nnU-Net), with smaller turns: heads lie alike. No
    mirror: left and right differ.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, supplementary note 4.
    """
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import (
        RandAdjustContrastd,
        RandGaussianNoised,
        RandGaussianSmoothd,
    )
    from monai.transforms.spatial.dictionary import RandAffined

    image = ["image"]
    chain = Compose(
        [
            RandAffined(
                ["image", "label"],
                prob=0.8,
                rotate_range=math.radians(15),
                scale_range=0.15,
                translate_range=3.0,
                mode=["bilinear", "nearest"],
                padding_mode="border",
            ),
            RandGaussianSmoothd(image, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), prob=0.2),
            RandGaussianNoised(image, prob=0.2, std=0.15),
            RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5)),
        ]
    )
    # MONAI's seeds have 32 bits
    chain.set_random_state(seed=seed % 2**32)

    def change(slices: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        made = chain({"image": slices, "label": label})
        return torch.as_tensor(made["image"]), torch.as_tensor(made["label"])

    return change


def _counts(shares: Sequence[float], volumes: int) -> list[int]:
    """Volumes of each source in a batch: the last one takes what is left, at least 1 each."""
    counts = [max(1, round(share * volumes)) for share in shares[:-1]]
    return [*counts, max(1, volumes - sum(counts))]


def _batch(
    sources: Sequence[Source],
    counts: Sequence[int],
    rng: np.random.Generator,
    change: Change | None,
) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for source, count in zip(sources, counts, strict=True):
        for _ in range(count):
            stack = source.stacks[int(rng.integers(len(source.stacks)))]
            places = rng.integers(len(stack.label), size=SLICES_OF_A_VOLUME)
            # slices become channels: what changes a volume changes all of them alike
            image = torch.cat([stack.at(int(place)) for place in places])
            label = stack.label[torch.from_numpy(places)]
            if change is not None:
                image, label = change(image, label)
            height, width = label.shape[1:]
            images.append(image.reshape(SLICES_OF_A_VOLUME, -1, height, width))
            labels.append(label[:, None])
    sides = [max(label.shape[axis] for label in labels) for axis in (2, 3)]
    image, label = (
        torch.cat([_continued(part, sides[0], sides[1]) for part in parts])
        for parts in (images, labels)
    )
    return image, label


def _padded(slices: Tensor) -> Tensor:
    """Continued up to sides that can be halved twice."""
    height, width = (side + -side % _STRIDE for side in slices.shape[2:])
    return _continued(slices, height, width)


def _continued(slices: Tensor, height: int, width: int) -> Tensor:
    """Slices (n, c, h, w) with 0 on the far sides."""
    return pad(slices, [0, width - slices.shape[3], 0, height - slices.shape[2]])
