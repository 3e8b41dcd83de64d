"""The input of zrefine and pyramid, as one stack of channels, and its first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lift.mixer.base import FrozenParts, MixerInputs
from lift.mixer.differences import SHIFTS, fill_differences, keep_inside
from lift.mixer.layers import apply_plane_conv

# differences are small beside the images: brought to their scale for the first convolution
_DIFFERENCE_GAIN = 4.0
_GPU_SLICES_AT_ONCE = 16


def offered_features(frozen: FrozenParts) -> tuple[str, ...]:
    """Those of `feat` and `enc0` that the generator has at stride 1."""
    return tuple(name for name in ("feat", "enc0") if frozen.tap_strides.get(name) == 1)


def stacked_channels(frozen: FrozenParts, tap_names: Sequence[str]) -> int:
    """Channels of [S, P, taps, 4 D_k P, 4 D_k S]."""
    images = frozen.n_source + 1
    features = sum(frozen.tap_channels[name] for name in tap_names)
    return images + features + len(SHIFTS) * images


def first_hidden(
    first: nn.Conv3d,
    inputs: MixerInputs,
    of_pred: Tensor,
    tap_names: Sequence[str],
    near: slice | None = None,
) -> Tensor:
    """silu(first([S, P, taps, 4 D_k P, 4 D_k S])), (b, channels, slices of `near`, h, w).

    The first convolution has no reach along depth. Without gradients it runs slice by slice,
    because its input is by far the largest tensor of a streamed volume.

    Args:
        first: of :func:`plane_conv`, from :func:`stacked_channels`.
        inputs: the batch.
        of_pred: `z_differences` of the prediction, (b, z, 6, h, w).
        tap_names: taps of stride 1, in the order of the channels.
        near: slices of the batch; None: all.
    """
    low, high = (0, inputs.pred.shape[1]) if near is None else (near.start, near.stop)
    if torch.is_grad_enabled():
        return silu(first(_stacked(inputs, of_pred, tap_names, low, high)))
    step = 1 if inputs.pred.device.type == "cpu" else _GPU_SLICES_AT_ONCE
    parts = []
    for start in range(low, high, step):
        x = _stacked(inputs, of_pred, tap_names, start, min(start + step, high))
        parts.append(silu(apply_plane_conv(first, x)))
    return torch.cat(parts, dim=2)


def _stacked(
    inputs: MixerInputs, of_pred: Tensor, tap_names: Sequence[str], low: int, high: int
) -> Tensor:
    """[S, P, taps, 4 D_k P, 4 D_k S] of slices low..high-1 as (b, channels, z, h, w).

    Written part by part into one block: joining the parts would copy them twice more. Without
    gradients it lies in memory slice by slice, as :func:`apply_plane_conv` takes it.
    """
    here = slice(low, high)
    images = [inputs.source, inputs.pred, *(inputs.taps[name] for name in tap_names)]
    b, z, n_source, h, w = inputs.source.shape
    plain = sum(image.shape[2] for image in images)
    first, last = plain, plain + len(SHIFTS)
    channels, slices = last + len(SHIFTS) * n_source, high - low
    if torch.is_grad_enabled():
        x = inputs.pred.new_empty((b, channels, slices, h, w)).transpose(1, 2)
    else:
        x = inputs.pred.new_empty((b, slices, channels, h, w))
    at = 0
    for image in images:
        x[:, :, at : at + image.shape[2]] = image[:, here]
        at += image.shape[2]
    x[:, :, :plain].masked_fill_(inputs.mask[:, here] == 0, 0.0)
    x[:, :, first:last] = _DIFFERENCE_GAIN * of_pred[:, here]
    near = slice(max(0, low - max(SHIFTS)), min(z, high + max(SHIFTS)))
    mask = inputs.mask[:, near]
    source = keep_inside(inputs.source[:, near], mask)
    fill_differences(x[:, :, last:], source, mask, gain=_DIFFERENCE_GAIN, first=low - near.start)
    return x.transpose(1, 2)
