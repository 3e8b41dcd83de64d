"""What a site's work folder holds of one patient, and how it is removed.

Cached features, the place in stored splits, stored answers, reports on images, the hospital's own
report, entries of the log, and unfinished files. Parameters that were trained with the patient are
none of it: they stay.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from lift.cohort.examination import PatientReport
from lift.cohort.layouts import list_patients
from lift.cohort.reading import file_digests
from lift.cohort.split import SPLIT_FILE, Split, read_split, write_split
from lift.cohort.withdrawn import LeftOut
from lift.config.plan import Plan
from lift.config.site import SiteConfig
from lift.errors import DataError
from lift.files import write_atomically
from lift.generator.features import FeatureCache, files_name
from lift.mixer.finished import FINAL_MIXER_FILE
from lift.strict_json import parse_json, parse_model
from lift.tasks.paired.contrast import CURVES_FILE
from lift.tasks.paired.local import OWN_MIXER_FILE
from lift_client.gate.budget import STORED
from lift_client.gate.stored_plan import stored_plan
from lift_client.own.choosing import UNFINISHED
from lift_client.own.report import OUTPUT_FOLDER

_LOGS: Final = "log.txt*"
_HEAD: Final = frozenset({"time", "level", "logger"})
_ENTRY: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S* (\S+ \S+ )?|(?=\{\"time\": )")
Knows = Callable[[str], bool]
"""Whether an examination's name is one of the patient's."""


@dataclass(frozen=True)
class Trace:
    """Something of a patient.

    Attributes:
        what: for the operator.
        remove: takes it away for good.
    """

    what: str
    remove: Callable[[], None]


def traces_of(
    config: SiteConfig, names: frozenset[str], knows: Knows, without: LeftOut
) -> list[Trace]:
    """Everything of a patient in the site's work folder and cache.

    Args:
        config: the site's settings.
        names: of the patient, the examinations and their files, as far as they are known.
        knows: by which examinations of stored lists are found.
        without: who is left out once the patient is withdrawn.
    """
    work = config.folder
    found = [
        *_cached(config, without),
        *(_of_split(path, work, knows) for path in _splits(work)),
        _files("stored answers", sorted((work / STORED).glob("*.safetensors"))),
        _files("reports on images", _image_reports(config.image_reports, names, knows)),
        _folder("the hospital's own report", work / OUTPUT_FOLDER),
        *(_of_log(path, names) for path in sorted(work.glob(_LOGS))),
        _files("unfinished files", sorted(_unfinished(config))),
    ]
    return [trace for trace in found if trace is not None]


def kept_parameters(work: Path) -> list[str]:
    """Files of parameters that may have been trained with a patient, and stay."""
    names = (FINAL_MIXER_FILE, CURVES_FILE, OWN_MIXER_FILE)
    return [name for name in names if (work / name).is_file()]


def image_reports(config: SiteConfig) -> Iterator[PatientReport]:
    """The site's reports on the images of its patients."""
    for path in sorted(config.image_reports.glob("*.json")):
        report = _image_report(path)
        if report is not None:
            yield report


def _cached(config: SiteConfig, without: LeftOut) -> list[Trace]:
    """What the cache holds of files that are of nobody who stays: the patient's, at any time."""
    own = config.cache.folder is None
    cache = FeatureCache(
        config.cache.folder or config.folder / "cache", largest_gb=config.cache.largest_gb
    )
    owner = None if own else config.name
    if not cache.stale((), owner=owner):
        return []
    staying = _files_of_others(config, without)
    stale = cache.stale(staying, owner=owner)
    if not stale:
        return []

    def remove() -> None:
        cache.forget_all_but(staying, owner=owner)

    return [Trace(f"{len(stale)} entries of the cache", remove)]


def _files_of_others(config: SiteConfig, without: LeftOut) -> set[str]:
    """By `files_name`; none where they cannot be told, so that the whole cache is computed anew."""
    plan = last_plan(config.folder)
    if plan is None:
        return set()
    try:
        staying, _ = list_patients(
            config.data, plan.task.channels, one_by_one=True, without=without
        )
        return {files_name(file_digests(one, plan, config.data.root)) for one in staying}
    except DataError:
        return set()


def last_plan(work: Path) -> Plan | None:
    """The plan of the last run; None without one, or where it is damaged."""
    try:
        return stored_plan(work)
    except (OSError, ValueError):
        return None


def _splits(work: Path) -> list[Path]:
    found = (path.relative_to(work) for path in work.rglob(SPLIT_FILE))
    # a folder that a killed program left goes as a whole
    return sorted(path for path in found if not path.parts[0].startswith("."))


def _of_split(name: Path, work: Path, knows: Knows) -> Trace | None:
    path = work / name
    try:
        split = read_split(path)
    except DataError:
        # it is computed anew
        return Trace(f"{name}, which is damaged", path.unlink)
    left = Split(
        *(
            tuple(name for name in part if not knows(name))
            for part in (split.train, split.validation, split.test)
        )
    )
    if left == split:
        return None
    return Trace(f"the place in {name}", partial(write_split, path, left))


def _image_reports(folder: Path, names: frozenset[str], knows: Knows) -> list[Path]:
    found = []
    for path in sorted(folder.glob("*.json")):
        report = _image_report(path)
        if report is None or report.subject in names or knows(report.patient):
            found.append(path)
    return found


def _image_report(path: Path) -> PatientReport | None:
    try:
        return parse_model(PatientReport, path.read_bytes())
    except (OSError, ValueError):
        return None


def _of_log(path: Path, names: frozenset[str]) -> Trace | None:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    # letters and digits go on a name; what joins its parts does not
    spelt = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    named = re.compile(rf"(?<![^\W_])(?:{spelt})(?![^\W_])")
    entries: list[str] = []
    for line in text.splitlines(keepends=True):
        if entries and not _ENTRY.match(line):
            entries[-1] += line
        else:
            entries.append(line)
    kept = [entry for entry in entries if not named.search(_told(entry))]
    if len(kept) == len(entries):
        return None
    content = "".join(kept).encode("utf-8", "surrogateescape")
    removed = len(entries) - len(kept)
    return Trace(f"{removed} entries of {path.name}", partial(write_atomically, path, content))


def _told(entry: str) -> str:
    """What an entry of the log says, without its time: a time of day is no patient."""
    if entry.startswith("{"):
        try:
            line = parse_json(entry.encode("utf-8", "surrogateescape"))
        except ValueError:
            return entry
        # as they were before JSON spelt them
        return "\n".join(str(value) for key, value in line.items() if key not in _HEAD)
    return _ENTRY.sub("", entry, count=1)


def _unfinished(config: SiteConfig) -> Iterator[Path]:
    """What killed programs left: a file or folder beside its final place, or a folder of work."""
    cache = config.cache.folder or config.folder / "cache"
    for path in [*config.folder.glob(f"{UNFINISHED}*"), *config.folder.rglob(".*.part")]:
        # in a folder of its own it may be another site's, who is still writing
        if config.cache.folder is None or not path.is_relative_to(cache):
            yield path


def _files(what: str, paths: Sequence[Path]) -> Trace | None:
    def remove() -> None:
        for path in paths:
            _remove(path)

    return Trace(f"{len(paths)} {what}", remove) if paths else None


def _folder(what: str, path: Path) -> Trace | None:
    return Trace(what, partial(_remove, path)) if path.exists() else None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
