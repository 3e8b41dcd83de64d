"""Encoders whose weights somebody else trained: given by path, checked by SHA-256.

Supported: the 2D residual networks below with ImageNet's names and shapes (a 7x7 stem of three
channels at stride 2, bottlenecks with their stride at the 3x3 convolution, 1x1 shortcuts
without bias), as torchvision, RadImageNet's exports under those names, and MONAI write them.
A classification head is left out. Not supported: 3D weights such as MedicalNet's (this loss
compares 2D images), and any file but safetensors: other formats may run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lift.errors import ConfigError
from lift.files import file_digest
from lift.state_dicts import first_misfit, without_module_prefix
from lift.triplanar.encoder import FrozenEncoder

UserArchitecture = Literal["resnet10_2d", "resnet50_2d"]
_SIZES: Final[dict[UserArchitecture, int]] = {"resnet10_2d": 512, "resnet50_2d": 2048}
_SUFFIX: Final = ".safetensors"
_HEAD: Final = ("fc.weight", "fc.bias")
_COUNTER: Final = "num_batches_tracked"


def user_encoder(path: Path, sha256: str, arch: UserArchitecture) -> FrozenEncoder:
    """The frozen encoder of a weights file; grey images are repeated over three channels.

    A leading `module.` is dropped from the tensors' names. Images go in as they are, in [0, 1].

    Args:
        path: the weights, a `.safetensors` file.
        sha256: of the file's bytes, hexadecimal; checked before a byte is decoded.
        arch: which network.

    Raises:
        ConfigError: no such file, not a safetensors file, another SHA-256, an unknown
            architecture, a tensor that is missing, extra, of another shape or not finite.
    """
    if arch not in _SIZES:
        raise _refused(path, f"architecture '{arch}'; known are {', '.join(sorted(_SIZES))}")
    if path.suffix != _SUFFIX:
        raise _unreadable(path, f"the file's name ends in '{path.suffix}'")
    try:
        found = file_digest(path)
    except OSError as error:
        raise _refused(path, error.strerror or "the file cannot be read") from None
    if found != sha256.lower():
        raise _refused(path, f"SHA-256 {found[:16]}...; the settings say {sha256[:16]}...")
    tensors = _read(path)
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


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except (safetensors.SafetensorError, ValueError, KeyError):
        raise _unreadable(path, "the file is truncated or damaged, or of another format") from None


def _fitted(
    path: Path, tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    given = without_module_prefix(tensors)
    # older files lack the counters, which evaluation never reads: they are 0 for everybody
    given = {
        name: tensor
        for name, tensor in given.items()
        if name not in _HEAD and not name.endswith(_COUNTER)
    }
    wanted = {name: tensor for name, tensor in needed.items() if not name.endswith(_COUNTER)}
    if misfit := first_misfit(given, wanted):
        raise _refused(path, misfit)
    for name in sorted(given):
        if not bool(torch.isfinite(given[name]).all()):
            raise _refused(path, f"tensor {name} holds NaN or infinity")
    counters = {name: torch.zeros_like(needed[name]) for name in set(needed) - set(wanted)}
    return counters | {name: given[name].to(tensor.dtype) for name, tensor in wanted.items()}


def _refused(path: Path, seen: str) -> ConfigError:
    return ConfigError(
        "cannot use the feature encoder's weights",
        where=str(path),
        seen=seen,
        remedy="Nothing was computed. Check the path, its SHA-256 and the architecture.",
    )


def _unreadable(path: Path, seen: str) -> ConfigError:
    return ConfigError(
        "cannot read the feature encoder's weights",
        where=str(path),
        seen=f"{seen}; needed is a safetensors file, named {_SUFFIX}",
        remedy="Nothing was loaded. Copy the file again, or convert a state dict that you trust on "
        "the coordinator's machine:\n"
        'state = torch.load("weights.pt", map_location="cpu", weights_only=True)\n'
        'state = state.get("state_dict", state)\n'
        "tensors = {name: value.clone().contiguous() for name, value in state.items()}\n"
        'safetensors.torch.save_file(tensors, "weights.safetensors")\n'
        "and state the new file's SHA-256.",
    )
