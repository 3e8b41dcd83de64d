"""A plan's mixer around a frozen generator."""

from __future__ import annotations

from torch import Tensor

from lift.config.plan import Plan
from lift.errors import CheckpointError, GeneratorError
from lift.generator.base import SliceGenerator
from lift.mixer.base import FrozenParts, Mixer
from lift.mixer.build import build_mixer
from lift.mixer.finished import FinishedMixer
from lift.randomness import derive_seed


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
