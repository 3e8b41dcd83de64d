"""A coordinator's own trained weights (safetensors, ONNX or a state dict), turned into a bundle.

The one place that reads a `.pt` file, and only with `weights_only=True`: tensors, numbers and
texts, nothing that could run. TorchScript archives and pickled modules are refused.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import safetensors
import safetensors.torch
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from lift.config.generator import GeneratorCard, GeneratorDescription
from lift.errors import GeneratorError
from lift.generator.bundle import make_card, save_bundle
from lift.generator.networks import MonaiNetwork, build_network
from lift.release.folder import printable
from lift.state_dicts import first_misfit, without_module_prefix

_NOTHING_WRITTEN = "No bundle was written."
_NESTED: Final = ("state_dict", "model")
_PARAMETER: Final = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
"""A name as PyTorch's exporter keeps it: `encoder.0.conv1.weight`."""


def import_state_dict(path: Path, description: GeneratorDescription, folder: Path) -> GeneratorCard:
    """Write the bundle of a trained state dict to `folder`, and return its card.

    The file holds name -> tensor, or that under the key `state_dict` or `model`. A leading
    `module.` (left by data-parallel training) is dropped; floating-point weights become float32.
    Names are those of the network itself: MONAI's own for one of MONAI's networks.

    Raises:
        GeneratorError: the file is missing, damaged, executable (TorchScript, a pickled
            module), or its tensors are not those of `description.network`.
    """
    return import_tensors(read_tensors(path), description, folder, path)


def import_tensors(
    tensors: Mapping[str, Tensor], description: GeneratorDescription, folder: Path, path: Path
) -> GeneratorCard:
    """Write the bundle of tensors that were read from `path`; see :func:`import_state_dict`.

    Raises:
        GeneratorError: the tensors are not those of `description.network`.
    """
    network = build_network(description.network, seed=0)
    body = network.body if isinstance(network, MonaiNetwork) else network
    given = without_module_prefix(tensors)
    if misfit := first_misfit(given, body.state_dict()):
        if path.suffix == ".onnx":
            misfit += "\n(torch.onnx.export keeps all names with do_constant_folding=False)"
        raise refused(path, misfit)
    body.load_state_dict(given)
    card = make_card(network, description, trained_steps=0)
    save_bundle(folder, network, card)
    return card


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name: safetensors and ONNX by suffix, else what `torch.save` wrote.

    Raises:
        GeneratorError: the file is missing, damaged or executable, or holds something else.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except OSError as error:
            raise refused(path, error.strerror or "the file cannot be read") from None
        except (safetensors.SafetensorError, ValueError, KeyError):
            raise refused(path, "the file is truncated, or not a safetensors file") from None
    if path.suffix == ".onnx":
        return _read_onnx(path)
    try:
        if _is_torchscript(path):
            raise _executable(path, "the file is a TorchScript archive, which holds code")
        with warnings.catch_warnings():
            # torch warns of newer pickle protocols; a file it cannot read raises all the same
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise refused(path, error.strerror or "the file cannot be read") from None
    except pickle.UnpicklingError:
        raise _executable(
            path, "the file holds pickled objects other than tensors, which may run code"
        ) from None
    except (
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        zipfile.BadZipFile,
    ):
        raise refused(path, "the file is damaged, or was not written by torch.save") from None
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise refused(path, f"the file holds a {type(content).__name__}, not name -> tensor")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise refused(path, f"entry '{name}' is a {type(value).__name__}, not a tensor")
    return dict(content)


def _read_onnx(path: Path) -> dict[str, Tensor]:
    """The weights of an ONNX file. Its graph is not run, nor looked at.

    What has one axis or none and no name of a parameter is a constant of the graph (a scale, a
    shape), and is left out.

    Source: the ONNX format, `TensorProto` and `GraphProto.initializer`.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise refused(
            path, 'reading ONNX needs a package: pip install "lift-federated[onnx]"'
        ) from None
    try:
        # data in other files is never followed: a name there may lead anywhere
        model = onnx.load_model(str(path), load_external_data=False)
        tensors = list(model.graph.initializer)
        outside = [t.name for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL]
        if outside:
            raise refused(
                path,
                f"weights lie in other files ({printable(outside[0])}); needed: one file "
                "(onnx.save_model with save_as_external_data=False)",
            )
        found = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in tensors}
    except OSError as error:
        raise refused(path, error.strerror or "the file cannot be read") from None
    except (DecodeError, ValueError, TypeError, KeyError, RuntimeError):
        raise refused(path, "the file is damaged, or not an ONNX model") from None
    weights = {
        name: tensor
        for name, tensor in found.items()
        if _PARAMETER.fullmatch(name) or tensor.ndim > 1
    }
    if not weights:
        raise refused(path, "the file holds no weights")
    return weights


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    return any("code" in name.parts or name.name == "constants.pkl" for name in names)


def _executable(path: Path, seen: str) -> GeneratorError:
    return GeneratorError(
        "refused to import an executable file",
        where=str(path),
        seen=f"{seen}; needed is a state dict: name -> tensor",
        remedy=f"Save it again with torch.save(model.state_dict(), ...). {_NOTHING_WRITTEN}",
    )


def refused(path: Path, seen: str) -> GeneratorError:
    """The refusal of a file that is to be imported; `seen` says what is wrong with it."""
    return GeneratorError(
        "cannot import the generator",
        where=str(path),
        seen="\n".join(map(printable, seen.splitlines())),
        remedy=f"Check the file and the network's settings. {_NOTHING_WRITTEN}",
    )
