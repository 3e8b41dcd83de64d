"""A generator bundle from public slices: reading, training, validation, resuming.

On one kind of CPU with a fixed number of threads, the same settings and data give the
bit-identical bundle, whether or not the training was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lift.cohort.layouts import list_patients
from lift.cohort.patients import Patient
from lift.cohort.phantom.write import write_phantom_cohort
from lift.cohort.preprocessing import prepare
from lift.config.cohort import BratsData, CohortData, SynthradData
from lift.config.generator import GeneratorCard, PretrainConfig
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import Plan, TaskPlan
from lift.config.privacy import NoPrivacy
from lift.device import AtOnce, fix_threads, to_device
from lift.errors import DataError, GeneratorError, LiftError
from lift.files import write_atomically
from lift.generator.bundle import make_card, save_bundle
from lift.generator.networks import SliceNetwork, build_network, neighbour_channels
from lift.generator.training_slices import TrainingPatient, draw_batch, split_by_subject
from lift.randomness import derive_seed

logger = logging.getLogger(__name__)
Floats = NDArray[np.float32]
Report = Callable[[int, int, float], None]
Progress = Callable[[str, int, int], None]
"""What is being done, how much of it, of how much."""
T = TypeVar("T")

CHECKPOINT_FILE: Final = "pretraining.safetensors"
GRADIENT_WEIGHT: Final = 0.2
"""Weight of the loss of in-plane differences beside the pixel loss."""
_WEIGHT_DECAY: Final = 1e-4
_GRADIENT_CLIP: Final = 1.0
_WARMUP_SHARE: Final = 0.03
_VALIDATION_SLICES: Final = 8


@dataclass(frozen=True)
class Pretrained:
    """A trained network, and its mean validation PSNR (None without validation patients)."""

    network: SliceNetwork
    validation_psnr_db: float | None


def pretrain(
    config: PretrainConfig,
    folder: Path,
    *,
    work: Path,
    device: torch.device,
    report: Report | None = None,
    progress: Progress | None = None,
) -> GeneratorCard:
    """Train on the cohorts, write the bundle to `folder` and return its card.

    Fixes this process's threads and chooses deterministic kernels. To resume, call it again
    with the same `work`: phantoms that are written are kept, and training goes on from the
    last checkpoint.

    Args:
        config: what to train on what.
        folder: becomes the bundle.
        work: for phantom cohorts and the checkpoint; may be deleted afterwards.
        device: where to train.
        report: called after each step with steps done, steps in all, and the step's loss.
        progress: called after each phantom that is written and each patient that is read.

    Raises:
        DataError: a cohort gives no usable patient, or one is bad and `on_bad_file` is `stop`.
        GeneratorError: the training diverged.
    """
    fix_threads(config.threads)
    patients = read_patients(config, work, progress)
    trained = train_on_arrays(config, patients, work=work, device=device, report=report)
    network = trained.network.cpu()
    card = make_card(
        network,
        config,
        trained_steps=config.steps,
        validation_psnr_db=trained.validation_psnr_db,
    )
    save_bundle(folder, network, card)
    return card


def read_patients(
    config: PretrainConfig, work: Path, progress: Progress | None = None
) -> list[TrainingPatient]:
    """All usable patients of all cohorts; phantom cohorts are written under `work` first.

    Args:
        config: names the cohorts.
        work: for phantom cohorts.
        progress: as in :func:`pretrain`.

    Raises:
        DataError: a cohort has no usable patient, or a bad one and `on_bad_file: stop`.
    """
    return read_public(config, work, _read_patient, progress)


def read_public(
    config: PretrainConfig,
    work: Path,
    read: Callable[[Patient, Plan, Path, str], T],
    progress: Progress | None = None,
) -> list[T]:
    """What `read` makes of every usable patient of all cohorts; errors as of `read_patients`.

    Args:
        config: which cohorts, and how they are prepared.
        work: phantom cohorts are written there first.
        read: called with a patient, a plan, the data folder, and what stands before the names of
            the cohort's subjects.
        progress: as in :func:`pretrain`.
    """
    plan = Plan(
        task=TaskPlan(source=config.source, target=config.target),
        preprocessing=config.preprocessing,
        privacy=NoPrivacy(mode="none"),
    )
    found: list[T] = []
    for index, cohort in enumerate(config.cohorts):
        data = written_phantoms(cohort, work, config.threads, progress)
        usable = _read_cohort(data, plan, f"{index}/", read, progress)
        if not usable:
            raise DataError(
                "cannot use the public data: a cohort has no usable patient",
                where=f"cohorts.{index}",
                seen=f"needed: the channels {', '.join((*config.source, config.target))} on one "
                "grid; the log names each patient that was refused",
                remedy="Correct the folder or take the cohort out; nothing was made.",
            )
        logger.info("event=cohort_read cohort=%d patients=%d", index, len(usable))
        found += usable
    return found


def train_on_arrays(
    config: PretrainConfig,
    patients: Sequence[TrainingPatient],
    *,
    work: Path,
    device: torch.device,
    report: Report | None = None,
) -> Pretrained:
    """Train `config.steps` steps on these patients, from the checkpoint in `work` if it fits.

    AdamW with a short warm-up and a cosine to zero. Each step draws its slices from its own
    seed, so a resumed training takes the same steps as one that was never interrupted. A
    checkpoint of other settings or data is left unused (and later replaced), with a warning.

    Raises:
        GeneratorError: the loss or a gradient became infinite or NaN.
    """
    training, validation = split_by_subject(patients, config.validation_share, config.seed)
    network = build_network(config.network, seed=derive_seed(config.seed, "weights")).to(device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY
    )
    checkpoint = work / CHECKPOINT_FILE
    run = _run_digest(config, patients)
    first = resume_training(checkpoint, run, network, optimiser)
    network.train()
    at_once = AtOnce(config.batch_slices, device, "window")
    for step in range(first, config.steps):
        rng = np.random.default_rng(derive_seed(config.seed, "step", step))
        batch = [to_device(tensor, device) for tensor in draw_batch(config, training, rng)]
        optimiser.param_groups[0]["lr"] = config.learning_rate * rate_factor(step, config.steps)
        loss = at_once.attempt(partial(_set_gradients, network, batch, config.loss))
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_CLIP)
        value = loss.item()
        check_finite(value, norm.item(), step)
        optimiser.step()
        done = step + 1
        if done % config.checkpoint_steps == 0 or done == config.steps:
            write_training(checkpoint, run, done, network, optimiser)
        if step == first or done % config.checkpoint_steps == 0 or done == config.steps:
            logger.info("event=pretraining step=%d loss=%.5f", done, value)
        if report is not None:
            report(done, config.steps, value)
    network.eval()
    psnr = [validation_psnr_db(network, patient, config, device) for patient in validation]
    return Pretrained(network, float(np.mean(psnr)) if psnr else None)


def rate_factor(step: int, steps: int) -> float:
    """Factor on the learning rate at `step` (from 0): linear warm-up, then a cosine towards 0."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def masked_loss(
    pred: Tensor, target: Tensor, mask: Tensor, kind: str, whole: Tensor | None = None
) -> Tensor:
    """Pixel loss plus `GRADIENT_WEIGHT` times that of in-plane differences, inside the mask.

    Args:
        pred: (n, 1, h, w).
        target: (n, 1, h, w).
        mask: 0 or 1, (n, 1, h, w); a difference counts where both its pixels are inside.
        kind: `l1` or `l2`.
        whole: mask of all slices of the step, (m, 1, h, w): the losses of parts add up to its
            loss. None: these are all.
    """
    error = pred - target
    size = torch.abs if kind == "l1" else torch.square
    every = mask if whole is None else whole

    def mean(values: Tensor, inside: Tensor, of: Tensor) -> Tensor:
        return (size(values) * inside).sum() / of.sum().clamp(min=1)

    rows = mean(error.diff(dim=-2), _row_pairs(mask), _row_pairs(every))
    columns = mean(error.diff(dim=-1), _column_pairs(mask), _column_pairs(every))
    return mean(error, mask, every) + GRADIENT_WEIGHT * (rows + columns)


