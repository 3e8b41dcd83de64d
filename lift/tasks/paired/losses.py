"""Losses of the paired task, one value by patient.

Each patient's loss is a mean over that patient's own voxels; the batch's loss is the mean
over patients. One patient's gradient therefore never depends on another patient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lift.config.plan import LossPlan


def paired_loss(prediction: Tensor, target: Tensor, mask: Tensor, plan: LossPlan) -> Tensor:
    """Loss of each patient, (b,): scale * (pixel + dz_weight * Dz + MS-SSIM term).

    The pixel loss (squared or absolute error) is a mean over the mask; the Dz loss is the
    same of the first difference along depth, over pairs of neighbours that are both in the
    mask. A patient with an empty mask has loss 0.

    Args:
        prediction: (b, z, 1, h, w).
        target: as `prediction`.
        mask: 0 or 1, as `prediction`.
        plan: weights.

    Source: method sections 5.2 and 10; LiFT, arXiv:2605.19060 (L_pixel, L_spatial, L_similarity).
    """
    error = prediction - target
    pair_mask = mask[:, 1:] * mask[:, :-1]
    loss = _masked_mean(_penalty(error, plan), mask)
    if plan.dz_weight > 0:
        loss = loss + plan.dz_weight * _masked_mean(
            _penalty(error[:, 1:] - error[:, :-1], plan), pair_mask
        )
    if plan.ms_ssim_weight > 0:
        similarity = _ms_ssim(prediction * mask, target * mask)
        loss = loss + plan.ms_ssim_weight * (1.0 - similarity)
    return plan.scale * loss


def _penalty(error: Tensor, plan: LossPlan) -> Tensor:
    return error.square() if plan.pixel == "l2" else error.abs()


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    total = (values * mask).flatten(1).sum(1)
    return total / mask.flatten(1).sum(1).clamp_min(1.0)


def _ms_ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Multi-scale SSIM of whole slices, averaged over each patient's slices, (b,).

    Three scales, uniform 7-pixel window, data range 1. Source: Wang et al. 2003.
    """
    # imported here: MONAI takes seconds, and only runs with this term need it
    from monai.metrics.regression import KernelType, compute_ssim_and_cs

    batch, depth = prediction.shape[:2]
    x, y = prediction.flatten(0, 1), target.flatten(0, 1)
    # the first three of the five published scale weights, normalised
    weights = torch.tensor([0.0448, 0.2856, 0.3001], device=x.device)
    weights = weights / weights.sum()
    result = torch.ones(batch * depth, device=x.device)
    for scale, weight in enumerate(weights):
        ssim, contrast = compute_ssim_and_cs(
            y_pred=x,
            y=y,
            spatial_dims=2,
            data_range=1.0,
            kernel_type=KernelType.UNIFORM,
            kernel_size=(7, 7),
            kernel_sigma=(1.5, 1.5),
        )
        last = scale == len(weights) - 1
        level = (ssim if last else contrast).flatten(1).mean(1).clamp_min(1e-6)
        result = result * level**weight
        if not last:
            x, y = (torch.nn.functional.avg_pool2d(v, 2) for v in (x, y))
    return result.view(batch, depth).mean(1)
