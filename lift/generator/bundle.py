"""A bundle: the folder that holds a frozen generator.

`generator.json` (the card: architecture, taps, normalisation, statement on the training data,
licence, fingerprint) and `weights.safetensors` (every parameter and buffer). It is data only;
the fingerprint decides whether it is the right one, not the way it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lift.config.generator import GeneratorCard, GeneratorDescription, TapShape
from lift.errors import GeneratorError
from lift.files import write_atomically, write_json
from lift.generator.card import CARD_FILE, WEIGHTS_FILE, damaged_bundle, read_card
from lift.generator.networks import (
    FrozenGenerator,
    SliceNetwork,
    UNet,
    build_network,
    network_fingerprint,
)


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
        format_version=description.network.card_version,
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
    if not isinstance(card, GeneratorCard):
        raise GeneratorError(
            "cannot translate with this generator bundle",
            where=str(folder),
            seen="it makes new volumes (kind unconditional)",
            remedy="Give a bundle that makes a target from sources.",
        )
    tensors = read_weights(folder)
    network = build_network(card.network, seed=0)
    check_tensors(tensors, network.state_dict(), folder)
    found = network_fingerprint(card.network, tensors)
    check_fingerprint(found, card.fingerprint, "its card", folder)
    if expected_fingerprint is not None:
        check_fingerprint(found, expected_fingerprint, "the plan", folder)
    _check_taps(card, network, folder)
    network.load_state_dict(tensors)
    generator = FrozenGenerator(network, card)
    if device.type == "cuda":
        generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generator.to(device)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a bundle's weights file, unchecked (GeneratorError when it is damaged)."""
    try:
        content = (folder / WEIGHTS_FILE).read_bytes()
        return safetensors.torch.load(content)
    except OSError as error:
        raise damaged_bundle(folder, f"{WEIGHTS_FILE}: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError, KeyError):
        raise damaged_bundle(
            folder, f"{WEIGHTS_FILE}: truncated, or not a safetensors file"
        ) from None


def check_tensors(
    tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor], folder: Path
) -> None:
    """Raise unless the tensors have the needed names, shapes and dtypes and are finite."""
    missing, extra = sorted(set(needed) - set(tensors)), sorted(set(tensors) - set(needed))
    if missing or extra:
        raise damaged_bundle(
            folder, f"tensors missing: {_some(missing)}; not known: {_some(extra)}"
        )
    for name, tensor in needed.items():
        seen = tensors[name]
        if seen.shape != tensor.shape or seen.dtype != tensor.dtype:
            raise damaged_bundle(
                folder,
                f"tensor {name} is {list(seen.shape)} {seen.dtype}; "
                f"the architecture needs {list(tensor.shape)} {tensor.dtype}",
            )
    broken = _not_finite(tensors)
    if broken is not None:
        raise damaged_bundle(folder, f"tensor {broken} holds NaN or infinity")


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
        raise damaged_bundle(folder, f"{CARD_FILE}: taps are not those of the architecture")


def check_fingerprint(found: str, needed: str, source: str, folder: Path) -> None:
    """Raise GeneratorError unless the fingerprint is the one named by `source`."""
    if found != needed:
        raise GeneratorError(
            "cannot use the generator bundle: it is not the one that is needed",
            where=str(folder),
            seen=f"fingerprint {found[:16]}...; {source} says {needed[:16]}...",
            remedy="Nothing was loaded. Ask for the bundle that belongs to this run.",
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
