"""What tests make at some cost is made once for all workers and for later runs: a cache on disk.

An entry is named by a digest of everything that can influence it: the product's files, the test
files that make it, and the versions of what computes. Nobody changes an entry; a test that
damages something works on a copy.
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

PROJECT: Final = Path(__file__).parents[1]
CACHE: Final = Path(os.environ.get("LIFT_TEST_CACHE") or PROJECT / "out" / "test-cache").resolve()
KEPT_S: Final = 24 * 3600.0
"""An entry of another digest goes once nobody has used it for so long; a run may still read it."""

_PRODUCT: Final = ("lift", "server/lift_server", "client/lift_client", "deploy/lift_simulation")
_COMPUTES: Final = ("torch", "numpy", "scipy", "nibabel", "monai", "nilearn", "scikit-image")
_used: dict[Path, str] = {}


def cached(
    name: str, make: Callable[[Path], None], sources: Iterable[Path], *, cache: Path = CACHE
) -> Path:
    """The folder that `make` fills, which is given to it empty; read only.

    Args:
        name: of the entry; one name has one maker.
        make: fills a folder. It must not write the folder's path into it: the folder is moved.
        sources: the test files that have influence on what is made.
        cache: where entries lie.
    """
    entry = cache / name / _key(sources)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if not entry.is_dir():
            _make(entry, make)
        os.utime(entry)
        _remove_old(entry)
    _used.setdefault(entry, contents(entry))
    return entry


def changed_entries() -> list[str]:
    """The entries that were changed since this process asked for them first."""
    return [str(entry) for entry, digest in _used.items() if contents(entry) != digest]


def contents(folder: Path) -> str:
    """A digest of a folder's paths and bytes; caches of Python do not count."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _key(sources: Iterable[Path]) -> str:
    digest = hashlib.sha256(_product().encode())
    for source in sources:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:32]


@functools.cache
def _product() -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _COMPUTES]
    folders = [contents(PROJECT / folder) for folder in _PRODUCT]
    return "\n".join([platform.python_version(), platform.machine(), *versions, *folders])


def _make(entry: Path, make: Callable[[Path], None]) -> None:
    """Make an entry beside its place, and move it there whole."""
    entry.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix="making-") as place:
        folder = Path(place) / entry.name
        folder.mkdir()
        make(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
        folder.rename(entry)


def _remove_old(entry: Path) -> None:
    """Remove the name's entries of other digests, and what makers that died have left."""
    for other in entry.parent.iterdir():
        if other != entry and time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
