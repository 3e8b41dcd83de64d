"""Public tensors in one safetensors file: a description, the tensors, and the digest of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
from torch import Tensor

from lift.errors import ConfigError, DataError
from lift.files import write_atomically
from lift.strict_json import parse_json
from lift.triplanar.digests import digest_of

_ENTRY: Final = "lift"


class PublicTensors:
    """Public numbers with a file of their own: a description, tensors, and the digest of both."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that the file holds."""
        return digest_of(self._header(), self._tensors())

    def save(self, path: Path) -> str:
        """Write the file and return the digest."""
        write_public(path, self._header(), self._tensors())
        return self.digest

    def _header(self) -> dict[str, object]:
        raise NotImplementedError

    def _tensors(self) -> dict[str, Tensor]:
        raise NotImplementedError


def write_public(path: Path, header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Write the file whole or not at all; an older one is replaced."""
    # one entry: the order of several would be another one each time
    described = {"header": header, "digest": digest_of(header, tensors)}
    metadata = {_ENTRY: json.dumps(described, sort_keys=True)}
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(content, metadata=metadata))


def read_public(
    path: Path, kind: str, expected_digest: str | None
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Description and tensors, digest checked.

    Args:
        path: a file of :func:`write_public`.
        kind: the description's `kind`.
        expected_digest: what the plan names; None accepts what the file says.

    Raises:
        DataError: missing, damaged, or of another kind.
        ConfigError: another digest than the expected one.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        described = parse_json(metadata[_ENTRY])
        header = described["header"]
        found = digest_of(header, tensors)
        intact = header["kind"] == kind and found == described["digest"]
    except OSError as error:
        raise damaged(path, kind, error.strerror or "the file cannot be read") from None
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError):
        raise damaged(path, kind, "truncated, or not such a file") from None
    if not intact:
        raise damaged(path, kind, "its content is not what its digest says")
    if expected_digest is not None and found != expected_digest:
        raise ConfigError(
            f"cannot use the {kind}: it is not the one that is needed",
            where=str(path),
            seen=f"digest {found[:16]}...; the plan says {expected_digest[:16]}...",
            remedy="Nothing was loaded. Ask for the file that belongs to this run.",
        )
    return header, tensors


def damaged(path: Path, kind: str, seen: str) -> DataError:
    """The refusal of a file that cannot be what it should be."""
    return DataError(
        f"cannot use the {kind}",
        where=str(path),
        seen=seen,
        remedy="Nothing was loaded. Copy the file again from where it came.",
    )
