"""The tiny run is made once; a test that damages it works on its own copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.tiny_run import TinyRun, make_tiny_run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Volumes, bundle and settings that no test changes; results go into folders of their own."""
    return make_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own(tiny: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy of volumes and bundle to damage."""
    folder = tmp_path / "own"
    for part in ("data", "bundle"):
        shutil.copytree(tiny.folder / part, folder / part)
    return TinyRun(folder)
