"""Description of a run, for `--dry-run`, and for `run.json` before it computes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from lift.config.plan import Plan
from lift.generator.base import Generator
from lift.privacy.costs import describe_privacy
from lift.records.run import Description, MixerRecord
from lift.tasks.registry import task_of

_PACKAGES: Final = (
    "lift-federated",
    "torch",
    "flwr",
    "numpy",
    "scipy",
    "scikit-image",
    "nibabel",
)


def describe_dry_run(
    plan: Plan, generator: Generator, sites: Sequence[str], *, epsilon: float | None = None
) -> dict[str, object]:
    """The resolved plan, what a run would send and what it would cost, for `--dry-run`.

    Args:
        plan: the run's plan.
        generator: its generator.
        sites: names of all sites.
        epsilon: for which the noise is asked; None asks nothing.

    Raises:
        ConfigError: the plan's privacy section does not fit the sites or the question.
    """
    task = task_of(plan)
    parameters = task.trained_part(plan, generator).parameter_count()
    number_bytes = 2 if plan.federation.update_dtype == "float16" else 4
    return {
        "plan": plan.model_dump(mode="json"),
        "plan_digest": plan.digest(),
        "sites": list(sites),
        "mixer_parameters": parameters,
        "update_bytes_by_round_and_site": parameters * number_bytes,
        "rounds": plan.federation.rounds,
        "privacy": describe_privacy(plan, sites, target=epsilon),
        "warnings": task.noise_warnings(plan, generator, sites),
    }


def describe_run(plan: Plan, generator: Generator) -> Description:
    """What `run.json` says of any run before it computes: plan, digests, versions."""
    card = generator.card
    return Description(
        plan=plan.model_dump(mode="json"),
        plan_digest=plan.digest(),
        generator={
            "fingerprint": generator.fingerprint,
            "training_data": card.training_data,
            "licence": card.licence,
            "network": card.network.model_dump(mode="json"),
        },
        mixer=MixerRecord(
            kind=plan.mixer.kind,
            parameters=task_of(plan).trained_part(plan, generator).parameter_count(),
        ),
        versions={
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    )
