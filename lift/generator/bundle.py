"""A bundle: the folder in which a frozen generator travels.

`generator.json` (the card: architecture, taps, normalisation, statement on the training data,
licence, fingerprint) and `weights.safetensors` (every parameter and buffer). It is data only;
the fingerprint decides whether it is the right one, not the way it came.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lift.config.generator import GeneratorCard, GeneratorDescription, TapShape
from lift.config.plan import PreprocessingPlan, TaskPlan
from lift.errors import ConfigError, GeneratorError, VersionMismatchError
from lift.files import write_atomically, write_json
from lift.generator.networks import (
    FrozenGenerator,
    SliceNetwork,
    UNet,
    build_network,
    network_fingerprint,
)

CARD_FILE: Final = "generator.json"
WEIGHTS_FILE: Final = "weights.safetensors"
_FORMAT_VERSION: Final = 1
_BUILTIN: Final = Path(__file__).parent / "bundles"
_NOTHING_LOADED: Final = "Nothing was loaded. Copy the bundle anew from where it came."


def make_card(
    network: SliceNetwork,
    description: GeneratorDescription,
    *,
    trained_steps: int,
    validation_psnr_db: float | None = None,
) -> GeneratorCard:
    """The card of a network as it is now, with its fingerprint."""
    taps = network.taps if isinstance(network, UNet) else {}
    return GeneratorCard(
        network=description.network,
        source=description.source,
        target=description.target,
        taps={name: TapShape(channels=t.channels, stride=t.stride) for name, t in taps.items()},
        normalisation={
            channel: description.preprocessing.rule(channel)
            for channel in (*description.source, description.target)
        },
        training_data=description.training_data,
        licence=description.licence,
        fingerprint=network_fingerprint(description.network, network.state_dict()),
        made_with=version("lift-federated"),
        trained_steps=trained_steps,
        validation_psnr_db=validation_psnr_db,
    )


def save_bundle(folder: Path, network: SliceNetwork, card: GeneratorCard) -> str:
    """Write the bundle and return its fingerprint; an older bundle in `folder` is replaced.

    Each file is written whole or not at all, the card last: a crash in between leaves a folder
    that :func:`load_bundle` refuses, never one that loads with the wrong weights.

    Raises:
        GeneratorError: a weight is NaN or infinite; nothing is written.
        ValueError: the card is that of other weights.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    broken = _not_finite(tensors)
    if broken is not None:
        raise GeneratorError(
            "cannot write the generator bundle",
            where=str(folder),
            seen=f"tensor {broken} holds NaN or infinity",
            remedy="Nothing was written. The weights come from a training that diverged.",
        )
    if network_fingerprint(card.network, tensors) != card.fingerprint:
        raise ValueError("the card is that of other weights: make it when the weights are final")
    write_atomically(folder / WEIGHTS_FILE, safetensors.torch.save(tensors))
    write_json(folder / CARD_FILE, card.model_dump(mode="json"))
    return card.fingerprint


def load_bundle(
    folder: Path, *, expected_fingerprint: str | None, device: torch.device
) -> FrozenGenerator:
    """The frozen generator of a bundle, on `device`, its fingerprint checked.

    Args:
        folder: holds `generator.json` and `weights.safetensors`.
        expected_fingerprint: what the plan names; None accepts what the bundle's card says.
        device: where the generator will run.

    Raises:
        GeneratorError: a file is missing or damaged; a tensor is missing, extra or of the wrong
            shape or dtype; the fingerprint is not the card's or not the expected one.
        VersionMismatchError: another version of the format.
    """
    card = read_card(folder)
    tensors = _read_weights(folder)
    network = build_network(card.network, seed=0)
    _check_tensors(tensors, network.state_dict(), folder)
    found = network_fingerprint(card.network, tensors)
    _check_fingerprint(found, card.fingerprint, "its card", folder)
    if expected_fingerprint is not None:
        _check_fingerprint(found, expected_fingerprint, "the plan", folder)
    _check_taps(card, network, folder)
    network.load_state_dict(tensors)
    generator = FrozenGenerator(network, card)
    if device.type == "cuda":
        generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generator.to(device)


