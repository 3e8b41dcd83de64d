"""Styles: the mean grey scale of sites, and new volumes with a given one.

The style of a volume is its decoder's last latents (`volume_latents`), the same for all slices. Of
a site it is the mean over its training patients, a part of the moments that it sends anyway.

New volumes of a style s* are drawn from the Gaussian under the condition s = s*, exactly, by
Matheron's rule: x' = x + Cov(x, s) Cov(s)^-1 (s* - s(x)). States are linear in their noise,
x = m + A e, so this is a change of the noise alone: e' = e + B^T (B B^T)^-1 (s* - s(x)) with
s = m_s + B e. All that is drawn, the body's length too, then follows the style as it does in the
sites' patients; and what is drawn besides is that of the same volume without a condition.

Source of the rule: Journel and Huijbregts 1978, Mining Geostatistics, VII.A.1; Doucet 2010, "A note
on efficient conditional simulation of Gaussian distributions".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from lift.errors import ConfigError
from lift.mixer.gaussian import GaussianNoise, GaussianTrajectory
from lift.mixer.trajectory import TrajectoryMapper
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.moments import TrajectorySums
from lift.wire.names import GAUSSIAN, STYLE, group, grouped, only

logger = logging.getLogger(__name__)
MEAN: Final = "mean"
"""Names the Gaussian's own mean style; a site of this name has none that could be asked for."""
RIDGE: Final = 1e-3
"""Added to the variances of the style, as a share of their mean: where its numbers hardly vary, or
one follows the other, latents follow them a little less instead of far too much."""
_LEAST: Final = 1e-9
_LARGEST: Final = 8.0


def site_style(sums: TrajectorySums, decoder: FrozenDecoder) -> Tensor:
    """The mean style of a site's patients, (volume_latents,), float32, in the decoder's units.

    Raises:
        DataError: the sums hold no patient.
    """
    places = _places(sums.form.joint, sums.form.tail, decoder)
    return sums.mean("mean")[:, places].mean(0).float()


def named_styles(sums: Mapping[str, TrajectorySums], decoder: FrozenDecoder) -> dict[str, Tensor]:
    """The sites' styles as tensors of a mixer's file, `style/SITE`.

    Args:
        sums: of the sites that sent some, by their names.
        decoder: of the plan.
    """
    if MEAN in sums:
        logger.warning("event=style_left_out site=%s reason=the_name_stands_for_all", MEAN)
    named = {site: site_style(sums[site], decoder) for site in sorted(sums) if site != MEAN}
    return grouped(named, STYLE)


def styles_of(values: Mapping[str, Tensor], decoder: FrozenDecoder) -> dict[str, Tensor]:
    """Site -> its style, from the tensors of a mixer's file; in the order of names.

    Raises:
        ValueError: one has another shape, or numbers that no style has.
    """
    size = (decoder.card.network.volume_latents,)
    found = dict(sorted(group(values, STYLE).items()))
    for site, style in found.items():
        if style.shape != size or not bool((style.abs() <= _LARGEST).all()):
            raise ValueError(
                f"the style of {site} does not fit: {tuple(style.shape)}, needed {size} of numbers "
                f"within {_LARGEST:g}"
            )
    return found


def kept_with_mixer(shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of the sites' common knowledge a mixer's file holds: the Gaussian and the styles."""
    return only(shared, GAUSSIAN) | only(shared, STYLE)


def stated_style(
    name: str,
    mapper: GaussianTrajectory | TrajectoryMapper,
    values: Mapping[str, Tensor],
    decoder: FrozenDecoder,
) -> Tensor:
    """The style of a name, (volume_latents,), float32.

    Args:
        name: of a site, or `mean`: that of the Gaussian.
        mapper: with its Gaussian.
        values: the tensors of the mixer's file.
        decoder: of the plan.

    Raises:
        ConfigError: the decoder has no style, the mapper no Gaussian, or nobody knows the name.
        ValueError: the styles in the file do not fit the decoder.
    """
    if decoder.card.network.volume_latents == 0 or not isinstance(mapper, GaussianTrajectory):
        raise ConfigError(
            "this mixer makes no volumes of a stated grey scale",
            where="--style",
            seen="its decoder has no latents of a volume's grey scale; those of `network: pca` do"
            if decoder.card.network.volume_latents == 0
            else "its trajectory is free: there is no Gaussian to put a condition on",
            remedy="Nothing was written. Leave --style out, or use the mixer of another run.",
        )
    if name == MEAN:
        return mapper.mean[:, _places(mapper.joint, mapper.tail, decoder)].double().mean(0).float()
    known = styles_of(values, decoder)
    if name not in known:
        reason = "" if known else "; its run gave no site's (unconditional.site_styles)"
        raise ConfigError(
            "the mixer does not know this style",
            where="--style",
            seen=f"{name!r}; known: {', '.join([*known, MEAN])}{reason}",
            remedy="Nothing was written. Choose a known one. Sites that joined late, or had too "
            "few patients to send moments, have none.",
        )
    return known[name]


def under_style(
    mapper: GaussianTrajectory, noise: GaussianNoise, style: Tensor, decoder: FrozenDecoder
) -> GaussianNoise:
    """The noise with which volumes are those of the Gaussian under the condition of a style.

    Of a chain the style is that of its first position, and what follows it in the chain follows
    from there; of whole trajectories the mean over positions. Up to `RIDGE` the volumes then have
    the style; it is the same at all positions as far as it was in the patients.

    Args:
        mapper: on the CPU.
        noise: of any number of volumes; it is not changed.
        style: (volume_latents,).
        decoder: of the mapper.
    """
    places = _places(mapper.joint, mapper.tail, decoder)
    if mapper.columns:
        k, width = mapper.mean.shape
        rows = mapper.factor.double().view(k, width, mapper.columns)[:, places].mean(0)
        middle = mapper.mean[:, places].double().mean(0)
    else:
        rows, middle = mapper.first[places].double(), mapper.mean[0, places].double()
    own = noise.joint[:, 0].double()
    covariance = rows @ rows.mT
    ridge = RIDGE * covariance.diagonal().mean() + _LEAST
    covariance = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
    lacking = style.double() - middle - own @ rows.mT
    moved = own + torch.linalg.solve(covariance, lacking.mT).mT @ rows
    joint = torch.cat([moved.to(noise.joint.dtype)[:, None], noise.joint[:, 1:]], dim=1)
    return GaussianNoise(joint, noise.tail)


def _places(joint: Sequence[int], tail: Sequence[int], decoder: FrozenDecoder) -> list[int]:
    """Where the style latents stand in a state: joint latents, the length, the tail."""
    network = decoder.card.network
    order = [*joint, None, *tail]
    return [order.index(i) for i in range(network.latent - network.volume_latents, network.latent)]
