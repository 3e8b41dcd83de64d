"""One patient's volume set, and the refusal of one, for all layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lift.errors import DataError
from lift.volumes.volume import SUFFIXES


def volumes_called(folder: Path, stem: str) -> list[Path]:
    """Files of a volume in a folder with this name and any format's ending, or a series' folder."""
    names = [*(stem + suffix for suffix in reversed(SUFFIXES)), stem]
    found = [folder / name for name in names if (folder / name).exists()]
    return [path for path in found if path.name != stem or path.is_dir()]


@dataclass(frozen=True)
class Patient:
    """One examination: a volume set of one person.

    Attributes:
        id: the examination's name in the cohort; it never leaves the site.
        subject: the person: several time points of one person share it, and a split never
            tears them apart.
        channels: channel name -> file.
        mask: the cohort's own mask, or None.
        problem: why it cannot be used although its files are there; empty without one.
    """

    id: str
    subject: str
    channels: Mapping[str, Path]
    mask: Path | None
    problem: str = ""

    def with_channels(self, names: Iterable[str]) -> Patient:
        """The same examination with these channels alone, as far as it has them."""
        kept = {name: self.channels[name] for name in names if name in self.channels}
        return replace(self, channels=kept)


def subjects_of(ids: Iterable[str], patients: Mapping[str, Patient]) -> set[str]:
    """The persons behind some examinations."""
    return {patients[one].subject for one in ids}


@dataclass(frozen=True)
class Refusal:
    """An examination that cannot be used, and why, for the site's own operator.

    Attributes:
        patient: the examination's name.
        reason: what is wrong, and what to do.
        subject: the person: several refused examinations of one person count once.
    """

    patient: str
    reason: DataError
    subject: str


def reasons_of(refusals: Iterable[Refusal]) -> dict[str, str]:
    """Patient -> what is wrong, for records that stay with the patients' data."""
    return {one.patient: one.reason.seen or one.reason.what for one in refusals}
