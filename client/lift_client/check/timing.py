"""A timed dry run at the site: one patient, a few steps, and an estimate for a whole round."""

from __future__ import annotations

import math
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lift.cohort.layouts import list_patients
from lift.cohort.patients import Patient
from lift.cohort.preprocessing import prepare
from lift.cohort.vetoes import known_vetoes
from lift.cohort.withdrawn import left_out
from lift.config.kit import Kit
from lift.config.plan import Plan, TaskPlan, derived_deadline_s
from lift.config.privacy import NoPrivacy
from lift.config.site import SiteConfig
from lift.device import resolve_device
from lift.errors import DataError, LiftError
from lift.generator.bundle import load_bundle
from lift.generator.card import bundle_folder
from lift.generator.features import Features, compute_features
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.training import train_round
from lift_client.check.verdict import Verdict, problem

_CHECK: Final = "dry run"
_STEPS: Final = 4
_TRIES: Final = 3


@dataclass(frozen=True)
class Timing:
    """Time for one patient, and the estimate for all.

    Attributes:
        patients: with all channels, without those whom the image checks veto.
        prepare_s: reading, normalising and the frozen generator's features, of one patient.
        step_s: one optimiser step of the default mixer.
        cache_gb: features of all patients on the disk.
        memory_gb: the largest this process ever was.
        steps: of a round, by the default plan.
    """

    patients: int
    prepare_s: float
    step_s: float
    cache_gb: float
    memory_gb: float
    steps: int

    @property
    def round_s(self) -> float:
        """Seconds of a round's training."""
        return self.step_s * self.steps

    @property
    def deadline_s(self) -> float:
        """Return a deadline that this site can keep: three times its round, plus one minute."""
        return derived_deadline_s(self.round_s)


def check_timing(config: SiteConfig, kit: Kit) -> Verdict:
    """The dry run as one line of the check; nothing of it is kept or sent."""
    if not kit.task.source:
        return Verdict(_CHECK, "skipped", "only a paired task is timed")
    try:
        found = time_one_patient(config, kit)
    except LiftError as error:
        return problem(_CHECK, error)
    whole = found.prepare_s * found.patients
    too_large = found.cache_gb > config.cache.largest_gb
    return Verdict(
        _CHECK,
        "warning" if too_large else "ok",
        f"one patient {found.prepare_s:.1f} s, all {found.patients} in {_duration(whole)}, cache "
        f"{found.cache_gb:.2g} GB, memory {found.memory_gb:.2g} GB; a step {found.step_s:.2f} s, "
        f"a round of {found.steps} steps {_duration(found.round_s)}: a deadline of "
        f"{found.deadline_s:.0f} s would do",
        _larger_cache(found.cache_gb) if too_large else "",
    )


def _larger_cache(needed_gb: float) -> str:
    # patients differ in size, and one of middling size stands for all
    return (
        f"A run stops when cache.largest_gb is full: set it to {math.ceil(1.2 * needed_gb)} or "
        "more where the disk has room, or let fewer patients take part."
    )


def time_one_patient(config: SiteConfig, kit: Kit) -> Timing:
    """Prepare one patient of middling size and train a few steps on it, as the default plan would.

    Args:
        config: the site's settings.
        kit: names task and generator.

    Raises:
        DataError: no patient has all channels, or the one that was taken cannot be used.
        GeneratorError: the generator is missing or not the kit's.
    """
    generator = load_bundle(
        bundle_folder(config.generator),
        expected_fingerprint=kit.generator_fingerprint,
        device=resolve_device(config.device),
    )
    plan = Plan(
        task=TaskPlan(source=kit.task.source, target=kit.task.target),
        generator_fingerprint=generator.fingerprint,
        privacy=NoPrivacy(mode="none"),
    )
    listed, _ = list_patients(config.data, plan.task.channels, without=left_out(config))
    known = known_vetoes(config, plan.task.channels, kit.grid, listed)
    patients = [patient for patient in listed if patient.id not in known.vetoed]
    mixer = plan_mixer(plan, generator)
    refusal: DataError | None = None
    for patient in by_size(patients)[:_TRIES]:
        began = monotonic()
        try:
            prepared = prepare(patient, plan, root=config.data.root, with_target=True)
        except DataError as error:
            refusal = refusal or error
            continue
        features = compute_features(prepared, generator, mixer.tap_names, mixer.pooled_names)
        prepare_s = monotonic() - began
        break
    else:
        raise refusal or DataError(
            "no patient to time",
            where=str(config.data.root),
            seen="no patient has all channels and no veto of the image checks",
            remedy="Fix the data first. The check names what is missing.",
        )
    short = plan.model_copy(
        update={"training": plan.training.model_copy(update={"steps": _STEPS, "warmup_steps": 0})}
    )
    times = [monotonic()]
    train_round(
        mixer,
        mixer.values(),
        [features],
        short,
        round_index=1,
        site=config.name,
        report=lambda _step: times.append(monotonic()),
    )
    # the first step also warms up
    step_s = statistics.median(np.diff(times)[1:].tolist())
    return Timing(
        patients=len(patients),
        prepare_s=prepare_s,
        step_s=step_s,
        cache_gb=_bytes(features) * len(patients) / 1e9,
        memory_gb=_peak_gb(),
        steps=plan.training.steps,
    )


def by_size(patients: Sequence[Patient]) -> list[Patient]:
    """The patient of middling file size first, then those nearest to it in size."""
    sizes = {
        patient.id: sum(_size(path) for path in patient.channels.values()) for patient in patients
    }
    middle = statistics.median(sizes.values()) if sizes else 0
    return sorted(patients, key=lambda patient: (abs(sizes[patient.id] - middle), patient.id))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _bytes(features: Features) -> int:
    arrays: list[NDArray[Any]] = [
        features.source,
        features.pred,
        features.mask,
        *features.taps.values(),
    ]
    arrays += [*features.pooled.values(), *([] if features.target is None else [features.target])]
    return sum(array.nbytes for array in arrays)


def _peak_gb() -> float:
    # kilobytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
