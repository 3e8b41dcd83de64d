"""A plan's mixer around a frozen generator, and the finished mixer as one file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from lift.config.plan import Plan
from lift.errors import CheckpointError, GeneratorError, VersionMismatchError
from lift.files import write_atomically
from lift.generator.base import SliceGenerator
from lift.guard import SiteProfile
from lift.mixer.base import FrozenParts, Mixer
from lift.mixer.build import build_mixer
from lift.mixer.trained import TrainedPart
from lift.privacy.costs import describe_privacy
from lift.privacy.worth import noise_warnings
from lift.randomness import derive_seed
from lift.release.check import mixer_file
from lift.strict_json import is_version, parse_json
from lift.unconditional.bundle import AnyGenerator
from lift.unconditional.decoder import FrozenDecoder
from lift.unconditional.learning import plan_mapper
from lift.wire.names import MIXER, TAPS, group, grouped

MIXER_FILE_VERSION: Final = 1
_PACKAGES: Final = (
    "lift-federated",
    "torch",
    "flwr",
    "numpy",
    "scipy",
    "scikit-image",
    "nibabel",
)


def frozen_parts(generator: SliceGenerator) -> FrozenParts:
    """What a mixer may know of a generator."""
    return FrozenParts(
        tap_channels={name: tap.channels for name, tap in generator.taps.items()},
        tap_strides={name: tap.stride for name, tap in generator.taps.items()},
        n_source=generator.n_source,
        head_weight=generator.head_weight,
        decode=generator.decode if generator.taps else None,
    )


def plan_mixer(plan: Plan, generator: SliceGenerator) -> Mixer:
    """The plan's mixer with its initial numbers, the same on every machine.

    It is on the generator's device and stays there.
    """
    seed = derive_seed(plan.seed, "mixer")
    return build_mixer(plan.mixer, frozen_parts(generator), seed=seed).to(generator.device)


def trained_part(plan: Plan, generator: AnyGenerator) -> TrainedPart:
    """What the plan trains around a generator: a mixer, or the trajectory mapper."""
    if isinstance(generator, FrozenDecoder):
        return plan_mapper(plan, generator)
    return plan_mixer(plan, generator)


def describe_dry_run(
    plan: Plan, generator: AnyGenerator, sites: Sequence[str], *, epsilon: float | None = None
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
    parameters = trained_part(plan, generator).parameter_count()
    number_bytes = 2 if plan.federation.update_dtype == "float16" else 4
    return {
        "plan": plan.model_dump(mode="json"),
        "plan_digest": plan.digest(),
        "sites": list(sites),
        "mixer_parameters": parameters,
        "update_bytes_by_round_and_site": parameters * number_bytes,
        "rounds": plan.federation.rounds,
        "privacy": describe_privacy(plan, sites, target=epsilon),
        "warnings": noise_warnings(plan, generator, sites),
    }


def check_generator(plan: Plan, generator: SliceGenerator) -> None:
    """Raise GeneratorError unless a finished mixer was trained around this generator."""
    if generator.fingerprint != plan.generator_fingerprint:
        raise GeneratorError(
            "the generator is not the one that the mixer was trained around",
            where="--generator",
            seen=f"fingerprint {generator.fingerprint[:12]}...; the mixer needs "
            f"{str(plan.generator_fingerprint)[:12]}...",
            remedy="Nothing was written. Give the bundle that belongs to this mixer.",
        )


def start_values(plan: Plan, generator: SliceGenerator, taps: Tensor) -> dict[str, Tensor]:
    """The mixer's numbers at the start of training: exactly the fitted z-filter, or identity."""
    mixer = plan_mixer(plan, generator)
    mixer.start_from(taps)
    return mixer.values()


