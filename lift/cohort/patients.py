"""One patient's volume set, and the refusal of one, for all layouts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lift.errors import DataError
from lift.volumes.volume import SUFFIXES

_MOST_NAMED: Final = 5
_LONGEST_NAME: Final = 80
_ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
UNSEEN: Final = (OSError, ValueError, RuntimeError)
"""What looking at a path may end in: no permission, a name that is none, links in a circle."""


def volumes_called(folder: Path, stem: str) -> list[Path]:
    """Files of a volume in a folder with this name and any format's ending, or a series' folder.

    Links to nothing are among them.

    Raises:
        OSError: the folder cannot be looked into.
    """
    names = [*(stem + suffix for suffix in reversed(SUFFIXES)), stem]
    found = [folder / name for name in names if lies_there(folder / name)]
    return [path for path in found if path.name != stem or path.is_dir()]


def stem_of_images(name: str) -> str:
    """A file's name without its ending, where it is a volume or an archive; else empty."""
    endings = [ending for ending in (*SUFFIXES, *_ARCHIVES) if name.lower().endswith(ending)]
    return name[: -len(max(endings, key=len))] if endings else ""


def lies_there(path: Path) -> bool:
    """Whether something is called so, be it a link to nothing (OSError: nobody may look)."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def not_fetched(paths: Iterable[Path]) -> str:
    """What is wrong with files that are links to nothing; empty where none is.

    Raises:
        OSError: one cannot be looked at.
    """
    gone = [path.name for path in paths if not path.exists()]
    if not gone:
        return ""
    return f"its images are links to files that are not there: {some(gone)}"


FETCH: Final = (
    "Fetch them (`git annex get`, `datalad get`), mount what they point to, or take the patient "
    "out."
)
"""What to do about links to nothing."""


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


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
        remedy: what to do about the problem; empty where a choice among files is asked for.
        note: what else was seen, where a channel is missing.
    """

    id: str
    subject: str
    channels: Mapping[str, Path]
    mask: Path | None
    problem: str = ""
    remedy: str = ""
    note: str = ""

    @classmethod
    def unseen(cls, name: str, subject: str, error: Exception) -> Patient:
        """A patient whose files cannot be looked at: of an OSError, or a path that is none."""
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        file = getattr(error, "filename", None)
        named = f" ('{Path(os.fsdecode(file)).name[:_LONGEST_NAME]}')" if file else ""
        return cls(
            name,
            subject,
            {},
            None,
            problem=f"its files cannot be looked at: {reason[:_LONGEST_NAME]}{named}",
            remedy="Let the user that runs this read them, mend the path, or take the patient out.",
        )

    @classmethod
    def without_folder(cls, name: str, subject: str, files: Sequence[str]) -> Patient:
        """A patient of whom there are files, or an archive, beside the folders of the others."""
        return cls(
            name,
            subject,
            {},
            None,
            problem=f"it has no folder; beside those of the others lies {some(files)}",
            remedy="Put its files into a folder as the others have one (unpack the archive), or "
            "take it out.",
        )

    def with_channels(self, names: Iterable[str]) -> Patient:
        """The same examination with these channels alone, as far as it has them."""
        kept = {name: self.channels[name] for name in names if name in self.channels}
        return replace(self, channels=kept)


def cannot_list(root: Path, error: OSError) -> DataError:
    """The error of a data folder that cannot be looked into."""
    return DataError(
        "cannot list the patients",
        where=str(root),
        seen=error.strerror or type(error).__name__,
        remedy="Correct data.root, mount the folder, or let the user that runs this read it.",
    )


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
