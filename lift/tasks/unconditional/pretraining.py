"""A slice decoder from public slices: principal axes, or a trained network that does better.

Beside the decoder come the public files of the drifting loss and the moments of trajectories,
fitted on the same volumes.

A trained network is worth its place where it reconstructs public slices that were held out
better than a PCA with as many latents does; else it is refused.

On one kind of CPU with a fixed number of threads the same settings and data give the
bit-identical bundle, whether or not the training was interrupted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lift.cohort.layouts import list_patients
from lift.cohort.preprocessing import prepare
from lift.config.cohort import CohortData
from lift.config.decoder import (
    DecoderCard,
    DecoderPretrainConfig,
    PcaDecoderConfig,
    PublicFeaturesCard,
    SliceDecoderConfig,
)
from lift.config.plan import MixerPlan, Plan, TaskPlan, UnconditionalPlan
from lift.config.privacy import NoPrivacy
from lift.device import fix_threads
from lift.errors import DataError
from lift.generator.pretraining import (
    Progress,
    Report,
    log_refusal,
    written_phantoms,
)
from lift.randomness import derive_seed
from lift.tasks.unconditional.autoencoder import train_decoder
from lift.tasks.unconditional.bundle import save_decoder
from lift.tasks.unconditional.decoder import (
    AnyDecoder,
    FrozenDecoder,
    PublicFeatures,
    decoder_fingerprint,
)
from lift.tasks.unconditional.grid import BodyVolume, body_volume
from lift.tasks.unconditional.moments import trajectory
from lift.tasks.unconditional.pca import fit_pca
from lift.tasks.unconditional.public_gaussian import fit_public_moments, public_form
from lift.tasks.unconditional.public_moments import PublicMoments
from lift.tasks.unconditional.public_worth import ceiling_psnr_db, check_worth, equal_pca
from lift.triplanar.encoder import RandomPyramid
from lift.triplanar.features import raw_features
from lift.triplanar.groups import GroupLayout
from lift.triplanar.projection import fit_projection
from lift.triplanar.standardise import fit_standardisation

logger = logging.getLogger(__name__)
_FEWEST_PATIENTS: Final = 2


@dataclass(frozen=True)
class PublicVolume:
    """One public volume on the decoder's grid, and whose it is."""

    subject: str
    body: BodyVolume

    @property
    def voxels(self) -> Tensor:
        """(d, h, w)."""
        return self.body.voxels[0, 0]

    @property
    def slices(self) -> Tensor:
        """(d, 1, h, w)."""
        return self.voxels[:, None]


@dataclass(frozen=True)
class _Made:
    """A decoder, and what it and a PCA with as many latents make of held-out slices, in dB."""

    network: AnyDecoder
    steps: int
    psnr_db: float | None
    pca_psnr_db: float | None
    weaker: bool = False


def pretrain_decoder(
    config: DecoderPretrainConfig,
    folder: Path,
    *,
    work: Path,
    device: torch.device,
    report: Report | None = None,
    progress: Progress | None = None,
) -> DecoderCard:
    """Make a decoder of the public cohorts, write the bundle to `folder`, return its card.

    A PCA is of all volumes, and its PSNR in the card is that of one without the validation
    patients. To resume a training, call this again with the same `work`.

    Args:
        config: what to make of what.
        folder: becomes the bundle.
        work: for phantom cohorts and the checkpoint; may be deleted afterwards.
        device: where to train.
        report: called after each step with steps done, steps in all, and the step's loss.
        progress: called after each phantom that is written and each patient that is read.

    Raises:
        DataError: a cohort gives no usable patient, or all together too few for the public
            files, for the axes, or for a comparison with a PCA.
        GeneratorError: the training diverged, or gave nothing better than a PCA; the checkpoint
            is kept.
    """
    fix_threads(config.threads)
    volumes = read_public_volumes(config, work, progress)
    training, validation = _split(volumes, config)
    if isinstance(config.network, PcaDecoderConfig):
        made = _closed_form(config, config.network, training, validation)
    else:
        made = _trained(config, config.network, training, validation, work, device, report)
    public = fit_public_features(config, volumes)
    lengths = [v.body.voxels.shape[2] * v.body.spacing_mm[0] for v in volumes]
    card = DecoderCard(
        format_version=1,
        kind="unconditional",
        network=config.network,
        target=config.target,
        plane=config.preprocessing.plane,
        normalisation={config.target: config.preprocessing.rule(config.target)},
        body_length_mm=round(math.fsum(lengths) / len(volumes), 3),
        features=PublicFeaturesCard(
            encoder_seed=config.encoder_seed,
            encoder_form=config.encoder_form,
            standardisation_digest=public.standardisation.digest,
            projection_digest=public.projection.digest,
        ),
        training_data=config.training_data,
        licence=config.licence,
        fingerprint=decoder_fingerprint(config.network, made.network.state_dict()),
        made_with=version("lift-federated"),
        trained_steps=made.steps,
        validation_psnr_db=made.psnr_db,
        pca_psnr_db=made.pca_psnr_db,
        weaker_than_pca=made.weaker,
    )
    moments = public_moments_of(FrozenDecoder(made.network, card, public), volumes)
    features = card.features.model_copy(update={"moments_digest": moments.digest})
    card = card.model_copy(update={"format_version": 2, "features": features})
    save_decoder(folder, made.network, card, replace(public, moments=moments))
    return card


