"""The settings that ship with the package: a commented example, presets, pre-trainings."""

from __future__ import annotations

from pathlib import Path


def shipped_settings() -> Path:
    """Folder with `simulation.yaml`, `presets/` and `pretrain/`: of the wheel, or of a checkout."""
    here = Path(__file__).parent
    installed = here / "configs"
    return installed if installed.is_dir() else here.parents[1] / "configs"
