"""Pairs of image and label: their joint Gaussian over sites, and new ones drawn from it.

New volumes come without labels. So a patient's trajectory is made to carry the label too: beside
the frozen decoder's latents of a slice stand the first cosines of the slice's signed distances to
the label's edge. They are a fixed basis: no public label is needed. The moments of such
trajectories are exact sums as those of images are, and a new volume has the label that belongs to
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch import Tensor

from lift.cohort.patients import Patient
from lift.cohort.preprocessing import Prepared, prepare
from lift.config.plan import Plan
from lift.errors import ConfigError, VolumeError
from lift.mixer.gaussian import GaussianTrajectory
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.grid import BodyVolume, body_volume
from lift.tasks.unconditional.learning import settings_of
from lift.tasks.unconditional.moments import (
    LARGEST,
    TrajectoryForm,
    TrajectorySums,
    fit_gaussian,
    form_of,
    moments_to_arrays,
    patient_moments,
    trajectory,
)
from lift.tasks.unconditional.review import moments_from_arrays
from lift.tasks.unconditional.sampling import decoded, volume_latents
from lift.wire.names import GAUSSIAN
from lift_simulation.labels import label_slices

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """A volume on the decoder's grid with its label.

    Attributes:
        body: the volume.
        label: True inside, (d, h, w).
    """

    body: BodyVolume
    label: Tensor

    @property
    def voxels(self) -> Tensor:
        """(d, h, w), in [0, 1]."""
        return self.body.voxels[0, 0]


@dataclass(frozen=True)
class PairForm:
    """How an image and its label become one trajectory.

    Attributes:
        image: layout of the image's trajectory.
        grid: rows and columns of a slice.
        waves: cosines along both.
        reach_mm: where signed distances end.
    """

    image: TrajectoryForm
    grid: tuple[int, int]
    waves: tuple[int, int]
    reach_mm: float

    @property
    def latents(self) -> int:
        """Numbers of the image in a slice's vector; those of the label follow."""
        return len(self.image.tail)

    @property
    def whole(self) -> TrajectoryForm:
        """Layout of the trajectory of both."""
        numbers = self.latents + math.prod(self.waves)
        return replace(self.image, tail=tuple(range(numbers)))

    @property
    def _unit(self) -> float:
        # an orthonormal cosine of values within 1 is never larger than this: nothing is clipped
        return LARGEST / math.sqrt(math.prod(self.grid))

    def waves_of(self, distances: Tensor) -> Tensor:
        """Signed distances in [-1, 1], (d, h, w), as numbers within `LARGEST`, (d, waves)."""
        found = fft.dctn(distances.double().numpy(), axes=(1, 2), norm="ortho")
        kept = found[:, : self.waves[0], : self.waves[1]].reshape(len(found), -1)
        return torch.from_numpy(kept * self._unit).float()

    def distances_of(self, waves: Tensor) -> Tensor:
        """The signed distances that some numbers stand for, (d, waves) to (d, h, w)."""
        full = np.zeros((len(waves), *self.grid))
        full[:, : self.waves[0], : self.waves[1]] = (
            waves.double().numpy().reshape(-1, *self.waves) / self._unit
        )
        return torch.from_numpy(fft.idctn(full, axes=(1, 2), norm="ortho")).float()


def pair_form(
    plan: Plan, decoder: FrozenDecoder, waves: tuple[int, int], reach_mm: float
) -> PairForm:
    """The layout for a plan's Gaussian.

    Raises:
        ConfigError: the plan's Gaussian is not one of whole trajectories, or there are more waves
            than pixels.
    """
    gaussian = settings_of(plan).gaussian
    image = decoder.card.network.image
    if gaussian.covariance != "sketch":
        raise ConfigError(
            "pairs need the Gaussian of whole trajectories",
            where="plan.unconditional.gaussian.covariance",
            seen=f"{gaussian.covariance}; needed: sketch",
            remedy="Set covariance: sketch; nothing was started.",
        )
    if any(wave > side for wave, side in zip(waves, image, strict=True)):
        raise ConfigError(
            "a slice has fewer pixels than waves",
            where="waves",
            seen=f"{list(waves)} waves, slices of {list(image)} pixels",
            remedy="Lower waves; nothing was started.",
        )
    return PairForm(form_of(gaussian, decoder), image, waves, reach_mm)