def _row_pairs(mask: Tensor) -> Tensor:
    return mask[..., 1:, :] * mask[..., :-1, :]


def _column_pairs(mask: Tensor) -> Tensor:
    return mask[..., 1:] * mask[..., :-1]


def _set_gradients(
    network: SliceNetwork, batch: Sequence[Tensor], kind: str, at_once: int
) -> Tensor:
    """The step's loss, and its gradient in the network's parameters; `at_once` slices at a time.

    Args:
        network: in training mode.
        batch: input, target and mask.
        kind: of the loss.
        at_once: slices.
    """
    # an attempt that did not fit has left gradients behind
    network.zero_grad()
    total: Tensor | None = None
    for x, target, mask in zip(*(torch.split(part, at_once) for part in batch), strict=True):
        loss = masked_loss(network(x, mask), target, mask, kind, batch[2])
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        total = loss.detach() if total is None else total + loss.detach()
    if total is None:
        raise ValueError("a step without a slice")
    return total


def validation_psnr_db(
    network: SliceNetwork, patient: TrainingPatient, config: PretrainConfig, device: torch.device
) -> float:
    """PSNR of one whole volume inside its mask, for the data range 1, in dB."""
    source = torch.from_numpy(patient.source.astype(np.float32))
    inputs = neighbour_channels(source, config.network.context_slices)
    mask = torch.from_numpy(patient.mask.astype(np.float32))
    parts = (torch.split(whole, _VALIDATION_SLICES) for whole in (inputs, mask))
    with torch.no_grad():
        pred = torch.cat(
            [
                network(*(to_device(part, device) for part in block)).cpu()
                for block in zip(*parts, strict=True)
            ]
        ).numpy()
    error = (pred.astype(np.float64) - patient.target)[patient.mask]
    # an error below float32's resolution is no better than that
    return -10 * math.log10(max(float(np.mean(error**2)), 1e-14))


