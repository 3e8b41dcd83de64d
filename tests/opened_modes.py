"""Which files of a folder somebody else on the machine may touch."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path


def open_to_others(folder: Path, *, but: Callable[[Path], bool] = lambda _: False) -> list[str]:
    """The files and folders below `folder`, and it itself, that others may read, write or enter."""
    return sorted(
        path.relative_to(folder.parent).as_posix()
        for path in [folder, *folder.rglob("*")]
        if stat.S_IMODE(path.lstat().st_mode) & 0o077 and not path.is_symlink() and not but(path)
    )