def read_pair(
    patient: Patient, plan: Plan, decoder: FrozenDecoder, *, root: Path, label: Path
) -> Pair:
    """One patient's volume and label on the decoder's grid.

    Args:
        patient: of the plan's cohort.
        plan: unconditional, on the files' own grids.
        decoder: of the plan.
        root: the data folder.
        label: a file on the volume's grid; whatever is above 0 is inside.

    Raises:
        VolumeError: a file cannot be used, or nothing of the label lies in the decoder's image.
        AffineError: volume and label are not on one grid.
    """
    prepared = prepare(patient, plan, root=root, with_target=False)
    layout = decoder.public.projection.layout
    network = decoder.card.network
    body = body_volume(prepared, network, layout, patient.id)
    drawn = body_volume(_labelled(prepared, label), network, layout, patient.id)
    inside = drawn.voxels[0, 0] > 0.5
    if not bool(inside.any()):
        raise VolumeError(
            f"the label of patient '{patient.id}' is empty",
            where=label.name,
            seen="no voxel of the decoder's image is inside",
            remedy="Correct the label or leave the patient out; nothing was trained.",
        )
    return Pair(body, inside)


def _labelled(prepared: Prepared, path: Path) -> Prepared:
    """The prepared patient with its label in place of its image."""
    return replace(prepared, source=label_slices(prepared, path)[:, None].astype(np.float32))


def signed_distances(
    label: Tensor, spacing_mm: tuple[float, float, float], reach_mm: float
) -> Tensor:
    """Distance to the label's edge as a share of `reach_mm`, (d, h, w), float32 in [-1, 1].

    Above 0 inside. A voxel next to the edge is half a pixel from it.
    """
    inside: Bools = label.numpy().astype(np.bool_)
    half = 0.5 * min(spacing_mm)
    into = ndimage.distance_transform_edt(inside, sampling=spacing_mm)
    away = ndimage.distance_transform_edt(~inside, sampling=spacing_mm)
    signed = np.where(inside, into - half, half - away) / reach_mm
    return torch.from_numpy(np.clip(signed, -1, 1)).float()


def pair_trajectory(pair: Pair, decoder: FrozenDecoder, form: PairForm) -> Tensor:
    """Length, image latents and label waves along the body, (positions, 1 + numbers)."""
    image = trajectory(pair.body, decoder, form.image)
    waves = form.waves_of(signed_distances(pair.label, pair.body.spacing_mm, form.reach_mm))
    places = form.image.positions
    at = F.interpolate(waves.T[None], size=places, mode="linear", align_corners=True)[0].T
    return torch.cat([image, at], dim=1)


def joint_gaussian(
    sites: Mapping[str, Iterable[Sequence[Tensor]]], form: PairForm
) -> tuple[GaussianTrajectory, dict[str, int]]:
    """The Gaussian of all sites' training pairs, from one message of each site.

    A site with too few patients (`TrajectoryForm.fewest`) sends nothing.

    Args:
        sites: site -> for each training patient the trajectories of its volumes.
        form: their layout.

    Returns:
        The Gaussian, and patients by site that it is of.

    Raises:
        DataError: no site has enough patients.
    """
    whole = form.whole
    total, counted = TrajectorySums.zero(whole), {}
    for site, patients in sorted(sites.items()):
        own = TrajectorySums.zero(whole)
        for volumes in patients:
            own = own + patient_moments(volumes, whole)
        counted[site] = own.patients if own.patients >= whole.fewest else 0
        if counted[site]:
            total = total + moments_from_arrays(moments_to_arrays(own), whole)
    fitted = fit_gaussian(total)
    mapper = GaussianTrajectory(whole.positions, (), whole.tail, None, columns=whole.columns)
    mapper.load_gaussian({name.removeprefix(GAUSSIAN): t for name, t in fitted.items()})
    return mapper, counted


def new_pair(
    gaussian: GaussianTrajectory,
    decoder: FrozenDecoder,
    form: PairForm,
    *,
    seed: int,
    index: int,
    slices: int,
    slice_spacing_mm: float,
) -> Pair:
    """Pair `index` of a seed: an image that the frozen decoder draws, and its label."""
    latents = volume_latents(
        gaussian,
        decoder,
        seed=seed,
        index=index,
        slices=slices,
        slice_spacing_mm=slice_spacing_mm,
    )
    image = torch.from_numpy(np.concatenate(list(decoded(decoder, latents[:, : form.latents]))))
    pixel = decoder.card.network.pixel_mm
    body = BodyVolume(image[None, None].contiguous(), (slice_spacing_mm, pixel, pixel))
    return Pair(body, form.distances_of(latents[:, form.latents :]) > 0)
