"""What tests make at some cost is made once, for all workers and later runs: a cache on disk.

An entry is named by a digest of everything that can influence it: the product's files, the test
files that make it, and the versions of what computes. A test gets a copy, so none can change what
another one reads.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from filelock import FileLock

Maker = Callable[[Path], object]

PROJECT: Final = Path(__file__).parents[1]
CACHE: Final = Path(os.environ.get("LIFT_TEST_CACHE") or PROJECT / "out" / "test-cache").resolve()
KEPT_S: Final = 24 * 3600.0
"""An entry of another digest is removed once nobody has used it for so long."""

_PRODUCT: Final = ("lift", "server/lift_server", "client/lift_client", "deploy/lift_simulation")
_COMPUTES: Final = ("torch", "numpy", "scipy", "nibabel", "monai", "nilearn", "scikit-image")


def cached(
    folder: Path, name: str, make: Maker, sources: Iterable[Path], *, cache: Path = CACHE
) -> Path:
    """Fill a folder with a copy of what `make` makes; returns the folder.

    Args:
        folder: where the copy goes.
        name: of the entry; one name has one maker.
        make: fills an empty folder. It must not write that folder's path into any file.
        sources: the test files that have influence on what is made.
        cache: where entries lie.
    """
    entry = cache / name / _key(sources)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.parent / "lock"):
        if not entry.is_dir():
            _make(entry, make)
        os.utime(entry)
        _remove_old(entry)
        shutil.copytree(entry, folder, dirs_exist_ok=True)
    return folder


def _key(sources: Iterable[Path]) -> str:
    digest = hashlib.sha256(_product().encode())
    for source in sources:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:32]


@functools.cache
def _product() -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _COMPUTES]
    folders = [_contents(PROJECT / folder) for folder in _PRODUCT]
    return "\n".join([platform.python_version(), platform.machine(), *versions, *folders])


def _contents(folder: Path) -> str:
    """A digest of a package's paths and bytes, without Python's own caches."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _make(entry: Path, make: Maker) -> None:
    """Make an entry beside its place, and move it there whole."""
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix="making-") as place:
        made = Path(place) / entry.name
        made.mkdir()
        make(made)
        made.rename(entry)


def _remove_old(entry: Path) -> None:
    """Remove the name's unused entries, and what makers that were killed have left."""
    for other in entry.parent.iterdir():
        if other.is_dir() and other != entry and time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
