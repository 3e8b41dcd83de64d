"""A generator in a MONAI bundle folder, read as data.

Nothing of the folder runs: no expression is evaluated, no name is imported, no link followed. Only
`network_def` of `configs/inference.json` is used, and it must describe one of our networks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lift.config.generator import (
    GeneratorCard,
    GeneratorDescription,
    MonaiBasicUNetConfig,
    MonaiSegResNetConfig,
    MonaiUNetConfig,
    NetworkConfig,
)
from lift.errors import ConfigError
from lift.generator.importing import import_tensors, read_tensors, refused
from lift.generator.networks import build_network
from lift.release.folder import printable, read_plain
from lift.strict_json import parse_json

_CONFIG: Final = "configs/inference.json"
_METADATA: Final = "configs/metadata.json"
_WEIGHTS: Final = ("models/model.safetensors", "models/model.pt")
_LARGEST_CONFIG: Final = 1_000_000
_LONGEST_TEXT: Final = 2_000
_LONGEST_SHOWN: Final = 80
_PACKAGES: Final = ("monai", "torch", "ignite")
_MEANING: Final = {"$": "an expression", "@": "a reference", "%": "a macro"}
_AFFINE_INSTANCE: Final = ["instance", {"affine": True}]
_CONTEXT: Final = {2.0 * context + 1: context for context in range(5)}


@dataclass(frozen=True)
class _Known:
    """One of MONAI's networks that we build too.

    Attributes:
        settings: ours.
        module: where MONAI has the class.
        keys: argument -> our key and MONAI's default.
        fixed: argument -> the value that we build, and MONAI's default.
        by_level: argument -> its one value for each level but the first, our key that holds a
            value for each level, MONAI's default.
        dropout: the argument that changes nothing in a frozen network.
    """

    settings: type[MonaiBasicUNetConfig | MonaiUNetConfig | MonaiSegResNetConfig]
    module: str
    keys: Mapping[str, tuple[str, object]]
    fixed: Mapping[str, tuple[object, object]]
    by_level: Mapping[str, tuple[int, str, object]]
    dropout: str


def _default(value: object) -> tuple[object, object]:
    return value, value


_SHARED: Final = {"spatial_dims": (2, 3), "out_channels": (1, 2)}
_NETWORKS: Final[Mapping[str, _Known]] = {
    "BasicUNet": _Known(
        settings=MonaiBasicUNetConfig,
        module="basic_unet",
        keys={"features": ("features", [32, 32, 64, 128, 256, 32])},
        fixed=_SHARED
        | {
            "act": _default(["leakyrelu", {"negative_slope": 0.1}]),
            "norm": _default(_AFFINE_INSTANCE),
            "bias": _default(True),
            "upsample": _default("deconv"),
        },
        by_level={},
        dropout="dropout",
    ),
    "UNet": _Known(
        settings=MonaiUNetConfig,
        module="unet",
        keys={"channels": ("channels", None), "num_res_units": ("residual_units", 0)},
        fixed=_SHARED
        | {
            "act": _default("prelu"),
            "norm": (_AFFINE_INSTANCE, "instance"),
            "bias": _default(True),
            "kernel_size": _default(3),
            "up_kernel_size": _default(3),
            "adn_ordering": _default("nda"),
        },
        by_level={"strides": (2, "channels", None)},
        dropout="dropout",
    ),
    "SegResNet": _Known(
        settings=MonaiSegResNetConfig,
        module="segresnet",
        keys={"init_filters": ("width", 8), "blocks_down": ("blocks", [1, 2, 2, 4])},
        fixed=_SHARED
        | {
            "act": _default("relu"),
            "norm": _default(["group", {"num_groups": 8}]),
            "use_conv_final": _default(True),
            "upsample_mode": _default("nontrainable"),
        },
        by_level={"blocks_up": (1, "blocks", [1, 1, 1])},
        dropout="dropout_prob",
    ),
}


def import_monai_folder(folder: Path, settings: object, where: str, output: Path) -> GeneratorCard:
    """Write the bundle of the generator in a MONAI bundle folder to `output`; return its card.

    Args:
        folder: holds `configs/inference.json`, perhaps `configs/metadata.json`, and
            `models/model.safetensors` or `models/model.pt` (read with weights only).
        settings: a `GeneratorDescription` as plain data, without `network`. `licence` and
            `training_data` may be left out where the metadata have `license` and `data_source`.
        where: the settings' file, for messages.
        output: folder of the new bundle.

    Raises:
        GeneratorError: a file is missing, damaged or a link; the config names code, or describes
            none of our networks; the tensors are not those of the network.
        ConfigError: the settings do not fit, or contradict the metadata.
    """
    given = dict(settings) if isinstance(settings, Mapping) else {}
    if "network" in given:
        raise _contradicts(where, "network: the bundle says which network it holds")
    path = folder / _CONFIG
    config = _read_json(folder, _CONFIG)
    _check_targets(config, path)
    definition = config.get("network_def")
    _check_plain(definition, "network_def", path)
    if not isinstance(definition, Mapping):
        raise refused(path, "it has no network_def with `_target_` and arguments")
    network, plain_norm = _network_of(definition, given.get("source"), path)
    given |= _statements(folder, given, where)
    description = GeneratorDescription.from_data(
        given | {"network": network.model_dump(mode="json")}, where
    )
    weights = _weights_file(folder)
    tensors = read_tensors(weights)
    if plain_norm:
        tensors = _plain_norms(network) | tensors
    return import_tensors(tensors, description, output, weights)


def _network_of(
    definition: Mapping[str, object], source: object, path: Path
) -> tuple[NetworkConfig, bool]:
    """Our settings of the network that a definition describes, and whether its norm is plain.

    A plain instance norm has no weights. Each argument is accounted for: one that we do not build
    is refused.
    """
    target = definition.get("_target_")
    name = str(target).rpartition(".")[2]
    known = _NETWORKS.get(name)
    if known is None or target not in {
        name,
        f"monai.networks.nets.{name}",
        f"monai.networks.nets.{known.module}.{name}",
    }:
        needed = ", ".join(f"monai.networks.nets.{one}" for one in _NETWORKS)
        raise refused(path, f"network_def._target_: {_shown(target)}; needed: one of {needed}")
    arguments = {key: value for key, value in definition.items() if key[:1] != "_"}
    channels = arguments.pop("in_channels", 1)
    n_source = len(source) if isinstance(source, list) and source else 1
    context = _CONTEXT.get(channels / n_source) if type(channels) is int else None
    if context is None:
        raise refused(
            path,
            f"network_def.in_channels: {_shown(channels)}; needed: {n_source} (sources in the "
            "settings) times 1, 3, 5, 7 or 9 slices",
        )
    data: dict[str, object] = {"n_source": n_source, "context_slices": context}
    for key, (own, default) in known.keys.items():
        data[own] = arguments.pop(key, default)
    try:
        network = known.settings.from_data(data, str(path))
    except ConfigError as error:
        raise refused(path, f"network_def: {', '.join(known.keys)} as {error.seen}") from None
    fixed = dict(known.fixed)
    for key, (each, own, default) in known.by_level.items():
        fixed[key] = ([each] * (len(getattr(network, own)) - 1), default)
    plain_norm = False
    for key, (wanted, default) in fixed.items():
        seen = arguments.pop(key, default)
        if wanted is _AFFINE_INSTANCE and _spec(seen) == ("instance", {}):
            plain_norm = True
        elif _spec(seen) != _spec(wanted):
            raise refused(path, f"network_def.{key}: {_shown(seen)}; needed: {_shown(wanted)}")
    if type(dropout := arguments.pop(known.dropout, 0)) not in {int, float, type(None)}:
        raise refused(path, f"network_def.{known.dropout}: {_shown(dropout)}; needed: a number")
    if arguments:
        raise refused(path, f"network_def: the argument {_shown(min(arguments))} is not known")
    return network, plain_norm


def _spec(value: object) -> tuple[object, object]:
    """A layer's name and arguments, or a plain value with its type, in one form."""
    match value:
        case str(name):
            return name.lower(), {}
        case [str(name), dict(arguments)]:
            return name.lower(), {k: v for k, v in arguments.items() if k != "inplace"}
    return type(value), value


