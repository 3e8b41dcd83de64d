"""Baselines on disk: what was trained alone is not trained again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from lift.files import write_atomically


def read_baseline(path: Path, digest: str) -> dict[str, Tensor] | None:
    """The numbers of a baseline that was trained under this plan, or None."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            if (stream.metadata() or {}).get("plan_digest") != digest:
                return None
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return None


def write_baseline(path: Path, values: Mapping[str, Tensor], digest: str) -> None:
    """Keep the numbers of a baseline that was trained under this plan."""
    content = safetensors.torch.save(dict(values), metadata={"plan_digest": digest})
    write_atomically(path, content)
