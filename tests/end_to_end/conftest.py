"""A test that damages the tiny run works on its own copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.tiny_run import TinyRun


@pytest.fixture
def own(tiny: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy of volumes and bundle to damage."""
    folder = tmp_path / "own"
    for part in ("data", "bundle"):
        shutil.copytree(tiny.folder / part, folder / part)
    return TinyRun(folder)
