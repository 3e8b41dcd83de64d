"""A site's curves from a few of its own pairs: for a hospital that took no part in the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from lift.assembly import FinishedMixer, check_generator
from lift.choice import Use
from lift.cohort.opened import read_patients
from lift.cohort.patients import Patient
from lift.config.site import SiteSettings
from lift.contrast import write_site_curves
from lift.curves import ChosenCurves, CurveEquations, choose_curves, mean_equations
from lift.device import fix_threads
from lift.errors import ConfigError
from lift.evaluation import patient_curves
from lift.features import compute_features
from lift.generator.networks import FrozenGenerator
from lift.preprocessing import prepare

ENOUGH: Final = 2
"""Patients from whom curves can be chosen; one alone says nothing of another."""


def calibrate(
    settings: SiteSettings,
    finished: FinishedMixer,
    generator: FrozenGenerator,
    output: Path,
    *,
    report: Callable[[int, int], None] | None = None,
) -> tuple[ChosenCurves, int]:
    """Fit a site's curves in closed form; nothing is trained, and nothing is sent.

    Whether curves help at all is chosen by leaving each patient out in turn.

    Args:
        settings: where the site's pairs of sources and target lie.
        finished: a mixer whose plan has contrast.
        generator: the frozen generator that it was trained around.
        output: file that takes the curves, for `lift translate --curves`; mode 0600.
        report: called after each volume with the number done and the number of all.

    Returns:
        The curves, and how many patients they were fitted to.

    Raises:
        ConfigError: the mixer has no use for curves.
        GeneratorError: another generator than the mixer's.
        DataError: no pair can be used.
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

    def equations(patient: Patient) -> CurveEquations:
        prepared = prepare(patient, plan, root=settings.data.root, with_target=True)
        return patient_curves(compute_features(prepared, generator, (), ()))

    usable = read_patients(settings, plan, equations, report)
    persons: dict[str, list[CurveEquations]] = {}
    for name, found in usable.content.items():
        persons.setdefault(usable.patients[name].subject, []).append(found)
    patients = [mean_equations(volumes) for volumes in persons.values()]
    chosen = choose_curves(patients, None, affine=plan.mixer.contrast == "affine")
    write_site_curves(output, chosen, Use(), {}, plan)
    return chosen, len(persons)