def public_moments_of(decoder: FrozenDecoder, volumes: Sequence[PublicVolume]) -> PublicMoments:
    """The moments of public volumes' trajectories; their order changes no bit.

    Args:
        decoder: of these volumes, on the CPU.
        volumes: a subject with several ones counts once.
    """
    network = decoder.card.network
    form = public_form(network.volume_latents, network.latent)
    by_subject: dict[str, list[Tensor]] = {}
    for volume in volumes:
        found = by_subject.setdefault(volume.subject, [])
        found.append(trajectory(volume.body, decoder, form))
    return fit_public_moments(by_subject.values(), network.volume_latents, network.latent)


def read_public_volumes(
    config: DecoderPretrainConfig, work: Path, progress: Progress | None = None
) -> list[PublicVolume]:
    """All usable volumes of all cohorts; phantom cohorts are written under `work` first.

    Args:
        config: names the cohorts.
        work: for phantom cohorts.
        progress: as in :func:`pretrain_decoder`.

    Raises:
        DataError: a cohort has no usable patient, or a bad one and `on_bad_file: stop`.
    """
    plan = Plan(
        task=TaskPlan(kind="unconditional", target=config.target),
        preprocessing=config.preprocessing,
        mixer=MixerPlan(kind="trajectory_mapper"),
        unconditional=UnconditionalPlan(),
        privacy=NoPrivacy(mode="none"),
    )
    found: list[PublicVolume] = []
    for index, cohort in enumerate(config.cohorts):
        data = written_phantoms(cohort, work, config.threads, progress)
        usable = _read_cohort(data, plan, config, f"{index}/", progress)
        if not usable:
            raise DataError(
                "cannot pre-train: a cohort has no usable patient",
                where=f"cohorts.{index}",
                seen=f"needed: volumes of the channel {config.target}; the log names each patient "
                "that was refused",
                remedy="Correct the folder or take the cohort out; nothing was trained.",
            )
        found += usable
    if len({volume.subject for volume in found}) < _FEWEST_PATIENTS:
        raise DataError(
            "cannot pre-train a slice decoder on one patient",
            where="cohorts",
            seen=f"1 patient; at least {_FEWEST_PATIENTS} are needed",
            remedy="Add public volumes; nothing was trained.",
        )
    return found


def layout_of(config: DecoderPretrainConfig) -> GroupLayout:
    """The tri-planar groups of the public files."""
    axial, coronal, sagittal = config.position_bins
    return GroupLayout(
        axial,
        coronal,
        sagittal,
        windows=config.windows,
        step_mm=config.step_mm,
        pixel_mm=config.network.pixel_mm,
    )


