"""Examinations in the official folder of a benchmark, and what is wrong with another folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from lift.cohort.patients import stem_of_images, volumes_called
from lift.config.phantom import MR_CHANNELS
from lift.errors import DataError

Benchmark = Literal["brats", "synthrad"]
CHANNELS: Final[Mapping[Benchmark, tuple[str, ...]]] = {
    "brats": MR_CHANNELS,
    "synthrad": ("mr", "ct"),
}
REGIONS: Final = {
    "B": "brain",
    "P": "pelvis",
    "AB": "abdomen",
    "HN": "head-neck",
    "TH": "thorax",
}
"""Letters in the ids of SynthRAD2023 (one) and SynthRAD2025 (two) -> region."""
NAMES: Final[Mapping[Benchmark, re.Pattern[str]]] = {
    "brats": re.compile(r"(?P<person>BraTS-[A-Za-z]+-\d+)-\d{3}"),
    "synthrad": re.compile(r"(?P<task>[12])(?P<region>B|P|AB|HN|TH)(?P<centre>[A-E])\d{3}"),
}
"""What the folder of an examination is called."""
TREES: Final[Mapping[Benchmark, str]] = {
    "brats": "DATA/.../BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz, -t1c, -t2w, -t2f",
    "synthrad": "DATA/.../Task1/brain/1BA001/mr.nii.gz, ct.nii.gz, mask.nii.gz (SynthRAD2023), or "
    "DATA/.../Task1/AB/1ABA005/mr.mha, ct.mha, mask.mha (SynthRAD2025)",
}
"""An example of the expected tree."""
_TITLES: Final[Mapping[Benchmark, str]] = {"brats": "BraTS 2023", "synthrad": "SynthRAD, Task 1"}
_OTHER: Final[Mapping[Benchmark, Benchmark]] = {"brats": "synthrad", "synthrad": "brats"}
_ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
_DEEPEST: Final = 6
_MOST_FOLDERS: Final = 200_000
_SHOWN: Final = 5
_MASK: Final = "mask"
_MR_TO_CT: Final = "1"
_OLD_BRATS: Final = re.compile(r"BraTS\d*_")


@dataclass(frozen=True)
class Examination:
    """One examination with all channels of the benchmark.

    Attributes:
        id: the name of its folder.
        person: whose it is: `BraTS-GLI-00000-000` and `-001` are one person's.
        centre: letter of the contributing centre; empty where the name does not tell it.
        region: part of the body; empty for BraTS.
        channels: channel -> file.
        mask: the file `mask.*`, or None.
    """

    id: str
    person: str
    centre: str
    region: str
    channels: Mapping[str, Path]
    mask: Path | None


@dataclass
class _Seen:
    """What lies in a folder, for the explanation of a wrong one."""

    folders: dict[str, list[Path]] = field(default_factory=dict)
    others: int = 0
    cone_beam: int = 0
    empty: int = 0
    old_names: int = 0
    archives: list[str] = field(default_factory=list)
    top: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """The examinations that can be used, sorted by id, and how many lack a file.

    Attributes:
        examinations: all channels are there.
        incomplete: channels that are missing, joined by commas -> examinations.
    """

    examinations: tuple[Examination, ...]
    incomplete: Mapping[str, int]


def find_examinations(root: Path, benchmark: Benchmark, *, region: str | None = None) -> Found:
    """Look for the examinations of a benchmark in its official folder, at any depth up to 6.

    Args:
        root: the unpacked download, or a folder above or below it.
        benchmark: which one.
        region: of SynthRAD: brain, pelvis, abdomen, head-neck or thorax. None: the only one there.

    Raises:
        DataError: the folder holds none, or none with all channels, or one in two places, or
            several regions. It says what was seen, what is needed, and what to do.
    """
    seen = _look(root, benchmark)
    if not seen.folders:
        raise _nothing(root, benchmark, seen)
    twice = [name for name, places in seen.folders.items() if len(places) > 1]
    if twice:
        places = ", ".join(str(path.relative_to(root)) for path in seen.folders[twice[0]][:2])
        raise _wrong(
            root,
            benchmark,
            f"{len(twice)} examinations are there twice, such as {places}",
            "Keep one copy of each (an archive may have been unpacked into itself), or name the "
            "folder of one copy.",
        )
    examinations, lacking = [], Counter[str]()
    for _, (folder,) in sorted(seen.folders.items()):
        one = _examination(folder, benchmark)
        missing = [channel for channel in CHANNELS[benchmark] if channel not in one.channels]
        if missing:
            lacking[", ".join(missing)] += 1
        else:
            examinations.append(one)
    if not examinations:
        raise _incomplete(root, benchmark, lacking)
    regions = Counter(one.region for one in examinations)
    if region is None and len(regions) > 1:
        told = ", ".join(f"{name} ({count})" for name, count in sorted(regions.items()))
        raise _wrong(root, benchmark, f"several regions: {told}", "Name one: REGION=brain.")
    if region is not None:
        examinations = [one for one in examinations if one.region == region]
        if not examinations:
            told = ", ".join(sorted(regions)) or "none"
            raise _wrong(
                root,
                benchmark,
                f"no examination of '{region}'; regions there: {told}",
                "Name one of these, or the folder with the other archive.",
            )
    return Found(tuple(examinations), dict(sorted(lacking.items())))


def _look(root: Path, benchmark: Benchmark) -> _Seen:
    if not root.is_dir():
        raise _wrong(root, benchmark, "there is no such folder", "Correct DATA.")
    seen = _Seen()
    own, other = NAMES[benchmark], NAMES[_OTHER[benchmark]]
    for folder, names in _folders(root):
        if folder == root:
            seen.top = names
        seen.archives += [name for name in names if name.lower().endswith(_ARCHIVES)]
        seen.old_names += any(_OLD_BRATS.match(name) for name in names)
        found = own.fullmatch(folder.name)
        if found is None:
            seen.others += other.fullmatch(folder.name) is not None
        elif found.groupdict().get("task", _MR_TO_CT) != _MR_TO_CT:
            seen.cone_beam += 1
        elif any(stem_of_images(name) for name in names):
            seen.folders.setdefault(folder.name, []).append(folder)
        elif folder.name not in names:
            # an archive that was unpacked into a folder of its own name holds one of that name
            seen.empty += 1
    return seen


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders in order, with the names in each; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise DataError(
            "cannot look into the data folder",
            where=str(root),
            seen=f"{error.strerror}: {Path(os.fsdecode(error.filename or b'')).name}",
            remedy="Let the user that runs this read it.",
        )

    for count, (path, folders, files) in enumerate(os.walk(root, onerror=refuse)):
        folder = Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield folder, sorted([*folders, *(name for name in files if not name.startswith("."))])
        if len(folder.relative_to(root).parts) >= _DEEPEST or count >= _MOST_FOLDERS:
            folders.clear()


def _examination(folder: Path, benchmark: Benchmark) -> Examination:
    name = folder.name
    parts = NAMES[benchmark].fullmatch(name)
    told = {} if parts is None else parts.groupdict()
    prefix = f"{name}-" if benchmark == "brats" else ""
    files = {
        channel: next((path for path in volumes_called(folder, prefix + channel)), None)
        for channel in (*CHANNELS[benchmark], _MASK)
    }
    there = {key: path for key, path in files.items() if path is not None and path.exists()}
    mask = there.pop(_MASK, None)
    return Examination(
        id=name,
        person=told.get("person", name),
        centre=told.get("centre", ""),
        region=REGIONS.get(told.get("region", ""), ""),
        channels=there,
        mask=mask,
    )


def _nothing(root: Path, benchmark: Benchmark, seen: _Seen) -> DataError:
    if seen.others:
        other = _OTHER[benchmark]
        return _wrong(
            root,
            benchmark,
            f"{seen.others} examinations of {_TITLES[other]}",
            f"Use the command of that benchmark: make {other} DATA=...",
        )
    if seen.cone_beam:
        return _wrong(
            root,
            benchmark,
            f"{seen.cone_beam} examinations of Task 2 (cone-beam CT to CT), whose ids begin with 2",
            "This benchmark is MR to CT: name the folder of Task 1, whose ids begin with 1.",
        )
    if seen.empty:
        return _wrong(
            root,
            benchmark,
            f"{seen.empty} folders that are called as examinations are, without an image in them",
            "Finish the download, or unpack the archives in these folders.",
        )
    if seen.archives:
        return _wrong(
            root,
            benchmark,
            f"no examination, but archives: {_some(seen.archives)}",
            "Unpack them (unzip FILE), then name the folder that holds what was in them.",
        )
    if seen.old_names:
        return _wrong(
            root,
            benchmark,
            "files of an earlier BraTS, called BraTS..._t1.nii.gz, _t1ce, _t2, _flair",
            "Download the release of 2023, or use `lift-simulate` with `layout: table`.",
        )
    there = _some(seen.top) if seen.top else "nothing"
    return _wrong(
        root, benchmark, f"no examination; the folder holds {there}", "Name the unpacked download."
    )


def _incomplete(root: Path, benchmark: Benchmark, lacking: Mapping[str, int]) -> DataError:
    told = "; ".join(f"{count} without {channels}" for channels, count in lacking.items())
    remedy = "Download the training part: it has every channel."
    if set(lacking) == {"ct"}:
        remedy = (
            "The CT of the validation and test parts was given out late or not at all: download "
            "the training part of Task 1."
        )
    elif set(lacking) == {", ".join(CHANNELS[benchmark])}:
        remedy = "These folders hold labels or other files alone: download the images as well."
    return _wrong(root, benchmark, f"no examination is complete: {told}", remedy)


def _wrong(root: Path, benchmark: Benchmark, seen: str, remedy: str) -> DataError:
    return DataError(
        f"cannot use this folder as {_TITLES[benchmark]}",
        where=str(root),
        seen=f"{seen}\nneeded: {TREES[benchmark]}",
        remedy=remedy,
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more
