"""A slice decoder from public slices: a variational autoencoder, of which the decoder stays.

Latents are brought to mean 0 and covariance 1 over the public slices, and this is folded into
the decoder's first layer: a standard normal vector is a likely slice. Beside the decoder come
the public files of the drifting loss, fitted on the same volumes.

On one kind of CPU with a fixed number of threads the same settings and data give the
bit-identical bundle, whether or not the training was interrupted.

Source: Kingma and Welling 2014, arXiv:1312.6114.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lift.cohort.layouts import list_patients
from lift.config.cohort import CohortData
from lift.config.decoder import DecoderCard, DecoderPretrainConfig, PublicFeaturesCard
from lift.config.plan import MixerPlan, Plan, TaskPlan, UnconditionalPlan
from lift.config.privacy import NoPrivacy
from lift.device import fix_threads
from lift.drifting.encoder import RandomPyramid
from lift.drifting.features import raw_features
from lift.drifting.groups import GroupLayout
from lift.drifting.projection import fit_projection
from lift.drifting.standardise import fit_standardisation
from lift.errors import DataError
from lift.generator.pretraining import (
    CHECKPOINT_FILE,
    Progress,
    Report,
    check_finite,
    log_refusal,
    rate_factor,
    resume_training,
    write_training,
    written_phantoms,
)
from lift.preprocessing import prepare
from lift.randomness import derive_seed
from lift.unconditional.bundle import save_decoder
from lift.unconditional.decoder import (
    PublicFeatures,
    SliceDecoder,
    SliceEncoder,
    decoder_fingerprint,
    nearest_latents,
)
from lift.unconditional.grid import BodyVolume, body_volume

logger = logging.getLogger(__name__)
_WEIGHT_DECAY: Final = 1e-2
_GRADIENT_CLIP: Final = 100.0
_FEWEST_VARIANCE: Final = 1e-4
_FEWEST_PATIENTS: Final = 2


@dataclass(frozen=True)
class PublicVolume:
    """One public volume on the decoder's grid, and whose it is."""

    subject: str
    body: BodyVolume

    @property
    def slices(self) -> Tensor:
        """(d, 1, h, w)."""
        return self.body.voxels[0, 0][:, None]


def pretrain_decoder(
    config: DecoderPretrainConfig,
    folder: Path,
    *,
    work: Path,
    device: torch.device,
    report: Report | None = None,
    progress: Progress | None = None,
) -> DecoderCard:
    """Train on the public cohorts, write the bundle to `folder` and return its card.

    To resume, call it again with the same `work`.

    Args:
        config: what to train on what.
        folder: becomes the bundle.
        work: for phantom cohorts and the checkpoint; may be deleted afterwards.
        device: where to train.
        report: called after each step with steps done, steps in all, and the step's loss.
        progress: called after each phantom that is written and each patient that is read.

    Raises:
        DataError: a cohort gives no usable patient, or all together too few for the public files.
        GeneratorError: the training diverged.
    """
    fix_threads(config.threads)
    volumes = read_public_volumes(config, work, progress)
    training, validation = _split(volumes, config)
    network = _train(config, training, work, device, report).cpu().eval()
    # what is stored is what is used: half precision, once
    network.load_state_dict({n: t.half().float() for n, t in network.state_dict().items()})
    public = fit_public_features(config, volumes)
    card = DecoderCard(
        kind="unconditional",
        network=config.network,
        target=config.target,
        plane=config.preprocessing.plane,
        normalisation={config.target: config.preprocessing.rule(config.target)},
        body_length_mm=round(
            sum(v.body.voxels.shape[2] * v.body.spacing_mm[0] for v in volumes) / len(volumes), 3
        ),
        features=PublicFeaturesCard(
            encoder_seed=config.encoder_seed,
            encoder_form=config.encoder_form,
            standardisation_digest=public.standardisation.digest,
            projection_digest=public.projection.digest,
        ),
        training_data=config.training_data,
        licence=config.licence,
        fingerprint=decoder_fingerprint(config.network, network.state_dict()),
        made_with=version("lift-federated"),
        trained_steps=config.steps,
        validation_psnr_db=ceiling_psnr_db(network, validation) if validation else None,
    )
    save_decoder(folder, network, card, public)
    return card


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


def ceiling_psnr_db(network: nn.Module, volumes: Sequence[PublicVolume]) -> float:
    """Mean PSNR of the nearest slices that the decoder can make, in dB."""
    latent = next(iter(network.parameters())).shape[1]
    figures = []
    for volume in volumes:
        latents = nearest_latents(network, volume.slices, latent)
        with torch.no_grad():
            made = network(latents)
        error = float((made - volume.slices).double().square().mean())
        figures.append(-10 * math.log10(max(error, 1e-14)))
    return round(sum(figures) / len(figures), 3)


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


