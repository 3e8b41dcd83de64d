"""Local training of the trajectory mapper: generated volumes drift towards real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from lift.config.plan import Plan, UnconditionalPlan
from lift.config.privacy import StatisticsOnce
from lift.device import device_of
from lift.errors import ConfigError, DataError
from lift.mixer.gaussian import GaussianNoise, GaussianTrajectory, held_inside
from lift.mixer.trajectory import TrajectoryMapper, slice_positions
from lift.one_patient import of_one_patient
from lift.randomness import derive_seed
from lift.tasks.steps import TrainedRound, take_steps
from lift.tasks.unconditional.decoder import FrozenDecoder, PublicFeatures
from lift.tasks.unconditional.drifting.attraction import (
    Anchors,
    Attraction,
    Moments,
    RandomFeatures,
    SampleQueue,
)
from lift.tasks.unconditional.drifting.loss import DriftingLoss
from lift.tasks.unconditional.drifting.statistics import Sums, patient_sums
from lift.tasks.unconditional.grid import BodyVolume, whole_extent
from lift.tasks.unconditional.moments import form_of
from lift.triplanar.features import Rows, generated_rows, patient_features
from lift.triplanar.groups import RandomPlaces, draw_groups
from lift.triplanar.standardise import RADIUS, clip_length
from lift.wire.names import GAUSSIAN, STYLE, group, without

Trajectory = TrajectoryMapper | GaussianTrajectory
"""What makes the latents of a new volume's slices."""
LossFunction = Callable[[Mapping[int, Rows]], tuple[Tensor, dict[str, float]]]
"""Generated features by group -> the loss and its figures; a `DriftingLoss`."""
_ATTRACTIONS: Final = {"anchors": Anchors, "random_features": RandomFeatures, "moments": Moments}


@dataclass(frozen=True)
class PatientFeatures:
    """One patient's standardised features by group, (windows, d); what sums and queues take."""

    groups: tuple[Tensor, ...]


def features_of(volumes: Sequence[BodyVolume], public: PublicFeatures) -> PatientFeatures:
    """The features of all volumes of one patient, on the CPU wherever the encoder is."""
    device = device_of(public.encoder)
    found = [
        patient_features(
            v.voxels.to(device), v.spacing_mm, v.extent, public.encoder, public.standardisation
        )
        for v in volumes
    ]
    return PatientFeatures(tuple(torch.cat(rows).cpu() for rows in zip(*found, strict=True)))


def sums_of(
    patients: Sequence[PatientFeatures], public: PublicFeatures, *, one_by_one: bool = False
) -> Sums:
    """The additive statistics of some patients.

    Args:
        patients: of each the features.
        public: what they are projected by.
        one_by_one: under noise: a patient whose statistics cannot be computed adds nothing.

    Raises:
        DataError: such a patient, without noise.
    """
    total = Sums.zero(public.projection)
    for patient in patients:
        compute = partial(patient_sums, public.projection, patient.groups)
        one = of_one_patient(compute) if one_by_one else compute()
        total = total if one is None else total + one
    return total


def plan_mapper(plan: Plan, decoder: FrozenDecoder) -> Trajectory:
    """The plan's mapper with its initial numbers, the same on every machine.

    It is on the decoder's device and stays there. The global random state is neither used nor
    changed. A Gaussian has no moments yet: see :func:`load_trajectory`.
    """
    settings = settings_of(plan)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(plan.seed, "mixer"))
        mapper: Trajectory
        if settings.trajectory == "gaussian":
            form = form_of(settings.gaussian, decoder)
            residual = settings.mapper if plan.federation.rounds else None
            mapper = GaussianTrajectory(
                form.positions, form.joint, form.tail, residual, form.rest, form.columns
            )
        else:
            mapper = TrajectoryMapper(settings.mapper, decoder.card.network.latent)
    return mapper.to(decoder.device)


def load_trajectory(mapper: Trajectory, values: Mapping[str, Tensor]) -> None:
    """Set what was trained, and the Gaussian where the mapper has one.

    Args:
        mapper: from :func:`plan_mapper`.
        values: trained numbers by name; the Gaussian's under `gaussian/`. Sites' styles, under
            `style/`, are no part of the mapper.

    Raises:
        ValueError: they are not those of this mapper.
    """
    fixed, trained = split_gaussian(without(values, STYLE))
    if isinstance(mapper, GaussianTrajectory):
        mapper.load_gaussian(fixed)
    elif fixed:
        raise ValueError("a Gaussian is given, and the plan's trajectory is free")
    mapper.load_values(trained)


