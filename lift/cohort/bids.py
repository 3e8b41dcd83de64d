"""Patients in a BIDS folder (Brain Imaging Data Structure 1.10): anatomical images, raw data.

Subject, session, entities and suffix are read off the files' names; nothing else of the standard
is asked for, and `derivatives`, `sourcedata` and `code` are left alone. Each session of a subject
is one volume set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lift.cohort.patients import Patient
from lift.config.cohort import BidsData
from lift.errors import DataError

DEFAULT_SERIES: Final[Mapping[str, str]] = {
    "t1n": "T1w",
    "t1c": "ce-*_T1w",
    "t2w": "T2w",
    "t2f": "FLAIR",
    "mr": "T1w",
    "ct": "CT",
}
_NAME: Final = re.compile(
    r"(?P<entities>(?:[A-Za-z0-9]+-[A-Za-z0-9]+_)+)(?P<suffix>[A-Za-z0-9]+)\.nii(?:\.gz)?"
)
_CONTRAST: Final = "ce"
_MASK: Final = "mask"


@dataclass(frozen=True)
class _Image:
    path: Path
    entities: Mapping[str, str]
    suffix: str


def list_bids(data: BidsData, channels: Sequence[str]) -> list[Patient]:
    """Every session, or subject without sessions, that has an anatomical image.

    Two files that both fit a channel make the patient's problem: which one is meant is not for us
    to say.

    Args:
        data: the folder, and what tells the channels.
        channels: names that are asked for.

    Raises:
        DataError: a folder cannot be read, or the files of a channel are not specified.
    """
    patterns = {channel: _pattern(data, channel) for channel in channels}
    if _MASK in data.series:
        patterns[_MASK] = _parsed(data.series[_MASK])
    found = []
    for subject in _folders(data.root, "sub-"):
        for session in _folders(subject, "ses-") or [subject]:
            images = _images(session / "anat")
            if not images:
                continue
            name = subject.name if session == subject else f"{subject.name}_{session.name}"
            found.append(_patient(name, subject.name, images, patterns))
    return found


def _patient(
    name: str,
    subject: str,
    images: Sequence[_Image],
    patterns: Mapping[str, tuple[Mapping[str, str], str]],
) -> Patient:
    fitting = {
        channel: [image.path for image in images if _fits(image, *pattern)]
        for channel, pattern in patterns.items()
    }
    several = [
        f"{channel} may be {' or '.join(path.name for path in paths)}"
        for channel, paths in fitting.items()
        if len(paths) > 1
    ]
    chosen = {channel: paths[0] for channel, paths in fitting.items() if len(paths) == 1}
    mask = chosen.pop(_MASK, None)
    return Patient(name, subject, chosen, mask, "; ".join(several))


def _fits(image: _Image, entities: Mapping[str, str], suffix: str) -> bool:
    if image.suffix != suffix or (_CONTRAST in image.entities and _CONTRAST not in entities):
        return False
    return all(
        key in image.entities and value in {"*", image.entities[key]}
        for key, value in entities.items()
    )


def _pattern(data: BidsData, channel: str) -> tuple[Mapping[str, str], str]:
    text = data.series.get(channel) or DEFAULT_SERIES.get(channel)
    if text is None:
        raise DataError(
            "cannot list the patients",
            where="data.series",
            seen=f"nothing says which BIDS files the channel '{channel}' is",
            remedy=f"Add it: `series: {{{channel}: T2star}}`, for instance.",
        )
    return _parsed(text)


def _parsed(text: str) -> tuple[Mapping[str, str], str]:
    *entities, suffix = text.split("_")
    return {key: value for key, _, value in (e.partition("-") for e in entities)}, suffix


def _images(folder: Path) -> list[_Image]:
    if not folder.is_dir():
        return []
    found = []
    for path in _listed(folder):
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            entities, _ = _parsed(match["entities"] + match["suffix"])
            found.append(_Image(path, entities, match["suffix"]))
    return found


def _folders(root: Path, prefix: str) -> list[Path]:
    return [path for path in _listed(root) if path.name.startswith(prefix) and path.is_dir()]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            "cannot list the patients",
            where=str(folder),
            seen=error.strerror or type(error).__name__,
            remedy="Let the user that runs this read the folder.",
        ) from None