def _train(
    config: DecoderPretrainConfig,
    volumes: Sequence[PublicVolume],
    work: Path,
    device: torch.device,
    report: Report | None,
) -> SliceDecoder:
    slices = torch.cat([volume.slices for volume in volumes])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.seed, "weights"))
        pair = nn.ModuleDict(
            {
                "encoder": SliceEncoder(config.network, config.encoder_channels),
                "decoder": SliceDecoder(config.network),
            }
        ).to(device)
    optimiser = torch.optim.AdamW(
        pair.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY
    )
    run = _run_digest(config, slices)
    first = resume_training(work / CHECKPOINT_FILE, run, pair, optimiser)
    for step in range(first, config.steps):
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "step", step))
        batch = draw_slices(slices, config, generator).to(device)
        optimiser.param_groups[0]["lr"] = config.learning_rate * rate_factor(step, config.steps)
        mean, log_variance = pair["encoder"](batch)
        noise = torch.randn(mean.shape, generator=generator).to(device)
        made = pair["decoder"](mean + noise * (log_variance / 2).exp())
        error = (made - batch).square().sum((1, 2, 3)).mean() / (2 * config.noise_variance)
        prior = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean()
        optimiser.zero_grad()
        (error + prior).backward()
        norm = torch.nn.utils.clip_grad_norm_(pair.parameters(), _GRADIENT_CLIP)
        value = float((error + prior).detach())
        check_finite(value, float(norm), step)
        optimiser.step()
        done = step + 1
        if done % config.checkpoint_steps == 0 or done == config.steps:
            write_training(work / CHECKPOINT_FILE, run, done, pair, optimiser)
        if step == first or done % config.checkpoint_steps == 0 or done == config.steps:
            logger.info("event=pretraining step=%d loss=%.5f", done, value)
        if report is not None:
            report(done, config.steps, value)
    decoder = pair["decoder"]
    assert isinstance(decoder, SliceDecoder)  # noqa: S101  # made above
    _normalise_latents(decoder, pair["encoder"], slices, device)
    return decoder


def draw_slices(
    slices: Tensor, config: DecoderPretrainConfig, generator: torch.Generator
) -> Tensor:
    """A batch of shifted, mirrored slices of other contrasts, (n, 1, h, w)."""
    n, reach = config.batch_slices, config.shift_px
    batch = slices[torch.randint(len(slices), (n,), generator=generator)]
    height, width = batch.shape[2:]
    gamma = torch.exp(config.gamma_sd * torch.randn(n, generator=generator))
    batch = batch.clamp(0, 1) ** gamma[:, None, None, None]
    mirror = torch.rand(n, generator=generator) < 0.5
    if config.flip and config.preprocessing.plane != "sagittal":
        batch = torch.where(mirror[:, None, None, None], batch.flip(3), batch)
    if reach:
        down, right = torch.randint(2 * reach + 1, (2, n), generator=generator)
        padded = F.pad(batch, (reach, reach, reach, reach), mode="replicate")
        rows = down[:, None] + torch.arange(height)
        columns = right[:, None] + torch.arange(width)
        batch = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None]]
        batch = batch[:, None]
    return batch


def _normalise_latents(
    decoder: SliceDecoder, encoder: nn.Module, slices: Tensor, device: torch.device
) -> None:
    """Fold mean and covariance of the public slices' latents into the decoder's first layer."""
    with torch.no_grad():
        means = torch.cat([encoder(part.to(device))[0].cpu() for part in torch.split(slices, 256)])
        means = means.double()
        values, axes = torch.linalg.eigh(torch.cov(means.T))
        root = (axes * values.clamp_min(_FEWEST_VARIANCE).sqrt()) @ axes.T
        first = decoder.dense[0]
        assert isinstance(first, nn.Linear)  # noqa: S101  # every decoder starts so
        weight = first.weight.double().cpu()
        first.bias.add_((weight @ means.mean(0)).to(first.bias))
        first.weight.copy_(weight @ root)


def _run_digest(config: DecoderPretrainConfig, slices: Tensor) -> str:
    deciding = config.model_dump(
        mode="json", exclude={"cohorts", "training_data", "licence", "checkpoint_steps"}
    )
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    digest.update(slices.numpy().tobytes())
    return digest.hexdigest()
