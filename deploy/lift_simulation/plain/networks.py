"""Plain networks from the sources alone, without a generator or curves.

They have the form of a mixer, so that they are trained by the same code on the same windows, but
keep none of a mixer's laws: they know no prediction and normalise over what they are given
(instance normalisation, as is usual). A volume must therefore be predicted in windows of the size
of training: see :func:`predict_in_windows`.
"""

from __future__ import annotations

from typing import ClassVar, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from lift.generator.features import Features
from lift.generator.networks import neighbour_channels
from lift.mixer.base import Mixer, MixerInputs
from lift.mixer.differences import keep_inside
from lift.randomness import derive_seed

NEIGHBOURS: Final = 3
"""Slices on either side that the 2.5D network sees: seven in all."""
_STRIDE: Final = 16
_OVERLAP: Final = 0.5
_WINDOWS_AT_ONCE: Final = 4


class PlainNetwork(Mixer):
    """MONAI's BasicUNet on the sources inside the mask; what it makes is the prediction.

    Args:
        dimensions: of its convolutions.
        width: of the two finest levels; the next have 2, 4 and 8 times as many channels.
        channels: of the input.
        seed: of the initial numbers; the global random state is neither used nor changed.

    Source: Falk et al. 2019, doi:10.1038/s41592-018-0261-2, as in MONAI, whose widths start at 32:
    16 is half of that.
    """

    has_z_filter: ClassVar[bool] = False
    halo = 0

    def __init__(self, dimensions: int, width: int, channels: int, *, seed: int) -> None:
        # here: MONAI takes seconds
        from monai.networks.nets.basic_unet import BasicUNet

        super().__init__()
        widths = (width, width, 2 * width, 4 * width, 8 * width, width)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "unet"))
            self.network: nn.Module = BasicUNet(dimensions, channels, 1, features=widths)

    def _padded(self, x: Tensor) -> Tensor:
        """What the network makes of `x`, whose sides are continued with zeros to multiples of 16.

        Args:
            x: (n, channels, *sides), with as many sides as the network has dimensions.
        """
        sides = x.shape[2:]
        beyond = [n for side in reversed(sides) for n in (0, -side % _STRIDE)]
        made = cast("Tensor", self.network(pad(x, beyond)))
        for axis, side in enumerate(sides, start=2):
            made = made.narrow(axis, 0, side)
        return made


class PlainUNet(PlainNetwork):
    """In 3D. See :class:`PlainNetwork`."""

    kind: ClassVar[str] = "unet"

    def __init__(self, width: int, n_source: int, *, seed: int) -> None:
        super().__init__(3, width, n_source, seed=seed)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        x = keep_inside(inputs.source, inputs.mask).transpose(1, 2)
        return keep_inside(self._padded(x).transpose(1, 2), inputs.mask)


class PlainSliceUNet(PlainNetwork):
    """In 2.5D: a 2D network on a slice and its neighbours as channels. See :class:`PlainNetwork`.

    Beyond a window's first and last slice these are repeated.
    """

    kind: ClassVar[str] = "unet_25d"

    def __init__(self, width: int, n_source: int, *, seed: int) -> None:
        super().__init__(2, width, n_source * (2 * NEIGHBOURS + 1), seed=seed)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        x = keep_inside(inputs.source, inputs.mask)
        seen = torch.cat([neighbour_channels(volume, NEIGHBOURS) for volume in x])
        return keep_inside(self._padded(seen).reshape(inputs.mask.shape), inputs.mask)


def predict_in_windows(
    network: PlainNetwork,
    features: Features,
    size: tuple[int, int, int],
    *,
    overlap: float = _OVERLAP,
) -> NDArray[np.float32]:
    """The volume that a plain network makes, (z, 1, h, w), from overlapping windows of `size`.

    Windows count the more the nearer a voxel is to their centre. A volume with a shorter side is
    continued with voxels outside the mask, as in training.

    Args:
        network: with its numbers loaded.
        features: of the patient; sources and mask alone are read.
        size: of the windows of training.
        overlap: of neighbouring windows, as a share of a side.
    """
    from monai.inferers.utils import sliding_window_inference

    network.eval()
    # copies: torch must never hold a read-only memory map
    source = torch.from_numpy(np.array(features.source, dtype=np.float32))
    mask = torch.from_numpy(np.array(features.mask, dtype=np.float32))
    z, _, h, w = mask.shape
    both = torch.cat([source, mask], dim=1).transpose(0, 1)[None]
    beyond = [max(0, least - side) for least, side in zip(size, (z, h, w), strict=True)]
    both = pad(both, [n for side in reversed(beyond) for n in (0, side)])

    def predict(windows: Tensor) -> Tensor:
        parts = windows.transpose(1, 2)
        return predict_window(network, parts[:, :, :-1], parts[:, :, -1:]).transpose(1, 2)

    with torch.no_grad():
        made = sliding_window_inference(
            both,
            size,
            _WINDOWS_AT_ONCE,
            predict,
            overlap=overlap,
            mode="gaussian",
            sw_device=network.device,
            device=both.device,
        )
    volume = cast("Tensor", made)[0, 0, :z, :h, :w] * mask[:, 0]
    return volume[:, None].numpy()


def predict_window(network: PlainNetwork, source: Tensor, mask: Tensor) -> Tensor:
    """One pass over windows of sources (n, z, c, h, w) and mask (n, z, 1, h, w)."""
    count, depth = source.shape[:2]
    inputs = MixerInputs(
        source=source,
        pred=torch.zeros_like(mask),
        mask=mask,
        depth=torch.full((count,), depth),
        start=torch.zeros(count, dtype=torch.int64),
        slice_spacing_mm=torch.ones(count),
    )
    made: Tensor = network(inputs)
    return made
