"""The volumes under a folder, in every format that is read, by their names without an ending."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from lift.errors import DataError
from lift.volumes.formats.dicom_image import is_dicom
from lift.volumes.volume import SUFFIXES, stem_of

_DICOM: Final = ".dcm"
_START: Final = 132


def volumes_under(role: str, folder: Path) -> dict[str, Path]:
    """STEM, relative to the folder -> file of a volume, or the folder of a DICOM series.

    Hidden files and folders are passed over.

    Args:
        role: what the folder is, for messages.
        folder: looked through with all that is in it.

    Raises:
        DataError: it does not exist, cannot be read or holds no volume, or two volumes have one
            name but for their endings.
    """
    if not folder.is_dir():
        raise _wrong(role, folder, "there is no such folder")
    found: dict[str, Path] = {}
    try:
        for place, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            here = Path(place)
            files = sorted(name for name in names if not name.startswith("."))
            series = here != folder and _is_series(here, files)
            for path in [here] if series else [here / name for name in files if _is_volume(name)]:
                stem = stem_of(path.relative_to(folder).as_posix())
                if stem in found:
                    both = f"{found[stem].relative_to(folder)} and {path.relative_to(folder)}"
                    raise _wrong(role, folder, f"two volumes have one name: {both}")
                found[stem] = path
    except OSError as error:
        raise _wrong(role, folder, error.strerror or type(error).__name__) from None
    if not found:
        raise _wrong(
            role,
            folder,
            f"it holds no file of a volume ({', '.join(SUFFIXES)}, or folders of DICOM series)",
        )
    return dict(sorted(found.items()))


def _raise(error: OSError) -> None:
    raise error


def _is_volume(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_series(folder: Path, files: list[str]) -> bool:
    """Whether a folder's files are slices: one enhanced file alone is a volume of its own."""
    if any(_is_volume(name) and not name.lower().endswith(_DICOM) for name in files):
        return False
    slices = [name for name in files if _begins_as_dicom(folder / name)]
    return len(slices) > 1 or any(not _is_volume(name) for name in slices)


def _begins_as_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return is_dicom(stream.read(_START))


def _wrong(role: str, folder: Path, seen: str) -> DataError:
    return DataError(
        f"cannot read the {role} folder",
        where=f"'{folder}'",
        seen=seen,
        remedy="Check the path given on the command line, and what lies there.",
    )
