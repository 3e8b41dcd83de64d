"""The privacy cost of a plan, computed before the start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from lift.config.plan import Plan
from lift.config.privacy import (
    NoPrivacy,
    PatientGradients,
    SiteLevel,
    StartRelease,
    StatisticsOnce,
)
from lift.errors import ConfigError
from lift.privacy.accounting import epsilon, noise_multiplier_for
from lift.privacy.book import Release
from lift.privacy.rounding import rounded_up

START: Final = "start"
STEPS: Final = "steps"
STATISTICS: Final = "statistics"
GAIN: Final = "gain"
TIMES: Final = (
    "The time that a site needs for a round depends on who was drawn. An observer of the times of "
    "answers (the server, the network) may infer who took part in a step. For such an observer, "
    "sampling hides no patient, and epsilon counts each patient in every step. No epsilon counts "
    "what else a time reveals, such as the size of a patient's volumes."
)
"""Why a second epsilon stands beside the first."""
STATEMENTS: Final = {
    "none": "no noise is added: no privacy guarantee",
    "patient-local": "each site adds the full noise: protects patients from the server, from other "
    "sites and from users of the mixer",
    "patient-central": "the server adds the noise: protects patients from other sites and from "
    "users of the mixer; the server is trusted",
    "stats-once": "each site adds noise to its statistics, once for each data version: protects "
    "patients from everyone outside the hospital",
    "site": "the server hides whether a site took part; no patient is protected beyond that",
}


def planned_releases(plan: Plan) -> tuple[Release, ...]:
    """Everything that a run of the plan releases of one patient at one site.

    Empty without a guarantee (mode `none`). For mode `site` the unit is a site.
    """
    privacy = plan.privacy
    if isinstance(privacy, PatientGradients):
        steps = _release(STEPS, privacy, plan.total_steps, privacy.sampling_rate)
        once = [] if privacy.start is None else [_release(START, privacy.start)]
        if privacy.gain is not None:
            once.append(
                Release(
                    purpose=GAIN,
                    noise_multiplier=privacy.gain.noise_multiplier,
                    q=1.0,
                    clip_norm=1.0,
                    steps=1,
                )
            )
        return (*once, steps)
    if isinstance(privacy, StatisticsOnce):
        return (
            Release(
                purpose=STATISTICS,
                noise_multiplier=privacy.noise_multiplier,
                q=1.0,
                clip_norm=1.0,
                steps=1,
            ),
        )
    if isinstance(privacy, SiteLevel):
        return (_release(STEPS, privacy, plan.federation.rounds),)
    return ()


def most_steps(release: Release, *, block: int, repeats: float) -> int:
    """Steps that a run may take for a release: the planned ones, and some that are computed again.

    Args:
        release: as planned.
        block: steps of one block (of a round), at least 1.
        repeats: share of the planned steps; what it gives is rounded up to whole blocks.
    """
    # a share of 0.1 of 10 is 1, whatever the product is in binary
    return release.steps + math.ceil(round(repeats * release.steps / block, 9)) * block


def _release(
    purpose: str,
    of: PatientGradients | StartRelease | SiteLevel,
    steps: int = 1,
    sampling_rate: float = 1.0,
) -> Release:
    return Release(
        purpose=purpose,
        noise_multiplier=of.noise_multiplier,
        q=sampling_rate,
        clip_norm=of.clip_norm,
        steps=steps,
    )


def epsilon_after(plan: Plan, round_index: int) -> float | None:
    """Epsilon of a run's releases up to a round (0: the statistics), at the plan's delta.

    None without a guarantee.
    """
    privacy = plan.privacy
    if isinstance(privacy, NoPrivacy):
        return None
    rounds = plan.federation.rounds
    return epsilon(
        [
            release.mechanism(release.steps // rounds * round_index)
            if release.purpose == STEPS
            else release.mechanism(release.steps)
            for release in planned_releases(plan)
        ],
        privacy.delta,
    )


def releases_in_two_hospitals(plan: Plan) -> tuple[Release, ...]:
    """The same for a patient who was treated, and takes part, in two hospitals.

    Noise that each site adds for itself composes: everything counts twice. Noise that the server
    adds once meets a patient who may contribute twice the clip norm to one sum, whenever either
    hospital draws the patient: half the noise multiplier, at probability 1 - (1 - q)^2 (a
    contribution of C is bounded by one of 2 C: mixtures of Gaussians are ordered by their
    sensitivities, Choquette-Choo et al. 2024, arXiv:2309.09504).
    """
    privacy = plan.privacy
    releases = planned_releases(plan)
    if isinstance(privacy, SiteLevel):
        return releases
    if isinstance(privacy, PatientGradients) and privacy.mode == "patient-central":
        twice = []
        for release in releases:
            if release.purpose == STEPS:
                either = 1 - (1 - release.q) ** 2
                half = release.noise_multiplier / 2
                twice.append(release.model_copy(update={"q": either, "noise_multiplier": half}))
            else:
                twice += [release, release]
        return tuple(twice)
    return releases + releases


def epsilon_where_times_are_seen(plan: Plan) -> float | None:
    """Epsilon of the whole plan for an observer who knows who was drawn: sampling rate 1.

    None where no patient is drawn at random.
    """
    privacy = plan.privacy
    if not isinstance(privacy, PatientGradients):
        return None
    releases = (one.model_copy(update={"q": 1.0}) for one in planned_releases(plan))
    return epsilon([release.mechanism(release.steps) for release in releases], privacy.delta)


def describe_privacy(
    plan: Plan, sites: Sequence[str], *, target: float | None = None
) -> dict[str, object]:
    """The privacy part of a dry run, and of a run's record.

    Args:
        plan: the run's plan.
        sites: names of all sites.
        target: epsilon for which the noise is asked, of the steps or of the statistics.

    Raises:
        ConfigError: the plan has no public number of patients for a site, or a target is asked
            for where there is no noise.
        BudgetSpentError: no noise keeps to the target.
    """
    privacy = plan.privacy
    described: dict[str, object] = {"mode": privacy.mode, "statement": STATEMENTS[privacy.mode]}
    if isinstance(privacy, NoPrivacy):
        if target is not None:
            raise ConfigError(
                "there is no noise to choose",
                where="privacy.mode",
                seen="none",
                remedy="Give the plan a privacy mode with noise first.",
            )
        return described
    mechanisms = [release.mechanism(release.steps) for release in planned_releases(plan)]
    described |= {
        "unit": privacy.unit,
        "relation": privacy.relation,
        "delta": privacy.delta,
        "accountant": privacy.accountant,
        "epsilon": rounded_up(epsilon(mechanisms, privacy.delta)),
        "epsilon_by_rdp": rounded_up(epsilon(mechanisms, privacy.delta, "rdp")),
    }
    if (seen := epsilon_where_times_are_seen(plan)) is not None:
        described["epsilon_where_times_are_seen"] = rounded_up(seen)
        described["times"] = TIMES
    if not isinstance(privacy, SiteLevel):
        twice = [release.mechanism(release.steps) for release in releases_in_two_hospitals(plan)]
        described["epsilon_of_a_patient_in_two_hospitals"] = rounded_up(
            epsilon(twice, privacy.delta)
        )
        described["epsilon_by_site"] = dict.fromkeys(sorted(sites), described["epsilon"])
        described["public_patients"] = public_patients(plan, sites)
    if target is not None:
        described["noise_multiplier_for"] = {
            "epsilon": target,
            "noise_multiplier": _noise_for(plan, target, privacy.delta),
        }
    return described


def summary(described: Mapping[str, object]) -> str:
    """One line of :func:`describe_privacy`, for a screen or a log."""
    line = f"privacy: {described['mode']} - {described['statement']}"
    if "epsilon" in described:
        line += (
            f"; epsilon {described['epsilon']} at delta {described['delta']:g}, "
            f"{described['unit']}, add or remove one"
        )
    if "epsilon_where_times_are_seen" in described:
        line += (
            f"; {described['epsilon_where_times_are_seen']} for observers of answer times, "
            "who may infer who was drawn"
        )
    return line


def public_patients(plan: Plan, sites: Sequence[str]) -> dict[str, int]:
    """The public number of training patients of each site.

    Raises:
        ConfigError: the plan has none for a site.
    """
    privacy = plan.privacy
    if isinstance(privacy, NoPrivacy | SiteLevel):
        return {}
    missing = [site for site in sorted(sites) if not privacy.names(site)]
    if missing:
        raise ConfigError(
            "the plan has no public number of patients for a site",
            where="privacy.public_patients",
            seen=f"missing: {', '.join(missing)}",
            remedy="Add the site, or give one number for all. Nothing was started.",
        )
    return {site: privacy.patients_of(site) for site in sorted(sites)}


def _noise_for(plan: Plan, target: float, delta: float) -> float:
    """The noise of the run's largest release that keeps everything at `target`."""
    *before, last = planned_releases(plan)
    already = [release.mechanism(release.steps) for release in before]
    noise = noise_multiplier_for(target, delta, q=last.q, steps=last.steps, already=already)
    return round(noise + 5e-5, 4)
