"""The rival: a plain 3D U-Net from the sources alone, without a generator or curves."""

from __future__ import annotations

from typing import ClassVar, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from lift.generator.features import Features
from lift.mixer.base import Mixer, MixerInputs
from lift.mixer.differences import keep_inside
from lift.randomness import derive_seed

_STRIDE: Final = 16
_OVERLAP: Final = 0.5
_WINDOWS_AT_ONCE: Final = 4


class PlainUNet(Mixer):
    """MONAI's BasicUNet in 3D on the sources inside the mask; what it makes is the prediction.

    It has the form of a mixer, so that it is trained by the same code on the same windows, but
    keeps none of a mixer's laws: it knows no prediction, pools depth, and normalises over what it
    is given (instance normalisation, as is usual). A volume must therefore be predicted in windows
    of the size of training: see :func:`predict_in_windows`. Sides are continued with zeros up to
    a multiple of 16.

    Args:
        width: of the two finest levels; the next have 2, 4 and 8 times as many channels.
        n_source: source channels.
        seed: of the initial numbers; the global random state is neither used nor changed.

    Source: Falk et al. 2019, doi:10.1038/s41592-018-0261-2, as in MONAI, whose widths start at 32:
    16 is half of that.
    """

    kind: ClassVar[str] = "unet"
    has_z_filter: ClassVar[bool] = False
    halo = 0

    def __init__(self, width: int, n_source: int, *, seed: int) -> None:
        # here: MONAI takes seconds
        from monai.networks.nets.basic_unet import BasicUNet

        super().__init__()
        widths = (width, width, 2 * width, 4 * width, 8 * width, width)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "unet"))
            self.network = BasicUNet(3, n_source, 1, features=widths)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        x = keep_inside(inputs.source, inputs.mask).transpose(1, 2)
        z, h, w = x.shape[2:]
        beyond = [-side % _STRIDE for side in (w, h, z)]
        made = self.network(pad(x, [n for side in beyond for n in (0, side)]))
        prediction = cast("Tensor", made)[..., :z, :h, :w].transpose(1, 2)
        return keep_inside(prediction, inputs.mask)


def predict_in_windows(
    rival: PlainUNet, features: Features, size: tuple[int, int, int]
) -> NDArray[np.float32]:
    """The volume that the rival makes, (z, 1, h, w), from overlapping windows of `size`.

    Windows overlap by half a side, and count the more the nearer a voxel is to their centre. A
    volume with a shorter side is continued with voxels outside the mask, as in training.
    """
    from monai.inferers.utils import sliding_window_inference

    rival.eval()
    # copies: torch must never hold a read-only memory map
    source = torch.from_numpy(np.array(features.source, dtype=np.float32))
    mask = torch.from_numpy(np.array(features.mask, dtype=np.float32))
    z, _, h, w = mask.shape
    both = torch.cat([source, mask], dim=1).transpose(0, 1)[None]
    beyond = [max(0, least - side) for least, side in zip(size, (z, h, w), strict=True)]
    both = pad(both, [n for side in reversed(beyond) for n in (0, side)])

    def predict(windows: Tensor) -> Tensor:
        parts = windows.transpose(1, 2)
        return _through(rival, parts[:, :, :-1], parts[:, :, -1:]).transpose(1, 2)

    with torch.no_grad():
        made = sliding_window_inference(
            both, size, _WINDOWS_AT_ONCE, predict, overlap=_OVERLAP, mode="gaussian"
        )
    volume = cast("Tensor", made)[0, 0, :z, :h, :w] * mask[:, 0]
    return volume[:, None].numpy()


def _through(rival: PlainUNet, source: Tensor, mask: Tensor) -> Tensor:
    count, depth = source.shape[:2]
    inputs = MixerInputs(
        source=source,
        pred=torch.zeros_like(mask),
        mask=mask,
        depth=torch.full((count,), depth),
        start=torch.zeros(count, dtype=torch.int64),
        slice_spacing_mm=torch.ones(count),
    )
    made: Tensor = rival(inputs)
    return made
