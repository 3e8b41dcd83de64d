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

from lift.cohort.patients import (
    FETCH,
    Patient,
    cannot_list,
    lies_there,
    not_fetched,
    some,
    stem_of_images,
)
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
_PART, _MAGNITUDE = "part", "mag"
_WITHOUT: Final = "without"
_MASK: Final = "mask"


@dataclass(frozen=True)
class _Image:
    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def whose(self) -> str:
        """Subject, and session where there is one, by the file's own name."""
        words = (f"{key}-{self.entities[key]}" for key in ("sub", "ses") if key in self.entities)
        return "_".join(words)


@dataclass(frozen=True)
class _Pattern:
    """Which images are meant: with these entities (`*`: any value), without those."""

    entities: Mapping[str, str]
    without: frozenset[str]
    suffix: str


def list_bids(data: BidsData, channels: Sequence[str]) -> list[Patient]:
    """Every session, or subject without sessions, that has a folder anat; every subject once.

    Two files that both fit a channel make the patient's problem: which one is meant is not for us
    to say. A subject without images is listed without channels.

    Args:
        data: the folder, and what tells the channels.
        channels: names that are asked for.

    Raises:
        DataError: a folder cannot be read, or the files of a channel are not specified.
    """
    patterns = {channel: _pattern(data, channel) for channel in channels}
    if _MASK in data.series:
        patterns[_MASK] = _parsed(data.series[_MASK])
    try:
        subjects = _folders(data.root, "sub-")
        files = sorted(path.name for path in data.root.glob("sub-*") if _is_file(path))
    except OSError as error:
        raise cannot_list(data.root, error) from None
    listed = [patient for subject in subjects for patient in _of_subject(subject, patterns)]
    loose: dict[str, list[str]] = {}
    for name in files:
        if stem := stem_of_images(name):
            loose.setdefault(stem.partition("_")[0], []).append(name)
    known = {patient.subject for patient in listed}
    return listed + [
        Patient.without_folder(subject, subject, names)
        for subject, names in loose.items()
        if subject not in known
    ]


def _of_subject(subject: Path, patterns: Mapping[str, _Pattern]) -> list[Patient]:
    """Each session with anatomical images; never nobody."""
    try:
        sessions = _folders(subject, "ses-")
        if not sessions or lies_there(subject / "anat"):
            # beside sessions too: images that lie in none of them
            sessions = [subject, *sessions]
        there = sorted(path.name for path in subject.iterdir())
    except OSError as error:
        return [Patient.unseen(subject.name, subject.name, error)]
    listed = []
    for session in sessions:
        name = subject.name if session == subject else f"{subject.name}_{session.name}"
        try:
            if lies_there(session / "anat"):
                listed.append(_patient(name, subject.name, session / "anat", patterns))
            else:
                # a session of other images is no examination, one that cannot be looked at is one
                list(session.iterdir())
        except OSError as error:
            listed.append(Patient.unseen(name, subject.name, error))
    nothing = f"it has no folder anat; its folder holds {some(there) or 'nothing'}"
    return listed or [Patient(subject.name, subject.name, {}, None, note=nothing)]


def _patient(name: str, subject: str, folder: Path, patterns: Mapping[str, _Pattern]) -> Patient:
    names = sorted(path.name for path in folder.iterdir())
    # named after another subject or session they may be of another
    images = [one for one in _images(folder, names) if f"{name}_".startswith(f"{one.whose}_")]
    fitting = {
        channel: [image.path for image in images if _fits(image, pattern)]
        for channel, pattern in patterns.items()
    }
    several = [
        f"{channel} may be {' or '.join(path.name for path in paths)}"
        for channel, paths in fitting.items()
        if len(paths) > 1
    ]
    chosen = {channel: paths[0] for channel, paths in fitting.items() if len(paths) == 1}
    gone = "" if several else not_fetched(chosen.values())
    mask = chosen.pop(_MASK, None)
    return Patient(
        name,
        subject,
        chosen,
        mask,
        problem="; ".join(several) or gone,
        remedy=FETCH if gone else "",
        note=f"its folder anat holds {some(names) or 'nothing'}",
    )


def _fits(image: _Image, pattern: _Pattern) -> bool:
    has, wanted = image.entities, pattern.entities
    if image.suffix != pattern.suffix or not pattern.without.isdisjoint(has):
        return False
    # contrast agent, and another part than magnitude, are meant only where they are named
    if (_CONTRAST in has and _CONTRAST not in wanted) or (
        has.get(_PART, _MAGNITUDE) != _MAGNITUDE and _PART not in wanted
    ):
        return False
    return all(key in has and value in {"*", has[key]} for key, value in wanted.items())


def _pattern(data: BidsData, channel: str) -> _Pattern:
    text = data.series.get(channel) or DEFAULT_SERIES.get(channel)
    if text is None:
        raise DataError(
            "cannot list the patients",
            where="data.series",
            seen=f"nothing says which BIDS files the channel '{channel}' is",
            remedy=f"Add it: `series: {{{channel}: T2star}}`, for instance.",
        )
    return _parsed(text)


def _parsed(text: str) -> _Pattern:
    *words, suffix = text.split("_")
    entities = [word.partition("-")[::2] for word in words]
    return _Pattern(
        {key: value for key, value in entities if key != _WITHOUT},
        frozenset(value for key, value in entities if key == _WITHOUT),
        suffix,
    )


def _images(folder: Path, names: Sequence[str]) -> list[_Image]:
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        # a link to nothing is an image that was not fetched
        if match and not (folder / name).is_dir():
            words = (word.partition("-") for word in match["entities"].split("_")[:-1])
            entities = {key: value for key, _, value in words}
            found.append(_Image(folder / name, entities, match["suffix"]))
    return found


def _folders(root: Path, prefix: str) -> list[Path]:
    """What is called so and is no file (OSError: the folder cannot be read)."""
    return sorted(
        path for path in root.iterdir() if path.name.startswith(prefix) and not _is_file(path)
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False
