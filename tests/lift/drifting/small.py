"""A small public world: synthetic features, their standardisation, a projection, cohorts."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from lift.tasks.unconditional.drifting.statistics import Sums, group_units, patient_sums
from lift.triplanar.groups import GroupLayout
from lift.triplanar.projection import KINDS, Projection, fit_projection
from lift.triplanar.standardise import Standardisation, clip_length, fit_standardisation

LAYOUT = GroupLayout(axial=2, coronal=1, sagittal=1)
GROUPS = len(LAYOUT.groups)
ENCODER = "ab" * 32


def raw(seed: int, rows: int, *, shift: float = 0.0, raw_size: int = 40) -> list[Tensor]:
    """Synthetic raw features by group: clusters along a few directions, not one Gaussian."""
    features = []
    for group in range(GROUPS):
        public = torch.Generator().manual_seed(1000 + group)
        mixing = torch.randn(12, raw_size, generator=public) * torch.linspace(2, 0.3, 12)[:, None]
        centres = 1.5 * torch.randn(3, 12, generator=public)
        random = torch.Generator().manual_seed(seed * 17 + group)
        cluster = torch.randint(3, (rows,), generator=random)
        latent = centres[cluster] + torch.randn(rows, 12, generator=random) + shift
        features.append(latent @ mixing + 0.05 * torch.randn(rows, raw_size, generator=random))
    return features


@functools.cache
def standardisation() -> Standardisation:
    return fit_standardisation(raw(1, 160), LAYOUT, ENCODER, dimension=10)


def features(seed: int, rows: int, *, shift: float = 0.0) -> list[Tensor]:
    """Standardised and clipped features by group."""
    return [
        clip_length(standardisation().transform(x, group), 2.0)
        for group, x in enumerate(raw(seed, rows, shift=shift))
    ]


@functools.cache
def projection(seed: int = 5) -> Projection:
    return fit_projection(
        features(1, 160), standardisation(), seed=seed, kinds=KINDS, n_anchors=24, n_features=256
    )


def patients(seed: int, count: int, *, windows: int = 2) -> list[list[Tensor]]:
    """Each patient's features by group, (windows, d)."""
    whole = features(seed, count * windows)
    return [[y[p * windows : (p + 1) * windows] for y in whole] for p in range(count)]


def total(cohort: Sequence[Sequence[Tensor]], of: Projection | None = None) -> Sums:
    chosen = of or projection()
    result = Sums.zero(chosen)
    for patient in cohort:
        result += patient_sums(chosen, patient)
    return result


def at_once(cohort: Sequence[Sequence[Tensor]], of: Projection) -> Sums:
    """The integers of `total`, as a test of the statistics says, in a fraction of its time."""
    groups = tuple(range(of.n_groups))
    rows = torch.stack([stacked(cohort, group)[0] for group in groups])
    units = group_units(of, groups, rows, stacked(cohort, 0)[1], len(cohort))
    return Sums(of.encoder_digest, of.digest, len(cohort), units)


def stacked(cohort: Sequence[Sequence[Tensor]], group: int) -> tuple[Tensor, Tensor]:
    """All rows of a group, and their owners."""
    rows = torch.cat([patient[group] for patient in cohort])
    owner = torch.arange(len(cohort)).repeat_interleave(len(cohort[0][group]))
    return rows, owner


@functools.cache
def summed(seed: int, count: int) -> Sums:
    """The sums of one cohort; nobody may change them."""
    return at_once(patients(seed, count), projection())
