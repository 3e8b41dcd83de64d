"""Curves from a few pairs of a hospital that did not take part in the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from lift.cohort.patients import Patient
from lift.cohort.preprocessing import prepare
from lift.cohort.reading import read_patients
from lift.config.site import SiteSettings
from lift.device import fix_threads
from lift.errors import ConfigError, DataError
from lift.generator.features import Features, compute_features
from lift.generator.networks import FrozenGenerator
from lift.mixer.base import Mixer
from lift.mixer.curves import ChosenCurves, CurveEquations, choose_curves, mean_equations
from lift.mixer.finished import FinishedMixer
from lift.tasks.paired.building import check_generator, loaded_mixer
from lift.tasks.paired.choice import USES, Choice, choose
from lift.tasks.paired.contrast import others_of, read_shared_sums, write_site_curves
from lift.tasks.paired.predictions import patient_curves, patient_psnr_db, volumes_of_uses

ENOUGH: Final = 2
"""Smallest number of patients for a choice of curves. One patient says nothing about others."""
_MIXER: Final = "mixer"


@dataclass(frozen=True)
class Calibration:
    """The calibrated curves of a hospital that did not take part.

    Attributes:
        chosen: its curves.
        choice: what of the mixer it uses, and the figures that decided.
        patients: how many both were chosen by.
        pooled: patients of the run's sites whose equations were at hand.
    """

    chosen: ChosenCurves
    choice: Choice
    patients: int
    pooled: int = 0


def calibrated(
    patients: Mapping[str, Sequence[Features]],
    mixer: Mixer,
    taps: Tensor,
    others: CurveEquations | None = None,
    *,
    affine: bool = False,
) -> Calibration:
    """A site's curves and what it uses, by leaving each of its patients out in turn.

    None of these patients had a part in the mixer's training, so all of them may judge it.

    Args:
        patients: by patient, its volumes with targets; may be empty.
        mixer: with its trained numbers.
        taps: of the shared z-filter, (6,).
        others: sums over the patients of the run's sites; None: not at hand.
        affine: a gain and an offset in place of curves.
    """
    persons = {
        name: mean_equations([patient_curves(volume) for volume in volumes])
        for name, volumes in patients.items()
    }
    figures: dict[str, list[float]] = {}
    if len(persons) >= ENOUGH:
        for name, volumes in patients.items():
            rest = [found for other, found in persons.items() if other != name]
            curves = choose_curves(rest, others, affine=affine).curves
            rows: dict[str, list[float]] = {}
            for volume in volumes:
                uses = volumes_of_uses(volume.seen_with(curves), mixer, taps)
                for use, made in uses.items():
                    rows.setdefault(use, []).append(patient_psnr_db(volume, made))
            for use, own in rows.items():
                # a patient with several volumes counts once
                figures.setdefault(use, []).append(float(np.mean(own)))
    return Calibration(
        choose_curves(list(persons.values()), others, affine=affine),
        choose(figures, otherwise=_MIXER),
        len(persons),
        0 if others is None else others.patients,
    )


def calibrate(
    settings: SiteSettings | None,
    finished: FinishedMixer,
    generator: FrozenGenerator,
    output: Path,
    *,
    pooled: Path | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit a site's curves in closed form; nothing is trained, and nothing is sent.

    Whether curves help at all, and what of the mixer is used, is chosen by leaving each patient
    out in turn.

    Args:
        settings: where the site's pairs of sources and target lie; None: there are none, and the
            curves are those of all sites of the run.
        finished: a mixer whose plan has contrast.
        generator: the frozen generator that it was trained around.
        output: file that takes the curves, for `lift translate --curves`; mode 0600.
        pooled: the run's file of pooled curves, toward which the site's are shrunk.
        report: called after each volume with the number done and the number of all.

    Returns:
        What was fitted, and to how many patients.

    Raises:
        ConfigError: the mixer has no use for curves.
        GeneratorError: another generator than the mixer's.
        DataError: no pair can be used, or the pooled curves are not this run's.
        OSError: the file cannot be written.
    """
    plan = finished.plan
    if plan.mixer.contrast == "none":
        raise ConfigError(
            "this mixer has no use for a site's curves",
            where="--mixer",
            seen=f"its plan says mixer.contrast: {plan.mixer.contrast}",
            remedy="Nothing was written. It translates as it is.",
        )
    check_generator(plan, generator)
    fix_threads(plan.threads)
    shared = {} if pooled is None else read_shared_sums(pooled, plan)
    try:
        others = others_of(shared, None, len(plan.task.source))
    except ValueError:
        others = None
    if pooled is not None and others is None:
        raise DataError(
            "cannot use the pooled curves",
            where=pooled.name,
            seen="the file is missing or damaged, or belongs to another run",
            remedy="Nothing was written. Give the file that lies beside this mixer, or none.",
        )
    mixer = loaded_mixer(finished, generator)
    persons: dict[str, list[Features]] = {}
    if settings is not None:

        def features(patient: Patient) -> Features:
            prepared = prepare(patient, plan, root=settings.data.root, with_target=True)
            return compute_features(prepared, generator, mixer.tap_names, mixer.pooled_names)

        usable = read_patients(settings, plan, features, report)
        for name, content in usable.content.items():
            persons.setdefault(usable.patients[name].subject, []).append(content)
    elif others is None:
        raise DataError(
            "cannot fit curves",
            where="PAIRS",
            seen="no pair, and no pooled curves of the run",
            remedy="Nothing was written. Give two to four pairs of the hospital's own.",
        )
    found = calibrated(
        persons, mixer, finished.taps, others, affine=plan.mixer.contrast == "affine"
    )
    use = next(use for use in USES if use.name == found.choice.method)
    write_site_curves(output, found.chosen, use, {}, plan)
    return found
