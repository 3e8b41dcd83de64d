"""From volumes to standardised features by group: what statistics and losses start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lift.errors import ConfigError
from lift.triplanar.encoder import Encoder
from lift.triplanar.groups import GroupLayout, RandomPlaces, Windows, cut
from lift.triplanar.standardise import Standardisation


@dataclass(frozen=True)
class Rows:
    """One group's generated features.

    Attributes:
        features: standardised, not clipped, (n, d), with their gradient.
        owner: each row's volume, (n,), from 0 and without gaps.
    """

    features: Tensor
    owner: Tensor


def encode_windows(windows: Windows, encoder: Encoder) -> Tensor:
    """Raw features, (n, blocks * f): E(x), or [E(x_d), E(x_d+1) - E(x_d)] for pairs of slices."""
    first = encoder(windows.images[:, :1])
    if windows.images.shape[1] == 1:
        return first
    return torch.cat([first, encoder(windows.images[:, 1:]) - first], dim=1)


def raw_features(
    volumes: Tensor,
    spacing_mm: tuple[float, float, float],
    extent: Tensor,
    layout: GroupLayout,
    encoder: Encoder,
) -> list[Tensor]:
    """Raw features of every group, (b * windows, f), always of the same windows.

    What :func:`lift.triplanar.standardise.fit_standardisation` is fitted on. Without gradients.
    """
    with torch.no_grad():
        return [
            encode_windows(cut(volumes, spacing_mm, extent, layout, group), encoder)
            for group in range(len(layout.groups))
        ]


def patient_features(
    volume: Tensor,
    spacing_mm: tuple[float, float, float],
    extent: Tensor,
    encoder: Encoder,
    standardisation: Standardisation,
) -> list[Tensor]:
    """Standardised features of every group of one volume, (windows, d): for a patient's sums.

    A patient's second volume goes through it by itself; rows are put together by group. One
    volume at a time: the bits then depend on nothing else, and sums are the same however a
    cohort is split.

    Args:
        volume: (1, 1, d, h, w), normalised to [0, 1].
        spacing_mm: along depth, height and width.
        extent: (1, 3, 2).
        encoder: of the standardisation.
        standardisation: public.

    Raises:
        ConfigError: the standardisation was fitted for another encoder.
    """
    if volume.shape[0] != 1:
        raise ValueError(f"one volume at a time; seen {volume.shape[0]}")
    _check_encoder(encoder, standardisation)
    raw = raw_features(volume, spacing_mm, extent, standardisation.layout, encoder)
    return [standardisation.transform(rows, group) for group, rows in enumerate(raw)]


def generated_rows(
    volumes: Tensor,
    spacing_mm: tuple[float, float, float],
    extent: Tensor,
    encoder: Encoder,
    standardisation: Standardisation,
    *,
    groups: Sequence[int],
    places: RandomPlaces | None,
) -> dict[int, Rows]:
    """Features of generated volumes in some groups, differentiable: what the loss takes.

    Args:
        volumes: (b, 1, d, h, w), normalised to [0, 1].
        spacing_mm: along depth, height and width.
        extent: (b, 3, 2).
        encoder: of the standardisation.
        standardisation: public.
        groups: indices, from :func:`lift.triplanar.groups.draw_groups`.
        places: drawn within the bins; None takes the fixed ones of real volumes.

    Raises:
        ConfigError: the standardisation was fitted for another encoder.
    """
    _check_encoder(encoder, standardisation)
    found = {}
    for group in groups:
        windows = cut(volumes, spacing_mm, extent, standardisation.layout, group, places)
        raw = encode_windows(windows, encoder)
        found[group] = Rows(standardisation.transform(raw, group), windows.owner)
    return found


def _check_encoder(encoder: Encoder, standardisation: Standardisation) -> None:
    if encoder.digest != standardisation.encoder_digest:
        raise ConfigError(
            "cannot use the public standardisation with this feature encoder",
            seen=f"encoder {encoder.digest[:16]}...; the standardisation was fitted for "
            f"{standardisation.encoder_digest[:16]}...",
            remedy="Name the encoder that came with the standardisation.",
        )