def read_card(folder: Path) -> GeneratorCard:
    """The card of a bundle; the weights are not read.

    Raises:
        GeneratorError: the card is missing, damaged or contradicts itself.
        VersionMismatchError: another version of the format.
    """
    path = folder / CARD_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not JSON"
        raise _damaged(folder, f"{CARD_FILE}: {reason}") from None
    found = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(found, int) and found != _FORMAT_VERSION:
        raise VersionMismatchError(
            "cannot use the generator bundle: it comes from another version",
            where=str(folder),
            seen=f"format {found}; this version reads format {_FORMAT_VERSION}",
            remedy="Install the version that made the bundle, or ask for a bundle of this one.",
        )
    try:
        return GeneratorCard.from_data(data, str(path))
    except ConfigError as error:
        raise _damaged(folder, f"{CARD_FILE}: {error.seen}") from None


def check_task(card: GeneratorCard, task: TaskPlan, preprocessing: PreprocessingPlan) -> None:
    """Nothing, when the bundle was made for exactly this task and these normalisation rules.

    Raises:
        ConfigError: other source channels, another order of them, another target, or a rule
            that differs: the network would run, and give a picture of nothing.
    """
    wanted = {name: preprocessing.rule(name) for name in (*task.source, task.target)}
    differences = []
    if (card.source, card.target) != (task.source, task.target):
        differences.append(
            f"the bundle makes {card.target} from {', '.join(card.source)}; "
            f"the plan wants {task.target} from {', '.join(task.source)}"
        )
    differences += [
        f"{name}: the bundle was trained with {card.normalisation[name].canonical_json()}; "
        f"the plan has {rule.canonical_json()}"
        for name, rule in wanted.items()
        if name in card.normalisation and card.normalisation[name] != rule
    ]
    if differences:
        raise ConfigError(
            "the generator bundle does not fit the plan",
            where="task and preprocessing.normalisation",
            seen="\n".join(differences),
            remedy="Correct the plan, or choose the bundle that was trained for it.",
        )


def list_builtin() -> list[str]:
    """Names of the bundles that are part of this package, sorted."""
    return sorted(card.parent.name for card in _BUILTIN.glob(f"*/{CARD_FILE}"))


def builtin_bundle(name: str) -> Path:
    """The folder of a bundle that is part of this package.

    Raises:
        GeneratorError: there is none of this name.
    """
    if name not in list_builtin():
        raise GeneratorError(
            f"there is no built-in generator bundle '{name}'",
            where="generator",
            seen=f"built in: {', '.join(list_builtin()) or 'none'}",
            remedy="Name one of these, or give the folder of a bundle.",
        )
    return _BUILTIN / name


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        content = (folder / WEIGHTS_FILE).read_bytes()
        return safetensors.torch.load(content)
    except OSError as error:
        raise _damaged(folder, f"{WEIGHTS_FILE}: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError, KeyError):
        raise _damaged(folder, f"{WEIGHTS_FILE}: truncated, or not a safetensors file") from None


def _check_tensors(
    tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor], folder: Path
) -> None:
    missing, extra = sorted(set(needed) - set(tensors)), sorted(set(tensors) - set(needed))
    if missing or extra:
        raise _damaged(folder, f"tensors missing: {_some(missing)}; not known: {_some(extra)}")
    for name, tensor in needed.items():
        seen = tensors[name]
        if seen.shape != tensor.shape or seen.dtype != tensor.dtype:
            raise _damaged(
                folder,
                f"tensor {name} is {list(seen.shape)} {seen.dtype}; "
                f"the architecture needs {list(tensor.shape)} {tensor.dtype}",
            )
    broken = _not_finite(tensors)
    if broken is not None:
        raise _damaged(folder, f"tensor {broken} holds NaN or infinity")


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            return name
    return None


def _check_taps(card: GeneratorCard, network: SliceNetwork, folder: Path) -> None:
    taps = network.taps if isinstance(network, UNet) else {}
    needed = {name: TapShape(channels=t.channels, stride=t.stride) for name, t in taps.items()}
    if card.taps != needed:
        raise _damaged(folder, f"{CARD_FILE}: taps are not those of the architecture")


def _check_fingerprint(found: str, needed: str, source: str, folder: Path) -> None:
    if found != needed:
        raise GeneratorError(
            "cannot use the generator bundle: it is not the one that is needed",
            where=str(folder),
            seen=f"fingerprint {found[:16]}...; {source} says {needed[:16]}...",
            remedy="Nothing was loaded. Ask for the bundle that belongs to this run.",
        )


def _damaged(folder: Path, seen: str) -> GeneratorError:
    return GeneratorError(
        "cannot use the generator bundle", where=str(folder), seen=seen, remedy=_NOTHING_LOADED
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
