"""The z-filter's normal equations under patient-level privacy: where the mixer starts.

The equations are sums over patients, so they are released like a gradient: each patient's are
clipped to a public length, the sum gets noise once, and what is made of it is free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lift.config.privacy import StartRelease
from lift.mixer.z_filter import NormalEquations, fit
from lift.privacy.clipping import clip_gradient
from lift.privacy.noise import SecureStream, add_noise

_ROOT_TWO = math.sqrt(2)


def patient_equations_of(volumes: Sequence[NormalEquations]) -> NormalEquations:
    """One patient's equations: the mean over the patient's volumes, each of which counts once."""
    total = NormalEquations.zero()
    for each in volumes:
        total = total + each
    count = max(len(volumes), 1)
    return NormalEquations(total.a / count, total.b / count, total.voxels, 1)


def equations_norm(equations: NormalEquations) -> float:
    """The joint length that is clipped: each different number of `a` and `b` once.

    For the choice of `clip_norm` on public data; of a hospital's patient it is private.
    """
    return math.sqrt(float(equations.a.square().sum() + equations.b.square().sum()))


def release_equations(
    patients: Sequence[NormalEquations], release: StartRelease, stream: SecureStream
) -> NormalEquations:
    """The noisy sum of the patients' clipped equations, (6, 6) and (6,), symmetric.

    One Gaussian mechanism with `release.noise_multiplier` and no sampling. The number of
    patients and of voxels is not told. A patient whose equations are not finite adds zeros.

    Args:
        patients: one entry a patient, see :func:`patient_equations_of`.
        release: clip norm and noise.
        stream: source of the noise.
    """
    total = {"a": torch.zeros(21, dtype=torch.float64), "b": torch.zeros(6, dtype=torch.float64)}
    for equations in patients:
        packed = {"a": _packed(equations.a), "b": equations.b.double()}
        clipped = clip_gradient(packed, release.clip_norm)
        for name, values in clipped.values.items():
            total[name] += values.double()
    noisy = add_noise(total, release.noise_multiplier * release.clip_norm, stream)
    return NormalEquations(_unpacked(noisy["a"].double()), noisy["b"].double(), 0, 0)


def fit_released(total: NormalEquations, release: StartRelease, sites: int, ridge: float) -> Tensor:
    """The z-filter's taps from the sum of `sites` noisy releases, (6,), float64.

    Noise may leave the matrix with negative eigenvalues and small ones meaningless. Negative ones
    become 0, and the ridge grows by what noise alone reaches (the edge of the semicircle of a
    random symmetric matrix, Wigner 1958): the more noise, the nearer the filter is to doing
    nothing.
    """
    size = len(total.b)
    noise_std = release.noise_multiplier * release.clip_norm * math.sqrt(max(sites, 1))
    values, vectors = torch.linalg.eigh(total.a)
    edge = noise_std * math.sqrt(2 * size)
    whole = (vectors * (values.clamp_min(0) + edge)) @ vectors.T
    return fit(NormalEquations((whole + whole.T) / 2, total.b, 0, 0), ridge)


def _packed(a: Tensor) -> Tensor:
    """A symmetric matrix as a vector of the same length (norm): each different number once."""
    rows, columns = torch.triu_indices(6, 6)
    scale = torch.where(rows == columns, 1.0, _ROOT_TWO).double()
    return a.double()[rows, columns] * scale


def _unpacked(vector: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(6, 6)
    scale = torch.where(rows == columns, 1.0, _ROOT_TWO).double()
    a = torch.zeros(6, 6, dtype=torch.float64)
    a[rows, columns] = vector / scale
    a[columns, rows] = vector / scale
    return a
