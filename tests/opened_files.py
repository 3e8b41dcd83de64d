"""Which files this process opens: counted by the interpreter, whoever opens them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_watching: list[tuple[Path, list[Path]]] = []
_hooked: list[bool] = []


@contextlib.contextmanager
def opened_files(folder: Path) -> Iterator[list[Path]]:
    """The files under a folder that are opened inside the block, one entry for each opening."""
    if not _hooked:
        # a hook cannot be taken away again: it is added once, and idle outside the block
        sys.addaudithook(_see)
        _hooked.append(True)
    found: list[Path] = []
    entry = (folder.resolve(), found)
    _watching.append(entry)
    try:
        yield found
    finally:
        _watching.remove(entry)


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watching or not isinstance(arguments[0], str):
        return
    path = Path(arguments[0])
    for folder, found in _watching:
        if path.is_relative_to(folder):
            found.append(path)
