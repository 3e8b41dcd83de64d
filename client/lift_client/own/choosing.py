"""`lift-client choose`: choose the model of this site on its own validation patients.

Everything is computed here and stays here: nothing is sent. What was chosen is written to the work
folder, and `lift translate --curves` follows it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from torch import Tensor

from lift.config.site import SiteConfig
from lift.errors import ConfigError
from lift.generator.networks import FrozenGenerator
from lift.metrics.intervals import person_means
from lift.mixer.finished import FinishedMixer
from lift.mixer.z_filter import fit
from lift.process import files_kept_private
from lift.tasks.paired.building import plan_mixer, start_values
from lift.tasks.paired.choice import FEWEST_PATIENTS, USES, Choice, Use, choose
from lift.tasks.paired.contrast import CURVES_FILE, write_site_curves
from lift.tasks.paired.local import (
    LEARNING_RATE,
    OWN_MIXER_FILE,
    local_steps,
    train_alone,
    write_own_mixer,
)
from lift.tasks.paired.predictions import mixed, patient_psnr_db, volumes_of_uses
from lift_client.own.work import Progress, finished_mixer, open_own_work, shared_sums
from lift_client.tasks.paired import PairedWork

logger = logging.getLogger(__name__)
UNFINISHED: Final = ".choose-"
"""How the name of a folder begins in which the choice is worked on."""
_TAPS: Final = 6
_MIXER: Final = "mixer"


@dataclass(frozen=True)
class Row:
    """One method on the validation patients.

    Attributes:
        method: its name.
        psnr_db: mean PSNR in dB.
        difference_db: mean paired difference to the chosen method.
        error_db: the standard error of that difference.
    """

    method: str
    psnr_db: float
    difference_db: float
    error_db: float


@dataclass(frozen=True)
class Chosen:
    """What a site uses from now on.

    Attributes:
        choice: the method, and the figures that decided.
        rows: simplest first; empty where there were too few patients to compare.
        curves: the file that `lift translate --curves` takes.
        own_mixer: the file of a mixer of the site's own, if one was chosen.
        protected: whether the run promised privacy to patients, which no own mixer keeps.
    """

    choice: Choice
    rows: tuple[Row, ...]
    curves: Path
    own_mixer: Path | None
    protected: bool


@files_kept_private()
def choose_model(
    config: SiteConfig,
    *,
    mixer: Path | None,
    steps: int | None,
    local: bool,
    progress: Progress,
) -> Chosen:
    """Compare the models that this site could use, and write the choice.

    Candidates are :data:`lift.tasks.paired.choice.USES` and, trained here, the finished mixer after
    `steps` more steps on this site's training patients, and with `local` a mixer of this site alone
    under its curves. A candidate that was trained here is taken only where it is better by more
    than one
    standard error: it has seen the site's patients, and must gain on those it has not.

    Args:
        config: the site's settings.
        mixer: file `mixer.safetensors`; None takes the one that this site judged last.
        steps: local steps; 0 leaves that candidate out, None takes as many as the run had.
        local: also train a mixer on this site alone: takes as long as a run.
        progress: what is being done, how much of it, of how much.

    Raises:
        ConfigError: the plan's mixer has no contrast, or makes new volumes; no mixer yet.
        CheckpointError: the mixer's file is missing or damaged.
        GeneratorError: mixer and site have different generators.
        DataError: no patient can be used.
        OSError: the work folder cannot be written.
    """
    finished = finished_mixer(config, mixer)
    plan = finished.plan
    if plan.mixer.contrast == "none":
        raise ConfigError(
            "there is nothing to choose for this mixer",
            where="--mixer",
            seen="its plan says mixer.contrast: none, so no site has curves that could say what it "
            "uses",
            remedy="Nothing was written. It translates as it is; mixer.contrast: curves in the "
            "next run's plan gives each site a choice.",
        )
    config.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=UNFINISHED, dir=config.folder) as folder:
        generator, work = open_own_work(config, plan, Path(folder), progress)
        shared = shared_sums(config, plan)
        comparable = len(work.cohort.persons("validation")) >= FEWEST_PATIENTS
        trained: dict[str, dict[str, Tensor]] = {}
        if comparable and work.cohort.split.train:
            trained = _trained_here(
                config,
                finished,
                generator,
                work,
                progress,
                steps=plan.total_steps if steps is None else steps,
                local=local,
            )
        figures = _figures(finished, generator, work, shared, trained, progress)
    choice = choose(figures if comparable else {}, otherwise=_MIXER)
    path, own_path = config.folder / CURVES_FILE, config.folder / OWN_MIXER_FILE
    own = None
    if choice.method in trained:
        # first: curves must never name a file that is not there
        own = write_own_mixer(own_path, trained[choice.method], plan, choice.method)
    use = next((use for use in USES if use.name == choice.method), Use())
    write_site_curves(path, work.curves(shared), use, shared, plan, own=own)
    if own is None:
        own_path.unlink(missing_ok=True)
    logger.info("event=chosen site=%s use=%s", config.name, choice.method.replace(" ", ""))
    return Chosen(
        choice,
        _rows(figures, choice.method) if comparable else (),
        path,
        None if own is None else own_path,
        plan.protects_patients,
    )


def _trained_here(
    config: SiteConfig,
    finished: FinishedMixer,
    generator: FrozenGenerator,
    work: PairedWork,
    progress: Progress,
    *,
    steps: int,
    local: bool,
) -> dict[str, dict[str, Tensor]]:
    """The candidates that are trained at this site, by name."""
    plan = finished.plan
    mixer = plan_mixer(plan, generator)
    # each under its own curves, as the run has trained
    patients = work.cohort.by_person("train")
    trained: dict[str, dict[str, Tensor]] = {}
    if steps:
        trained[f"{_MIXER} + {steps} local steps"] = local_steps(
            mixer,
            finished.values,
            patients,
            plan,
            steps,
            LEARNING_RATE,
            config.name,
            report=lambda step: progress("local steps", step, steps),
        )
    if local:
        taps = fit(work.z_filter_sums, plan.mixer.ridge)
        trained["local + curves"] = train_alone(
            mixer,
            start_values(plan, generator, taps),
            patients,
            plan,
            config.name,
            report=lambda done, total: progress("local + curves", done, total),
        )
    return trained


def _figures(
    finished: FinishedMixer,
    generator: FrozenGenerator,
    work: PairedWork,
    shared: Mapping[str, np.ndarray],
    trained: Mapping[str, Mapping[str, Tensor]],
    progress: Progress,
) -> dict[str, list[float]]:
    """By method, simplest first, the PSNR of each validation patient in dB.

    Each is judged under curves that it had no part in.
    """
    cohort = work.cohort
    mixer = plan_mixer(finished.plan, generator)
    # under privacy there may be no shared filter
    taps = finished.taps if finished.taps.numel() == _TAPS else None
    figures: dict[str, list[float]] = {}
    patients = cohort.split.validation
    people = [cohort.patients[patient].subject for patient in patients]
    for done, patient in enumerate(patients, 1):
        left_out = {people[done - 1]}
        curves = work.curves(shared, without=left_out).curves
        features = cohort.features[patient].seen_with(curves)
        mixer.load_values(finished.values)
        volumes = volumes_of_uses(features, mixer, taps)
        for name, values in trained.items():
            mixer.load_values(values)
            volumes[name] = mixed(mixer, features)
        for name, volume in volumes.items():
            figures.setdefault(name, []).append(patient_psnr_db(features, volume))
        progress("validation examinations", done, len(patients))
    return {name: person_means(found, people) for name, found in figures.items()}


def _rows(figures: Mapping[str, list[float]], chosen: str) -> tuple[Row, ...]:
    reference = np.array(figures[chosen])
    rows = []
    for name, own in figures.items():
        difference = np.array(own) - reference
        error = difference.std(ddof=1) / np.sqrt(len(own)) if len(own) > 1 else 0.0
        rows.append(Row(name, float(np.mean(own)), float(difference.mean()), float(error)))
    return tuple(rows)
