"""Encoders whose weights somebody else trained: given by path, checked by SHA-256.

Supported: the 2D residual networks below with ImageNet's names and shapes (a 7x7 stem of three
channels at stride 2, bottlenecks with their stride at the 3x3 convolution, 1x1 shortcuts
without bias), as torchvision, RadImageNet's exports under those names, and MONAI write them.
A classification head is left out. Not supported: 3D weights such as MedicalNet's (this loss
compares 2D images), TorchScript archives and pickled modules.
"""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lift.drifting.encoder import FrozenEncoder
from lift.errors import ConfigError
from lift.files import file_digest

UserArchitecture = Literal["resnet10_2d", "resnet50_2d"]
_SIZES: Final[dict[UserArchitecture, int]] = {"resnet10_2d": 512, "resnet50_2d": 2048}
_HEAD: Final = ("fc.weight", "fc.bias")
_COUNTER: Final = "num_batches_tracked"


def user_encoder(path: Path, sha256: str, arch: UserArchitecture) -> FrozenEncoder:
    """The frozen encoder of a weights file; grey images are repeated over three channels.

    Reads a `.safetensors` file, or anything else with torch's restricted reader: names and
    tensors (also under the key `state_dict`), nothing that could run. A leading `module.` is
    dropped. Images go in as they are, in [0, 1].

    Args:
        path: the weights file.
        sha256: of the file's bytes, hexadecimal; checked before a byte is decoded.
        arch: which network.

    Raises:
        ConfigError: no such file, another SHA-256, an unreadable or executable file, an unknown
            architecture, a tensor that is missing, extra, of another shape or not finite.
    """
    if arch not in _SIZES:
        raise _refused(path, f"architecture '{arch}'; known are {', '.join(sorted(_SIZES))}")
    try:
        found = file_digest(path)
    except OSError as error:
        raise _refused(path, error.strerror or "the file cannot be read") from None
    if found != sha256.lower():
        raise _refused(path, f"SHA-256 {found[:16]}...; the settings say {sha256[:16]}...")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    network = _build(arch)
    network.load_state_dict(_fitted(path, tensors, network.state_dict()))
    return FrozenEncoder(network, {"encoder": arch, "version": 1}, size=_SIZES[arch], channels=3)


def _build(arch: UserArchitecture) -> nn.Module:
    # imported here: MONAI takes seconds, and only runs with such an encoder need it
    from monai.networks.nets.resnet import ResNet

    bottleneck = arch == "resnet50_2d"
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = ResNet(
            block="bottleneck" if bottleneck else "basic",
            layers=[3, 4, 6, 3] if bottleneck else [1, 1, 1, 1],
            block_inplanes=[64, 128, 256, 512],
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
            # not in place: it would overwrite what the gradient to the image needs
            act=("relu", {"inplace": False}),
        )
    return network


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except (safetensors.SafetensorError, ValueError, KeyError):
        raise _refused(path, "the file is truncated, or not a safetensors file") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # torch warns of newer pickle protocols and of TorchScript before it refuses
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        zipfile.BadZipFile,
    ):
        raise _refused(
            path, "the file is damaged, or holds more than names and tensors (which may run code)"
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise _refused(path, "the file does not hold name -> tensor")
    return dict(content)


def _fitted(
    path: Path, tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    given = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    given = {name: tensor for name, tensor in given.items() if name not in _HEAD}
    # older files lack the counters, which evaluation never reads: they are 0 for everybody
    given = {name: tensor for name, tensor in given.items() if not name.endswith(_COUNTER)}
    wanted = {name for name in needed if not name.endswith(_COUNTER)}
    for name in sorted(wanted | set(given)):
        if name not in given:
            raise _refused(path, f"tensor {name} is missing")
        if name not in wanted:
            raise _refused(path, f"tensor {name} is not part of the architecture")
        if given[name].shape != needed[name].shape:
            raise _refused(
                path,
                f"tensor {name} is {list(given[name].shape)}; the architecture needs "
                f"{list(needed[name].shape)}",
            )
        if not bool(torch.isfinite(given[name]).all()):
            raise _refused(path, f"tensor {name} holds NaN or infinity")
    result = {name: given[name].to(needed[name].dtype) for name in wanted}
    return result | {name: torch.zeros_like(needed[name]) for name in set(needed) - wanted}


def _refused(path: Path, seen: str) -> ConfigError:
    return ConfigError(
        "cannot use the feature encoder's weights",
        where=str(path),
        seen=seen,
        remedy="Nothing was computed. Check the path, its SHA-256 and the architecture.",
    )
