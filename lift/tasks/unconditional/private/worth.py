"""Whether a cohort is large enough for noisy moments to be better than public ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from lift.config.plan import Plan
from lift.privacy.costs import public_patients
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import noise_of, sends_moments, settings_of
from lift.tasks.unconditional.moments import form_of
from lift.tasks.unconditional.private.deviations import mean_noise
from lift.tasks.unconditional.public_gaussian import public_gaussian

_MOST_NOISE: Final = 2.0
"""In units of what the public mean is known to."""


def noise_warnings(plan: Plan, decoder: FrozenDecoder, sites: Sequence[str]) -> list[str]:
    """Return warnings before a federation with noisy moments. Empty if there are none.

    The public mean is known to 1 / sqrt(public patients), in standard deviations of patients. A
    mean with noise of more than twice that adds nothing to it (docs/lab-notes.md: measured cohorts
    with three times that and more gave volumes no nearer to real ones, those with less did).

    Raises:
        ConfigError: the plan has no public number of patients for a site.
    """
    noise = noise_of(plan)
    if noise is None or not sends_moments(plan) or not sites:
        return []
    patients = sum(public_patients(plan, sites).values())
    moments = decoder.public.moments
    if moments is None:
        return [
            "the bundle has no public moments: noise falls back on mean 0 and variance 1, and the "
            "Gaussian is worse than that of the public volumes alone; make the bundle anew with "
            "this version's `lift pretrain`"
        ]
    form = public_gaussian(moments, form_of(settings_of(plan).gaussian, decoder)).sent
    level, own = mean_noise(form, noise, patients, len(sites)), 1 / math.sqrt(moments.patients)
    if level <= _MOST_NOISE * own:
        return []
    return [
        f"{patients} patients at {len(sites)} sites with this noise tell a mean to {level:.2f} of "
        f"their standard deviation; {moments.patients} public patients tell theirs to {own:.2f}. "
        "Expect volumes no better than those of the public Gaussian: more patients, fewer sites, "
        "or less noise are needed"
    ]
