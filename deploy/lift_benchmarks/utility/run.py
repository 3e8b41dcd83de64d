"""One cell: a federation through the real round loop, and its figures on held-out phantoms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Final

import torch
from torch import Tensor

from lift.config.plan import Plan
from lift.config.privacy import StartRelease
from lift.config.simulation import SimulationConfig
from lift.config.site import SiteSettings
from lift.device import fix_threads, resolve_devices
from lift.files import write_json
from lift.generator.bundle import load_bundle
from lift.generator.card import bundle_folder
from lift.generator.networks import FrozenGenerator
from lift.metrics.table import PatientMetrics
from lift.mixer.z_filter import NormalEquations, fit
from lift.privacy.accounting import noise_multiplier_for
from lift.privacy.costs import epsilon_after
from lift.privacy.noise import SecureStream
from lift.strict_json import parse_json
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.methods import (
    HeldOut,
    Method,
    measure,
    no_mixer,
    with_mixer,
    z_filter,
    z_median,
)
from lift.tasks.paired.predictions import patient_equations
from lift.tasks.paired.private.start import fit_released, patient_equations_of, release_equations
from lift.tasks.paired.site_cohort import SiteCohort, prepare_patient
from lift_benchmarks.utility.cells import Cell, UtilityConfig, cell_config, public_delta, rounded_up
from lift_client.session import SiteSession
from lift_client.tasks.paired import paired_work
from lift_server.rounds.finished import FinishedRun
from lift_simulation.federation import federate
from lift_simulation.progress import Reporter
from lift_simulation.sites import open_sites, phantoms_of

_VERSION: Final = 1
Figures = dict[str, dict[str, PatientMetrics]]
"""METHOD -> `SITE/PATIENT` -> figures."""


def run_cell(config: UtilityConfig, cell: Cell, out: Path, reporter: Reporter) -> None:
    """Run one cell and write `OUT/cells/NAME.json`; a finished one of these settings is kept.

    A cell that was broken off goes on from its last round.

    Raises:
        LiftError: see the message.
    """
    settings = cell_config(config, cell)
    path = out / "cells" / f"{cell.name}.json"
    digest = f"{_VERSION}-{config.digest()}"
    if _finished(path, digest):
        reporter.line(f"{cell.name}: kept")
        return
    began = monotonic()
    if settings.generator is None:
        raise ValueError("a paired task has a generator")
    generator = load_bundle(
        bundle_folder(settings.generator),
        expected_fingerprint=None,
        device=resolve_devices(settings.device)[0],
    )
    plan = settings.plan.model_copy(update={"generator_fingerprint": generator.fingerprint})
    fix_threads(plan.threads)
    folder = out / "runs" / cell.name
    sites = _open(settings, plan, out, folder, reporter)
    cohorts, finished = _federate(sites, plan, generator, folder, reporter)
    mixer = plan_mixer(plan, generator)
    methods: dict[str, Method] = {
        "no_mixer": no_mixer,
        "z_median": z_median,
        # of the cell's whole epsilon, with nothing left for a mixer
        "z_filter": z_filter(_whole_filter(config, cell, plan, cohorts)),
        "z_filter_start": z_filter(finished.taps),
        "federated": with_mixer(mixer, finished.mixer),
    }
    roots = {name: site.data.root for name, site in sites.items()}
    figures = _measure(cohorts, roots, plan, methods, reporter)
    spent = epsilon_after(plan, plan.federation.rounds)
    write_json(
        path,
        {
            "digest": digest,
            "phantom": True,
            "patients": cell.patients,
            "mode": cell.mode,
            "epsilon": cell.epsilon,
            "epsilon_spent": spent,
            "delta": None if cell.mode == "none" else public_delta(cell.patients),
            "plan": plan.model_dump(mode="json"),
            "methods": figures,
            "seconds": round(monotonic() - began, 1),
        },
    )


def _finished(path: Path, digest: str) -> bool:
    try:
        return bool(parse_json(path.read_bytes())["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open(
    settings: SimulationConfig, plan: Plan, out: Path, folder: Path, reporter: Reporter
) -> dict[str, SiteSettings]:
    """The sites with their phantoms on disk; cells of one cohort share them."""
    phantoms = phantoms_of(settings)
    patients = sum(phantom.patients for phantom in phantoms.values())
    return open_sites(
        settings.model_copy(update={"plan": plan}),
        out / "cache",
        out / "cohorts" / str(patients),
        reporter,
        phantoms,
        ledgers=folder / "ledgers",
    )


def _federate(
    sites: Mapping[str, SiteSettings],
    plan: Plan,
    generator: FrozenGenerator,
    folder: Path,
    reporter: Reporter,
) -> tuple[dict[str, SiteCohort], FinishedRun]:
    sessions = {
        name: SiteSession(site, generator, folder / "sites" / name, report=reporter.step)
        for name, site in sites.items()
    }
    cohorts = {}
    for name, session in sessions.items():
        session.admit(plan)
        cohorts[name] = paired_work(session, plan).cohort
    finished = federate(
        plan,
        generator,
        sessions,
        folder,
        on_round=lambda record: reporter.step("rounds", record.round, plan.federation.rounds),
        with_guard=False,
    )
    for session in sessions.values():
        session.close()
    return cohorts, finished


def _whole_filter(
    config: UtilityConfig, cell: Cell, plan: Plan, cohorts: Mapping[str, SiteCohort]
) -> Tensor:
    """The taps of a z-filter that is as private as the mixer: all of epsilon goes into it."""
    stream = SecureStream()
    total = NormalEquations.zero()
    release = None
    if cell.epsilon is not None:
        noise = noise_multiplier_for(cell.epsilon, public_delta(cell.patients), q=1.0, steps=1)
        release = StartRelease(noise_multiplier=rounded_up(noise), clip_norm=config.start_clip_norm)
    for _, cohort in sorted(cohorts.items()):
        equations = [patient_equations(features) for features in cohort.part("train")]
        if release is None:
            total = sum(equations, start=total)
        else:
            # each phantom patient has one volume
            patients = [patient_equations_of([each]) for each in equations]
            total = total + release_equations(patients, release, stream)
    if release is None:
        return fit(total, plan.mixer.ridge)
    return fit_released(total, release, len(cohorts), plan.mixer.ridge)


def _measure(
    cohorts: Mapping[str, SiteCohort],
    roots: Mapping[str, Path],
    plan: Plan,
    methods: Mapping[str, Method],
    reporter: Reporter,
) -> Figures:
    total = sum(len(cohort.split.test) for cohort in cohorts.values())
    figures: Figures = {method: {} for method in methods}
    done = 0
    with torch.no_grad():
        for site, cohort in sorted(cohorts.items()):
            for patient in cohort.split.test:
                held_out = HeldOut(
                    site,
                    patient,
                    cohort.features[patient],
                    prepare_patient(cohort, patient, plan, roots[site]),
                )
                for method, apply in methods.items():
                    prediction = apply(held_out.features)
                    figures[method][f"{site}/{patient}"] = measure(held_out, prediction, plan)
                done += 1
                reporter.step("held-out patients", done, total)
    return figures
