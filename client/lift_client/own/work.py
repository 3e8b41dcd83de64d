"""Inputs of the site's own commands: the finished mixer, and the cohort under its plan.

Nothing is sent, no line goes to the journal or the ledger, and a running `lift-client` is not
disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lift.config.kit import CA_FILE
from lift.config.plan import Plan
from lift.config.site import SiteConfig
from lift.device import fix_threads, resolve_device
from lift.errors import ConfigError
from lift.generator.card import bundle_folder
from lift.generator.networks import FrozenGenerator
from lift.mixer.finished import FINAL_MIXER_FILE, FinishedMixer, read_mixer
from lift.release.check import is_release
from lift.tasks.paired.contrast import CURVES_FILE, read_shared_sums
from lift.tasks.paired.task import slice_generator
from lift.tasks.registry import load_generator
from lift_client.gate.stored_plan import stored_plan
from lift_client.tasks.paired import PairedWork

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it, of how much."""


def mixer_path(config: SiteConfig, mixer: Path | None) -> Path:
    """Return the file of the mixer. Default: the mixer that this site evaluated last."""
    return mixer or config.folder / FINAL_MIXER_FILE


def finished_mixer(config: SiteConfig, mixer: Path | None) -> FinishedMixer:
    """The finished mixer of a paired run.

    Raises:
        ConfigError: there is none yet, or it makes new volumes.
        CheckpointError: the file is missing or damaged.
        ReleaseError: it lies in a release that is not what the kit's federation signed.
    """
    path = mixer_path(config, mixer)
    if mixer is None and not path.is_file():
        _check_kind(_stored_kind(config.folder))
        raise ConfigError(
            "this site has no finished mixer yet",
            where=str(path),
            seen="no server has asked it for a verdict on one",
            remedy="Wait for the run's end, or give the coordinator's file: --mixer "
            "mixer.safetensors (under patient-level privacy that is the only way).",
        )
    # a release is of the federation whose kit lies here
    kit_ca = config.kit / CA_FILE
    signed = kit_ca.is_file() and is_release(path if path.is_dir() else path.parent)
    finished = read_mixer(path, ca=kit_ca if signed else None)
    _check_kind(finished.plan.task.kind)
    return finished


def open_own_work(
    config: SiteConfig, plan: Plan, folder: Path, progress: Progress
) -> tuple[FrozenGenerator, PairedWork]:
    """The site's generator, and its work under a plan.

    Args:
        config: the site's settings.
        plan: of the finished mixer.
        folder: takes the split: never the run's own. The cache is shared with the run.
        progress: is called while features are computed.

    Raises:
        GeneratorError: mixer and site have different generators.
        DataError: no patient can be used.
    """
    generator = slice_generator(
        plan,
        load_generator(
            bundle_folder(config.generator),
            expected_fingerprint=plan.generator_fingerprint,
            device=resolve_device(config.device),
        ),
    )
    fix_threads(plan.threads)
    cache = config.cache.model_copy(
        update={"folder": config.cache.folder or config.folder / "cache"}
    )
    work = PairedWork(
        config.model_copy(update={"cache": cache}),
        plan,
        generator,
        work=folder,
        report=lambda done, total: progress("features", done, total),
    )
    return generator, work


def shared_sums(config: SiteConfig, plan: Plan) -> dict[str, np.ndarray]:
    """What this site received about the curves of all sites, in the run of this plan."""
    return read_shared_sums(config.folder / CURVES_FILE, plan)


def _check_kind(kind: str) -> None:
    if kind != "paired":
        raise ConfigError(
            "this command is not for a run that makes new volumes",
            where="task.kind",
            seen=f"{kind}; needed: paired",
            remedy="Make new volumes with `lift generate` and look at them with `lift view`.",
        )


def _stored_kind(work: Path) -> str:
    """The kind of task of the last run; a paired one where there was none."""
    try:
        plan = stored_plan(work)
    except (OSError, ValueError):
        plan = None
    return "paired" if plan is None else plan.task.kind
