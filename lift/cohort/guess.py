"""Detect the layout of a data folder from its content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lift.cohort.patients import UNSEEN, cannot_list, volumes_called
from lift.config.cohort import AutoData, BidsData, BratsData, KnownData, SynthradData, TableData
from lift.csv_tables import TableError, read_table
from lift.errors import DataError
from lift.volumes.volume import SUFFIXES

_MOST_LOOKED_AT: Final = 2000
_TABLES: Final = (".csv", ".tsv")
_HEAD_CHANNELS: Final = ("mr", "ct")


@dataclass(frozen=True)
class Guess:
    """A layout, and the evidence for it.

    Attributes:
        data: the same folder in the layout that was found.
        evidence: what was seen, for the operator.
    """

    data: KnownData
    evidence: str


def guess_layout(data: AutoData, channels: Sequence[str]) -> Guess:
    """Return the only layout that matches the folder's content.

    Args:
        data: the folder.
        channels: names that are asked for: a table's columns.

    Raises:
        DataError: the folder is missing or cannot be read, or no layout fits, or several do.
    """
    entries = _entries(data.root)
    folders = [path for path in entries if _is(path.is_dir)]
    brats = sum(_holds(folder, f"{folder.name}-") for folder in folders)
    synthrad = sum(_holds_head(folder) for folder in folders)
    bids = sum(folder.name.startswith("sub-") and _holds_anat(folder) for folder in folders)
    root, policy = data.root, data.on_bad_file
    found: list[Guess] = []
    if brats:
        seen = f"{brats} folders whose files begin with their name"
        found.append(Guess(BratsData(root=root, on_bad_file=policy), seen))
    if synthrad:
        seen = f"{synthrad} folders with mr.nii.gz or ct.nii.gz"
        found.append(Guess(SynthradData(root=root, on_bad_file=policy), seen))
    if bids:
        seen = f"{bids} folders sub-* with an anat folder"
        found.append(Guess(BidsData(root=root, on_bad_file=policy), seen))
    found += [
        Guess(TableData(root=root, on_bad_file=policy, table=table), f"the table {table.name}")
        for table in _tables(entries, channels)
    ]
    if len(found) == 1:
        return found[0]
    names = "; ".join(f"{guess.data.layout} ({guess.evidence})" for guess in found)
    raise DataError(
        "cannot tell the layout of the data folder",
        where=str(data.root),
        seen=f"several fit: {names}"
        if found
        else "neither BraTS, SynthRAD nor BIDS folders, and "
        "no table with a column `patient` and one for each channel",
        remedy="Set data.layout to brats, synthrad, bids or table.",
    )


def _entries(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())[:_MOST_LOOKED_AT]
    except OSError as error:
        raise cannot_list(root, error) from None


def _is(look: Callable[[], bool]) -> bool:
    """What is seen; False where nobody may look."""
    try:
        return look()
    except UNSEEN:
        return False


def _holds(folder: Path, prefix: str) -> bool:
    return _is(
        lambda: any(
            path.name.startswith(prefix) and (path.name.endswith(SUFFIXES) or path.is_dir())
            for path in folder.iterdir()
        )
    )


def _holds_head(folder: Path) -> bool:
    return _is(lambda: any(volumes_called(folder, channel) for channel in _HEAD_CHANNELS))


def _holds_anat(folder: Path) -> bool:
    return _is(lambda: any(folder.glob("**/anat")))


def _tables(entries: Sequence[Path], channels: Sequence[str]) -> list[Path]:
    found = []
    for path in entries:
        if path.suffix.lower() not in _TABLES or not _is(path.is_file):
            continue
        try:
            read_table(path, ["patient", *channels])
        except TableError:
            continue
        found.append(path)
    return found