def fit_public_features(
    config: DecoderPretrainConfig, volumes: Sequence[PublicVolume]
) -> PublicFeatures:
    """Encoder, standardisation and projection of public volumes.

    Raises:
        DataError: too few volumes, or volumes that are too much alike.
    """
    layout = layout_of(config)
    encoder = RandomPyramid(config.encoder_seed, config.encoder_form)
    by_volume = [
        raw_features(v.body.voxels, v.body.spacing_mm, v.body.extent, layout, encoder)
        for v in volumes
    ]
    raw = [torch.cat(rows) for rows in zip(*by_volume, strict=True)]
    standardisation = fit_standardisation(raw, layout, encoder.digest, dimension=config.dimension)
    projection = fit_projection(
        [standardisation.transform(rows, group) for group, rows in enumerate(raw)],
        standardisation,
        seed=derive_seed(config.seed, "projection"),
        kinds=config.statistics,
        n_anchors=config.anchors,
        n_features=config.random_features,
    )
    return PublicFeatures(encoder, standardisation, projection)


def _closed_form(
    config: DecoderPretrainConfig,
    network: PcaDecoderConfig,
    training: Sequence[PublicVolume],
    validation: Sequence[PublicVolume],
) -> _Made:
    def fitted(volumes: Sequence[PublicVolume]) -> AnyDecoder:
        return fit_pca(network, [v.voxels for v in volumes], mirror=config.mirrors)

    unseen = [volume.voxels for volume in validation]
    psnr_db = ceiling_psnr_db(fitted(training), unseen) if unseen else None
    return _Made(fitted([*training, *validation]), 0, psnr_db, psnr_db)


def _trained(
    config: DecoderPretrainConfig,
    network: SliceDecoderConfig,
    training: Sequence[PublicVolume],
    validation: Sequence[PublicVolume],
    work: Path,
    device: torch.device,
    report: Report | None,
) -> _Made:
    if not validation and not config.allow_weaker_than_pca:
        raise DataError(
            "cannot compare a trained slice decoder with a PCA",
            where="validation_share",
            seen="0 public patients are held out; at least 1 is needed",
            remedy="Nothing was trained. Raise validation_share, add public volumes, choose "
            "network.name pca, or set allow_weaker_than_pca: true.",
        )
    slices = torch.cat([volume.slices for volume in training])
    decoder = train_decoder(config, network, slices, work=work, device=device, report=report)
    decoder = decoder.cpu().eval()
    # what is stored is what is used: half precision, once
    decoder.load_state_dict({n: t.half().float() for n, t in decoder.state_dict().items()})
    if not validation:
        return _Made(decoder, config.steps, None, None)
    unseen = [volume.voxels for volume in validation]
    psnr_db = ceiling_psnr_db(decoder, unseen)
    pca = equal_pca(network, [volume.voxels for volume in training])
    pca_psnr_db = ceiling_psnr_db(pca, unseen)
    logger.info("event=decoder_compared psnr_db=%.3f pca_psnr_db=%.3f", psnr_db, pca_psnr_db)
    weaker = check_worth(psnr_db, pca_psnr_db, allow_weaker=config.allow_weaker_than_pca)
    return _Made(decoder, config.steps, psnr_db, pca_psnr_db, weaker)


def _read_cohort(
    data: CohortData,
    plan: Plan,
    config: DecoderPretrainConfig,
    prefix: str,
    progress: Progress | None,
) -> list[PublicVolume]:
    needs_mask = plan.preprocessing.mask == "file"
    patients, refusals = list_patients(data, plan.task.inputs, needs_mask=needs_mask)
    for refusal in refusals:
        log_refusal(refusal.patient, refusal.reason)
    usable = []
    for done, patient in enumerate(patients, 1):
        try:
            prepared = prepare(patient, plan, root=data.root, with_target=False)
            body = body_volume(prepared, config.network, layout_of(config), patient.id)
            usable.append(PublicVolume(prefix + patient.subject, body))
        except DataError as error:
            if data.on_bad_file == "stop":
                raise
            log_refusal(patient.id, error)
        if progress is not None:
            progress("patients read", done, len(patients))
    return usable


def _split(
    volumes: Sequence[PublicVolume], config: DecoderPretrainConfig
) -> tuple[list[PublicVolume], list[PublicVolume]]:
    subjects = sorted({volume.subject for volume in volumes})
    count = min(round(config.validation_share * len(subjects)), len(subjects) - 1)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "validation"))
    order = torch.randperm(len(subjects), generator=generator).tolist()
    chosen = {subjects[i] for i in order[:count]}
    return (
        [volume for volume in volumes if volume.subject not in chosen],
        [volume for volume in volumes if volume.subject in chosen],
    )
