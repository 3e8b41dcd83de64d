"""Which clip norms fit a plan: lengths of gradients and of equations, by patient, on phantoms.

A clip norm that was read off the patients would be a release that nobody counts, so only phantom
sites are measured. One five times too large drowned all that a mixer gained (method 6.4); one that
is too small loses some of it. The median of a phantom's lengths is a fair start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from lift.config.plan import Plan
from lift.config.privacy import NoPrivacy, PatientGradients
from lift.config.simulation import SimulationConfig
from lift.device import fix_threads, resolve_devices
from lift.errors import ConfigError
from lift.generator.bundle import load_bundle
from lift.generator.card import bundle_folder
from lift.mixer.base import Mixer
from lift.mixer.z_filter import NormalEquations, fit
from lift.tasks.paired.building import plan_mixer, start_values
from lift.tasks.paired.predictions import patient_equations
from lift.tasks.paired.private.engines import PatientLoop
from lift.tasks.paired.private.start import equations_norm, patient_equations_of
from lift.tasks.paired.private.training import PatientVolumes, Windows, row_losses
from lift.tasks.paired.training import train_round
from lift_client.session import SiteSession
from lift_client.tasks.paired import PairedWork
from lift_simulation.progress import Reporter
from lift_simulation.sites import open_sites, phantoms_of

_UNBOUNDED: Final = 1e20
_QUANTILES: Final = (0.25, 0.5, 0.75, 0.95)
_DRAWS: Final = 4


def measure_clip_norms(
    config: SimulationConfig, out: Path, reporter: Reporter
) -> dict[str, object]:
    """Quantiles over the phantoms' training patients, before training and after each round of it.

    Training is plain: what a gradient's length is while the mixer learns, without noise.

    Raises:
        ConfigError: the plan clips no gradients, or a site is no phantom.
    """
    privacy = config.plan.privacy
    if not isinstance(privacy, PatientGradients) or config.generator is None:
        raise ConfigError(
            "there is no clip norm to choose",
            where="plan.privacy.mode",
            seen=privacy.mode,
            remedy="Give a paired plan with `patient-local` or `patient-central`.",
        )
    if not config.phantom:
        raise ConfigError(
            "clip norms are measured on phantoms alone",
            where="sites",
            seen="a site with files of its own",
            remedy="Read off patients they would be a release that no ledger counts. Give sites "
            "of layout phantom.",
        )
    generator = load_bundle(
        bundle_folder(config.generator),
        expected_fingerprint=config.plan.generator_fingerprint,
        device=resolve_devices(config.device)[0],
    )
    plan = config.plan.model_copy(
        update={
            "generator_fingerprint": generator.fingerprint,
            "privacy": NoPrivacy(mode="none"),
        }
    )
    fix_threads(plan.threads)
    open_config = config.model_copy(update={"plan": plan})
    sites = open_sites(
        open_config,
        out / "cache",
        out / "cohorts",
        reporter,
        phantoms_of(config),
        ledgers=out / "ledgers",
    )
    patients: list[PatientVolumes] = []
    for name, settings in sorted(sites.items()):
        session = SiteSession(settings, generator, out / "sites" / name, report=reporter.step)
        work = session.work(plan)
        if isinstance(work, PairedWork):
            patients += work.train_patients
    equations = [
        patient_equations_of([patient_equations(volume) for volume in volumes])
        for volumes in patients
    ]
    total = NormalEquations.zero()
    for each in equations:
        total = total + each
    values = start_values(plan, generator, fit(total, plan.mixer.ridge))
    mixer = plan_mixer(plan, generator)
    stages = {"start": _gradient_norms(mixer, values, patients, plan, privacy)}
    for round_index in range(1, plan.federation.rounds + 1):
        values = train_round(
            mixer, values, patients, plan, round_index=round_index, site="phantoms"
        ).values
        stages[f"round {round_index}"] = _gradient_norms(mixer, values, patients, plan, privacy)
        reporter.step("rounds", round_index, plan.federation.rounds)
    lengths = [equations_norm(each) for each in equations]
    everything = [length for stage in stages.values() for length in stage]
    return {
        "patients": len(patients),
        "phantom": True,
        "gradients": {stage: _quantiles(found) for stage, found in stages.items()},
        "equations": _quantiles(lengths),
        "suggested": {
            "clip_norm": float(f"{np.median(everything):.2g}"),
            "start.clip_norm": float(f"{np.median(lengths):.2g}"),
        },
    }


def _gradient_norms(
    mixer: Mixer,
    values: dict[str, Tensor],
    patients: Sequence[PatientVolumes],
    plan: Plan,
    privacy: PatientGradients,
) -> list[float]:
    mixer.load_values(values)
    windows = Windows(mixer, patients, plan.training, privacy)
    losses = row_losses(plan.training)
    norms: list[float] = []
    for _ in range(_DRAWS):
        drawn = (windows(patient) for patient in range(len(patients)))
        norms += PatientLoop().sum_of_clipped_gradients(mixer, drawn, losses, _UNBOUNDED).norms
    return norms


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"{q:.0%}": float(f"{np.quantile(values, q):.4g}") for q in _QUANTILES}
