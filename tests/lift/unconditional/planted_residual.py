"""Numbers of a mapper on top of a Gaussian that do a known thing, in place of trained ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from lift.config.decoder import DecoderPretrainConfig
from lift.config.plan import Plan
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import plan_mapper, settings_of
from lift.tasks.unconditional.pretraining import pretrain_decoder
from tests.end_to_end.tiny_run import SHAPE, patient_name, write_nifti
from tests.lift.unconditional.tiny_decoder import (
    CHANNEL,
    CPU,
    pca_data,
    tiny_decoder,
    tiny_plan,
)

MEAN: Final = "gaussian/mean"
_LATENTS: Final = 3
_MODES: Final = 4


def shifting(plan: Plan, decoder: FrozenDecoder, amount: float) -> dict[str, Tensor]:
    """Moves the first latents of every slice by this much."""
    values, _, bias = _parts(plan, decoder)
    bias[:_LATENTS] = amount
    return values


def striping(plan: Plan, decoder: FrozenDecoder, amount: float) -> dict[str, Tensor]:
    """Moves the first latents up and down along the body, as fast as the position's code goes."""
    values, weight, _ = _parts(plan, decoder)
    first_weight, first_bias = values["residual.0.weight"], values["residual.0.bias"]
    first_weight.zero_()
    first_bias.zero_()
    # the last number of the code is the fastest octave's; what SiLU makes of it is about itself
    first_weight[0, -1] = 4.0
    weight[:_LATENTS, 0] = amount
    return values


def shifted(gaussian: Mapping[str, Tensor], amount: float) -> dict[str, Tensor]:
    """A Gaussian whose first latents have another mean: what a mapper can mend."""
    mean = gaussian[MEAN].clone()
    mean[:, :_LATENTS] += amount
    return {**gaussian, MEAN: mean}


def gaussian_plan(decoder: FrozenDecoder, **changes: object) -> Plan:
    """A plan whose Gaussian describes :func:`write_smooth_bodies`; all train or validate."""
    data: dict[str, object] = {
        "split": {"train": 0.8, "validation": 0.2},
        "unconditional__trajectory": "gaussian",
        "unconditional__gaussian": {"positions": 12, "axes": 20},
    }
    return tiny_plan(decoder, **(data | changes))


def make_smooth_decoder(folder: Path) -> FrozenDecoder:
    """A PCA decoder that draws them nearly without loss."""
    public = write_smooth_bodies(folder / "public", 77, 40)
    data = pca_data(public, network__axes=30)
    config = DecoderPretrainConfig.from_data(data, "test")
    pretrain_decoder(config, folder / "decoder", work=folder / "work", device=CPU)
    return tiny_decoder(folder / "decoder")


def _parts(plan: Plan, decoder: FrozenDecoder) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The start's values, and of its last layer weight and bias, to be changed in place."""
    values = {name: tensor.clone() for name, tensor in plan_mapper(plan, decoder).values().items()}
    last = 2 * settings_of(plan).mapper.layers
    weight, bias = values[f"residual.{last}.weight"], values[f"residual.{last}.bias"]
    assert not torch.any(weight)
    assert not torch.any(bias)
    return values, weight, bias


def write_smooth_bodies(folder: Path, seed: int, patients: int) -> Path:
    """Volumes in BraTS layout that a Gaussian can describe: one anatomy, and a few smooth modes in
    random shares. Random ellipsoids are told from any Gaussian's volumes without error.
    """
    axes = [np.linspace(-1, 1, side) for side in SHAPE]
    x, y, _ = np.meshgrid(*axes, indexing="ij")
    inside = x**2 + y**2 < 0.9
    fixed = np.random.default_rng(7)
    anatomy, *modes = (gaussian_filter(fixed.normal(size=SHAPE), 2.5) for _ in range(1 + _MODES))
    for index in range(patients):
        rng = np.random.default_rng([seed, index])
        values = 2 + anatomy / anatomy.std() / 2
        for mode in modes:
            values = values + 0.2 * rng.normal() * mode / mode.std()
        voxels = np.where(inside, np.maximum(200 * values, 1), 0).astype(np.int16)
        name = patient_name(index)
        write_nifti(folder / name / f"{name}-{CHANNEL}.nii.gz", voxels)
    return folder
