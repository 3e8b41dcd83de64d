"""Baselines on disk: what was trained alone is not trained again."""

from __future__ import annotations

from pathlib import Path

import safetensors
from torch import Tensor


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