def _plain_norms(network: NetworkConfig) -> dict[str, Tensor]:
    """The weights of instance norms that have none: 1 and 0, by MONAI's names."""
    return {
        name.removeprefix("body."): torch.full_like(tensor, 1 if name.endswith("weight") else 0)
        for name, tensor in build_network(network, seed=0).state_dict().items()
        if ".N." in name
    }


def _check_plain(data: object, where: str, path: Path) -> None:
    """Raise unless a definition is plain values, with `_target_` and `_desc_` at its top."""
    if isinstance(data, str) and (meaning := _MEANING.get(data.strip()[:1])):
        raise refused(path, f"{where}: {_shown(data)} is {meaning}; only plain values are read")
    inner: Iterable[tuple[object, object]] = ()
    if isinstance(data, Mapping):
        special = {key for key in data if key[:1] == "_"}
        if where == "network_def":
            special -= {"_target_", "_desc_"}
        if special:
            raise refused(path, f"{where}: {_shown(min(special))} is not read")
        inner = data.items()
    elif isinstance(data, list):
        inner = enumerate(data)
    for key, value in inner:
        _check_plain(value, f"{where}.{printable(str(key))[:_LONGEST_SHOWN]}", path)


def _check_targets(data: object, path: Path) -> None:
    """Raise when the config names code outside MONAI, torch and ignite, wherever it stands."""
    if isinstance(data, Mapping):
        if "_target_" in data:
            target = data["_target_"]
            package, dot, _ = target.partition(".") if isinstance(target, str) else ("", ".", "")
            if dot and package not in _PACKAGES:
                raise refused(
                    path,
                    f"_target_: {_shown(target)} is code outside {', '.join(_PACKAGES)}",
                )
        for value in data.values():
            _check_targets(value, path)
    elif isinstance(data, list):
        for value in data:
            _check_targets(value, path)