def written_phantoms(
    cohort: CohortData | PhantomCohortConfig,
    work: Path,
    workers: int,
    progress: Progress | None = None,
) -> CohortData:
    """A cohort as files: a phantom one is written under `work` first."""
    if not isinstance(cohort, PhantomCohortConfig):
        return cohort
    root = work / f"phantom-{cohort.digest()[:12]}"
    told = None if progress is None else partial(progress, "phantom patients")
    write_phantom_cohort(cohort, root, progress=told, workers=workers)
    if "ct" in cohort.channels:
        return SynthradData(layout="synthrad", root=root)
    return BratsData(layout="brats", root=root)


def _read_cohort(
    data: CohortData,
    plan: Plan,
    prefix: str,
    read: Callable[[Patient, Plan, Path, str], T],
    progress: Progress | None,
) -> list[T]:
    channels = (*plan.task.source, plan.task.target)
    needs_mask = plan.preprocessing.mask == "file"
    patients, refusals = list_patients(data, channels, needs_mask=needs_mask)
    for refusal in refusals:
        log_refusal(refusal.patient, refusal.reason)
    usable = []
    for done, patient in enumerate(patients, 1):
        try:
            usable.append(read(patient, plan, data.root, prefix))
        except DataError as error:
            if data.on_bad_file == "stop":
                raise
            log_refusal(patient.id, error)
        if progress is not None:
            progress("patients read", done, len(patients))
    return usable


def _read_patient(patient: Patient, plan: Plan, root: Path, prefix: str) -> TrainingPatient:
    prepared = prepare(patient, plan, root=root, with_target=True)
    return TrainingPatient(
        subject=prefix + patient.subject,
        source=prepared.source.astype(np.float16),
        target=cast("Floats", prepared.target).astype(np.float16),
        mask=prepared.mask > 0,
    )


def log_refusal(patient: str, reason: LiftError) -> None:
    """Log an unusable patient, with the reason."""
    logger.warning("event=patient_refused patient=%s reason=%s", patient, reason)


def check_finite(loss: float, gradient_norm: float, step: int) -> None:
    """Raise GeneratorError if the training diverged."""
    if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        raise GeneratorError(
            "pre-training diverged",
            where="learning_rate",
            seen=f"step {step + 1}: loss {loss}, gradient norm {gradient_norm}",
            remedy="Lower learning_rate and start again; no bundle was written.",
        )


def _run_digest(config: PretrainConfig, patients: Sequence[TrainingPatient]) -> str:
    """SHA-256 of everything that decides the weights; the statements of the card do not."""
    deciding = config.model_dump(
        mode="json", exclude={"cohorts", "training_data", "licence", "checkpoint_steps"}
    )
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    for patient in patients:
        digest.update(f"{patient.subject} {patient.source.shape}\n".encode())
        for array in (patient.source, patient.target, patient.mask):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_training(
    path: Path, run: str, done: int, network: nn.Module, optimiser: torch.optim.AdamW
) -> None:
    """One file, so that weights, optimiser and step count can never disagree."""
    tensors = {f"weights/{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}/{name}"] = optimiser.state[parameter][moment]
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"run": run, "step": str(done)},
    )
    write_atomically(path, content)


def resume_training(path: Path, run: str, network: nn.Module, optimiser: torch.optim.AdamW) -> int:
    """Steps done: 0 for a new training, else weights and optimiser are the checkpoint's."""
    if not path.is_file():
        return 0
    try:
        with safetensors.safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("run") != run:
                logger.warning("event=checkpoint_unused reason=other_settings_or_data")
                return 0
            tensors: Mapping[str, Tensor] = {
                name: stored.get_tensor(name)
                for name in stored.keys()  # noqa: SIM118
            }
            done = int(metadata["step"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError):
        logger.warning("event=checkpoint_unused reason=damaged")
        return 0
    network.load_state_dict({name: tensors[f"weights/{name}"] for name in network.state_dict()})
    for name, parameter in network.named_parameters():
        optimiser.state[parameter] = {
            "step": torch.tensor(float(done)),
            "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
        }
    logger.info("event=pretraining_resumed step=%d", done)
    return done