def describe_run(plan: Plan, generator: AnyGenerator) -> dict[str, object]:
    """What `run.json` says of any run before it computes: plan, digests, versions."""
    card = generator.card
    return {
        "plan": plan.model_dump(mode="json"),
        "plan_digest": plan.digest(),
        "generator": {
            "fingerprint": generator.fingerprint,
            "training_data": card.training_data,
            "licence": card.licence,
            "network": card.network.model_dump(mode="json"),
        },
        "mixer": {
            "kind": plan.mixer.kind,
            "parameters": trained_part(plan, generator).parameter_count(),
        },
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    }


@dataclass(frozen=True)
class FinishedMixer:
    """A trained mixer with all that using it needs, except the generator itself.

    Attributes:
        values: trained tensors by name.
        taps: the shared z-filter, (6,); empty for an unconditional task.
        plan: the plan it was trained under; it names the generator's fingerprint.
        sites: the guard's verdicts with the profiles they hold for, without site names.
        phantom: whether it was trained on phantom data alone.
    """

    values: Mapping[str, Tensor]
    taps: Tensor
    plan: Plan
    sites: Sequence[SiteProfile]
    phantom: bool


def loaded_mixer(finished: FinishedMixer, generator: SliceGenerator) -> Mixer:
    """The finished mixer, ready to run, on the generator's device.

    Raises:
        CheckpointError: its numbers do not fit its plan.
    """
    mixer = plan_mixer(finished.plan, generator)
    try:
        mixer.load_values(finished.values)
    except ValueError as error:
        raise CheckpointError(
            "cannot use the mixer",
            where="--mixer",
            seen=f"{error}; its numbers do not fit its own plan",
            remedy="Give the mixer.safetensors that the run wrote; nothing was written.",
        ) from None
    return mixer


def write_mixer(path: Path, finished: FinishedMixer) -> None:
    """Write `mixer.safetensors`: tensors, and the rest as JSON in its metadata."""
    card = {
        "version": MIXER_FILE_VERSION,
        "plan": json.loads(finished.plan.canonical_json()),
        "sites": [asdict(site) for site in finished.sites],
        "phantom": finished.phantom,
    }
    values = {name: t.contiguous() for name, t in sorted(finished.values.items())}
    tensors = grouped(values, MIXER)
    tensors[TAPS] = finished.taps
    metadata = {"lift": json.dumps(card, sort_keys=True, allow_nan=False)}
    write_atomically(path, safetensors.torch.save(tensors, metadata=metadata))


def read_mixer(path: Path, *, ca: Path | None = None) -> FinishedMixer:
    """The finished mixer of a file, or of a run's or a release's folder.

    Args:
        path: the file or the folder. Where it is a release, every file there must fit its manifest.
        ca: certificate of a federation's authority: the release must be signed under it.

    Raises:
        ReleaseError: the release is not what was signed, or with `ca` there is none.
        CheckpointError: the file is missing, damaged or not a finished mixer.
        VersionMismatchError: it comes from another version.
    """
    file = mixer_file(path, ca=ca)
    try:
        with safetensors.safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        card = parse_json(metadata["lift"])
        if not is_version(card["version"], MIXER_FILE_VERSION):
            raise VersionMismatchError(
                "cannot use the mixer: it comes from another version",
                where=path.name,
                seen=f"format {card['version']}; this version reads {MIXER_FILE_VERSION}",
                remedy="Use the version that trained it.",
            )
        return FinishedMixer(
            values=group(tensors, MIXER),
            taps=tensors[TAPS],
            plan=Plan.model_validate_json(json.dumps(card["plan"])),
            sites=tuple(SiteProfile(**site) for site in card["sites"]),
            phantom=bool(card["phantom"]),
        )
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        # ValidationError is a ValueError: a plan of another version ends here too
        reason = "its plan does not fit" if isinstance(error, ValidationError) else ""
        seen = reason or ("no such file" if not file.is_file() else "not a finished mixer")
        raise CheckpointError(
            "cannot use the mixer",
            where=path.name,
            seen=f"{seen}; needed: the mixer.safetensors that a run wrote",
            remedy="Give the run's mixer.safetensors; nothing was written.",
        ) from None