def _statements(folder: Path, given: Mapping[str, object], where: str) -> dict[str, object]:
    """`licence` and `training_data`, where the metadata tell them."""
    if not os.path.lexists(folder / _METADATA):
        return {}
    metadata = _read_json(folder, _METADATA)
    found: dict[str, object] = {}
    for key, own in (("license", "licence"), ("data_source", "training_data")):
        text = metadata.get(key)
        if text is None:
            continue
        if (
            not isinstance(text, str)
            or not 0 < len(text) <= _LONGEST_TEXT
            or not text.isprintable()
            or text.strip()[:1] in {"", *_MEANING}
        ):
            raise refused(
                folder / _METADATA,
                f"{key}: {_shown(text)}; needed: plain text, at most {_LONGEST_TEXT} characters",
            )
        found[own] = text
    if given.get("licence", found.get("licence")) != found.get("licence", given.get("licence")):
        raise _contradicts(where, f"licence: the bundle's metadata say {_shown(found['licence'])}")
    return found | {key: given[key] for key in found if key in given}


def _read_json(folder: Path, name: str) -> dict[str, object]:
    path = folder / name
    try:
        _check_folder(path.parent)
        data = parse_json(read_plain(path, _LARGEST_CONFIG))
    except OSError as error:
        raise refused(path, error.strerror or type(error).__name__) from None
    except ValueError as error:
        raise refused(path, str(error)) from None
    if not isinstance(data, dict):
        raise refused(path, f"it holds a {type(data).__name__}; needed: an object")
    return data


def _weights_file(folder: Path) -> Path:
    paths = [folder / name for name in _WEIGHTS]
    path = next((path for path in paths if os.path.lexists(path)), paths[0])
    try:
        _check_folder(path.parent)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise refused(path, "it is a link, a pipe or a device; needed: a plain file")
    except OSError as error:
        raise refused(path, error.strerror or type(error).__name__) from None
    return path


def _check_folder(folder: Path) -> None:
    if folder.is_symlink():
        raise refused(folder, "it is a symbolic link; needed: a folder")


def _shown(value: object) -> str:
    text = printable(value if isinstance(value, str) else repr(value))
    return f"'{text[:_LONGEST_SHOWN]}...'" if len(text) > _LONGEST_SHOWN else f"'{text}'"


def _contradicts(where: str, seen: str) -> ConfigError:
    return ConfigError(
        "the settings contradict the MONAI bundle",
        where=where,
        seen=seen,
        remedy="Leave this key out of the settings. No bundle was written.",
    )