def split_gaussian(values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The Gaussian's tensors, without their prefix, and all others."""
    return group(values, GAUSSIAN), without(values, GAUSSIAN)


def settings_of(plan: Plan) -> UnconditionalPlan:
    """The plan's section for unconditional tasks.

    Raises:
        ConfigError: the plan is that of another task.
    """
    if plan.unconditional is None:
        raise ConfigError(
            "the plan makes no new volumes",
            where="task.kind",
            seen=f"{plan.task.kind}; needed: unconditional",
            remedy="Choose another plan or command.",
        )
    return plan.unconditional


def sends_moments(plan: Plan) -> bool:
    """Whether sites send moments of trajectories in round 0."""
    return settings_of(plan).trajectory == "gaussian"


def sends_drifting(plan: Plan) -> bool:
    """Whether sites send drifting statistics in round 0: where there are rounds that need them."""
    return settings_of(plan).attraction != "samples" and plan.federation.rounds > 0


def trains_residual(plan: Plan) -> bool:
    """Whether a mapper is trained on top of a Gaussian: then one of the two ships."""
    return settings_of(plan).trajectory == "gaussian" and plan.federation.rounds > 0


def asks_verdict(plan: Plan) -> bool:
    """Whether sites evaluate that mapper. Not under noise, since a verdict has none."""
    return trains_residual(plan) and not plan.protects_patients


def noise_of(plan: Plan) -> StatisticsOnce | None:
    """The privacy section for each kind of statistics that is sent; None without such noise."""
    if not isinstance(plan.privacy, StatisticsOnce):
        return None
    return plan.privacy.for_each_of(sends_moments(plan) + sends_drifting(plan))


def statistics_loss(plan: Plan, public: PublicFeatures, total: Sums) -> DriftingLoss:
    """The loss against sums over all sites.

    Raises:
        ConfigError: the sums were made with other public files, or lack what the plan needs.
        DataError: they hold no patient.
    """
    settings = settings_of(plan)
    attraction: Attraction | None = None
    if settings.loss != "mmd" and settings.attraction != "samples":
        attraction = _ATTRACTIONS[settings.attraction](public.projection, total)
    features = RandomFeatures(public.projection, total) if settings.loss != "drift" else None
    return DriftingLoss(settings.loss, attraction, features, settings.eta, settings.mmd_weight)


def samples_loss(
    plan: Plan, public: PublicFeatures, patients: Sequence[PatientFeatures]
) -> DriftingLoss:
    """The official loss against the site's own patients, whose features never leave it.

    Raises:
        DataError: there is no patient.
    """
    settings = settings_of(plan)
    queue = SampleQueue(public.projection.n_groups, capacity=settings.queue)
    for patient in patients:
        for index, rows in enumerate(patient.groups):
            queue.push(clip_length(rows, RADIUS), index)
    if not patients:
        raise DataError(
            "cannot train: the site has no training patient",
            seen="0 training patients; at least 1 is needed",
            remedy="Add patients or change the split; nothing was sent.",
        )
    return DriftingLoss("drift", queue, eta=settings.eta)


def train_mapper_round(
    mapper: Trajectory,
    start: dict[str, Tensor],
    decoder: FrozenDecoder,
    loss: LossFunction,
    plan: Plan,
    *,
    round_index: int,
    site: str,
    report: Callable[[int], None] | None = None,
) -> TrainedRound:
    """Take `plan.training.steps` optimiser steps from the mapper `start`.

    Each step makes volumes, compares some groups of them with the real ones, and moves the
    mapper. Everything random follows from the plan, the round, the site and the step.

    Args:
        mapper: an instance to train in; its numbers are overwritten. A Gaussian is set already.
        start: the received mapper's trained numbers.
        decoder: frozen.
        loss: of the site, or of all sites' sums.
        plan: the run's plan.
        round_index: 1 for the first training round.
        site: part of the seed: sites draw different volumes.
        report: called after each step with its number (from 1).
    """
    settings = settings_of(plan)
    public = decoder.public
    position = slice_positions(settings.slices, mapper.device)
    height, width = decoder.card.network.image
    pixel = decoder.card.network.pixel_mm
    spacing_mm = (settings.slice_spacing_mm, pixel, pixel)
    extent = whole_extent(settings.volumes_per_step, settings.slices, height, width)

    def step_losses(step: int, at_once: int) -> tuple[Tensor]:
        del at_once  # all volumes of a step are compared together
        seed = derive_seed(plan.seed, "round", round_index, "site", site, "step", step)
        generator = torch.Generator().manual_seed(seed)
        noise = mapper.draw(settings.volumes_per_step, generator).to(mapper.device)
        gaussian = None
        if isinstance(mapper, GaussianTrajectory) and isinstance(noise, GaussianNoise):
            gaussian = mapper.gaussian(noise, position)
            latents = mapper.refined(gaussian, position)
        else:
            latents = mapper(noise, position)
        volumes = decoder(latents)
        groups = draw_groups(public.projection.layout, settings.groups_per_step, generator)
        rows = generated_rows(
            volumes,
            spacing_mm,
            extent,
            public.encoder,
            public.standardisation,
            groups=groups,
            places=RandomPlaces(settings.windows_per_step, generator),
        )
        value, _ = loss(rows)
        if gaussian is not None:
            value = value + settings.prior_weight * held_inside(latents, gaussian)
        return (value,)

    return take_steps(
        mapper,
        start,
        plan,
        step_losses,
        round_index,
        report,
        setting="unconditional.volumes_per_step",
    )
