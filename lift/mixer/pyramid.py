"""pyramid: a fitted z-filter, refined by a residual network on three in-plane scales."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.nn.functional import pad, silu

from lift.mixer.base import FrozenParts, Mixer, MixerInputs
from lift.mixer.differences import SHIFTS, keep_inside, replicate_depth, z_differences
from lift.mixer.layers import (
    ZTaps,
    apply_plane_conv,
    apply_volume_conv,
    plane_conv,
    volume_conv,
    zero_layer,
)
from lift.mixer.stack import first_hidden, offered_features, stacked_channels

_SCALES = 3


class Pyramid(Mixer):
    """zrefine's form with reach: three scales in the plane, and a depth convolution at each.

    With source S, prediction P and those of the features `feat` and `enc0` that the generator
    offers at stride 1 as F:

        h_0 = silu(conv 1x3x3 ([S, P, F, 4 D_k P, 4 D_k S]));  h_s = widen_s(pool(h_{s-1}))
        h_s = h_s + silu(conv 3x3x3 (h_s))                     s = 0, 1, 2
        h_s = h_s + narrow_s(h_{s+1}) on the finer grid;  h_s = h_s + silu(conv 1x3x3 (h_s))
                                                               s = 1, 0
        y = P + sum_k w_k D_k P + conv 1x3x3 (h_0)

    `widen` and `narrow` are 1x1x1, and h_s has (s + 1) * width channels. `pool` is the mean over
    those of 2 x 2 voxels that lie inside the mask; a coarse voxel is inside if one of them is.
    Odd sides are continued by voxels outside the mask. Depth is never pooled, and nothing is
    normalised. The last convolution starts at 0 and w at the fitted taps: at first this *is* the
    z-filter. One source channel and 12 + 12 feature channels: 5,065 parameters at width 3,
    24,101 at 7, 104,317 at 15 and 406,177 at 30.

    The coarse grids begin at the first row and column of what is given, and a result depends on
    15 pixels to each side. So a crop whose first row and column are multiples of 4 has the whole
    slice's result 15 pixels inside its borders. Any other crop has its 2 x 2 means at other
    places: every guarantee holds, but the result differs a little. Windows of training begin
    anywhere, so that a mixer learns for every place of the grid. A volume is always mixed in
    whole slices, whose grid does not depend on how its depth is cut.

    Args:
        width: hidden channels at the finest scale.
        frozen: any generator.

    Source: the form is that of a U-Net (Ronneberger et al. 2015, arXiv:1505.04597).
    """

    kind: ClassVar[str] = "pyramid"
    has_z_filter: ClassVar[bool] = True

    def __init__(self, width: int, frozen: FrozenParts) -> None:
        super().__init__()
        self.tap_names = offered_features(frozen)
        self.halo = max(SHIFTS) + _SCALES
        widths = [(scale + 1) * width for scale in range(_SCALES)]
        steps = list(pairwise(widths))
        self.z_taps = ZTaps()
        self.first = plane_conv(stacked_channels(frozen, self.tap_names), width)
        self.along = nn.ModuleList(volume_conv(n, n) for n in widths)
        self.widen = nn.ModuleList(nn.Conv3d(fine, coarse, 1) for fine, coarse in steps)
        self.narrow = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in steps)
        self.across = nn.ModuleList(plane_conv(fine, fine) for fine, _ in steps)
        self.out = plane_conv(width, 1)
        zero_layer(self.out)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        of_pred = z_differences(inputs.pred, inputs.mask)
        inside = [inputs.mask.transpose(1, 2)]
        h = first_hidden(self.first, inputs, of_pred, self.tap_names) * inside[0]
        levels: list[Tensor] = []
        for scale in range(_SCALES):
            if scale > 0:
                h, coarse = _pooled(h, inside[-1])
                inside.append(coarse)
                h = self.widen[scale - 1](h) * coarse
            conv = cast("nn.Conv3d", self.along[scale])
            along = apply_volume_conv(conv, replicate_depth(h, inputs.depth, 1))
            h = (h + silu(along)) * inside[scale]
            levels.append(h)
        for scale in reversed(range(_SCALES - 1)):
            fine = levels[scale]
            h = (fine + _on_finer_grid(self.narrow[scale](h), fine)) * inside[scale]
            across = cast("nn.Conv3d", self.across[scale])
            h = (h + silu(apply_plane_conv(across, h))) * inside[scale]
        correction = self.z_taps(of_pred) + apply_plane_conv(self.out, h).transpose(1, 2)
        return inputs.pred + keep_inside(correction, inputs.mask)

    def start_from(self, taps: Tensor) -> None:
        """Set the z-filter's taps, (6,)."""
        self.z_taps.set_taps(taps)


def _pooled(h: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Means over those of 2 x 2 voxels that lie inside, and which of them have one, 0 or 1.

    Args:
        h: (b, c, z, h, w), 0 outside.
        inside: 0 or 1, (b, 1, z, h, w).

    Returns:
        (b, c, z, h/2, w/2) and (b, 1, z, h/2, w/2), sides rounded up.
    """
    count = _sum_of_four(inside)
    return _sum_of_four(h) / count.clamp(min=1), (count > 0).to(count)


def _sum_of_four(v: Tensor) -> Tensor:
    """Sums over 2 x 2 voxels of the plane, with zeros beyond it.

    By a view, not by torch's pooling, whose gradient on a GPU differs from run to run.
    """
    h, w = v.shape[-2:]
    even = pad(v, (0, w % 2, 0, h % 2))
    return even.reshape(*v.shape[:-2], (h + 1) // 2, 2, (w + 1) // 2, 2).sum((-3, -1))


def _on_finer_grid(v: Tensor, fine: Tensor) -> Tensor:
    """Each voxel of `v` at its 2 x 2 voxels of the plane of `fine`, (..., h, w)."""
    h, w = v.shape[-2:]
    spread = v[..., :, None, :, None].expand(*v.shape[:-2], h, 2, w, 2)
    return spread.reshape(*v.shape[:-2], 2 * h, 2 * w)[..., : fine.shape[-2], : fine.shape[-1]]
