"""`lift-server withdraw`: a signed notice of the releases that were made with a site."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from pydantic import ValidationError

from lift.config.server import ServerConfig
from lift.errors import ConfigError, DataError, PolicyError
from lift.files import write_json
from lift.keys import sign_text
from lift.release.check import check_release, refuse
from lift.release.folder import read_plain
from lift.release.manifest import RECORD_FILE
from lift.release.notices import Notice, SignedNotice
from lift.strict_json import parse_json
from lift_server.release.key import ReleaseKey
from lift_server.sites.certificates import pem
from lift_server.sites.roster import Roster

_LARGEST_RECORD: Final = 100_000_000
_BY_SITE: Final = 1
"""Format of records that counted rounds by site."""


@dataclass(frozen=True)
class Noticed:
    """What a notice names.

    Attributes:
        named: folder of each release that was made with the site -> SHA-256 of its manifest.
        others: folders of releases that were made without it.
    """

    named: dict[Path, str]
    others: tuple[Path, ...]


def write_notice(
    config: ServerConfig,
    site: str,
    output: Path,
    key: ReleaseKey,
    *,
    releases: Sequence[Path],
    searched: Path,
    reason: str,
    now: datetime,
) -> Noticed:
    """Write a signed notice that a site has withdrawn, naming the releases made with it.

    Those are the releases whose run counted an update, or the statistics, of the site.

    Args:
        config: the coordinator's settings, paths from its folder.
        site: name in the roster, removed sites too.
        output: file of the notice; it must not exist.
        key: the release key.
        releases: folders to look at; none: all below `searched` and the run's folder.
        searched: the coordinator's folder.
        reason: one sentence, which everybody may read.
        now: date of the notice.

    Raises:
        ConfigError: the site is unknown, the file exists, or the reason is no sentence.
        PolicyError: no release was made with the site, or a given one was not.
        ReleaseError: a release does not fit its manifest.
        DataError: a release's folder is missing, or its record says nothing of sites.
    """
    known = Roster.read(config.sites).sites
    if site not in known:
        raise ConfigError(
            f"no such site: '{site}'",
            where=str(config.sites),
            seen=f"known: {', '.join(sorted(known)) or 'none'}",
            remedy="Nothing was written. Give the site's name in the roster, removed or not.",
        )
    if os.path.lexists(output):
        raise ConfigError(
            "there is such a file already",
            where=str(output),
            seen="a notice is a new file each time",
            remedy="Nothing was written. Choose another name.",
        )
    found = releases or sorted(_below(searched) | _below(config.output))
    digests = {folder: _digest(folder, config.name, now) for folder in found}
    made_with = [folder for folder in found if _was_made_with(folder, site)]
    others = tuple(folder for folder in found if folder not in made_with)
    if not made_with or (releases and others):
        raise _not_of_it(site, others, searched)
    try:
        notice = Notice(
            federation=config.name,
            site=site,
            made=now.astimezone(UTC).isoformat(timespec="seconds"),
            reason=reason,
            releases=tuple(sorted({digests[folder] for folder in made_with})),
        )
    except ValidationError:
        raise ConfigError(
            "cannot write this notice",
            where="--reason",
            seen="the reason is longer than 400 characters, or not one line of text",
            remedy="Nothing was written. Give one sentence; it must not speak of a patient.",
        ) from None
    signed = SignedNotice(
        notice=notice,
        certificate=pem(key.certificate).decode(),
        signature=sign_text(key.key, notice.canonical_json().encode()),
    )
    write_json(output, signed.model_dump(mode="json"))
    return Noticed({folder: digests[folder] for folder in made_with}, others)


def _below(folder: Path) -> set[Path]:
    """Folders with a release's record."""
    return {path.parent.resolve() for path in folder.rglob(RECORD_FILE)}


def _digest(folder: Path, federation: str, now: datetime) -> str:
    checked = check_release(folder, authority=None, now=now)
    refuse(folder, checked, "Nothing was written.")
    if checked.manifest is None or checked.manifest.federation != federation:
        raise PolicyError(
            "the release belongs to another federation",
            where=str(folder),
            seen=f"this one is '{federation}'",
            remedy="Nothing was written. Name the releases of this federation with --release.",
        )
    return checked.manifest_sha256


def _was_made_with(folder: Path, site: str) -> bool:
    try:
        data = parse_json(read_plain(folder / RECORD_FILE, _LARGEST_RECORD))
        record = cast("Mapping[str, Any]", data)
        if record["format_version"] == _BY_SITE:
            rounds = record["rounds"]["by_site"].get(site, {"counted": 0})
            return rounds["counted"] > 0 or any(one["name"] == site for one in record["sites"])
        return site in record["rounds"]["made_with"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            "the release does not say which sites it was made with",
            where=str(folder / RECORD_FILE),
            seen="it is no record of `lift-server export`",
            remedy="Nothing was written. Name the other releases with --release.",
        ) from None


def _not_of_it(site: str, others: Sequence[Path], searched: Path) -> PolicyError:
    looked = ", ".join(map(str, others)) or f"no release below {searched}"
    return PolicyError(
        f"not every release was made with site '{site}'"
        if others
        else "there is no release to name",
        where=str(others[0] if others else searched),
        seen=f"without it: {looked}" if others else looked,
        remedy="Nothing was written. Give the folders of the releases that were made with the "
        "site: --release DIR. Without a release that was handed on no notice is needed.",
    )
