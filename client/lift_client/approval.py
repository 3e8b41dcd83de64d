"""`lift-client approve-release`: sign a release as reviewed by this hospital.

The site keeps a list of what it approved, so that a patient's withdrawal can name the releases.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from lift.config.base import VERSION, Settings
from lift.config.kit import CA_FILE
from lift.config.plan import Digest, Name
from lift.config.site import SiteConfig
from lift.errors import PolicyError, RecordError
from lift.files import write_json
from lift.keys import key_fingerprint, public_text, read_key
from lift.release.approvals import write_approval
from lift.release.certificate import read_authority
from lift.release.check import check_release, refuse
from lift.release.folder import printable, read_plain
from lift.release.manifest import RECORD_FILE
from lift.strict_json import parse_json, read_model
from lift_client.enrolment import read_kit

APPROVED_FILE: Final = "approved-releases.json"
_LARGEST_RECORD: Final = 100_000_000
_DIGEST: Final = TypeAdapter(Digest)


class ApprovedRelease(Settings):
    """One release that the site approved."""

    manifest_sha256: Digest
    """SHA-256 of `manifest.json`."""
    federation: Name
    made: Annotated[str, Field(max_length=40)]
    """When the release was made: UTC, ISO 8601."""
    run: Digest | Literal[""]
    """Digest of the plan; empty where the release does not say."""


class ApprovedReleases(Settings):
    """The content of `approved-releases.json`."""

    format_version: Annotated[Literal[1], VERSION] = 1
    releases: tuple[ApprovedRelease, ...] = ()


def approved_releases(work: Path) -> tuple[ApprovedRelease, ...]:
    """The releases that were approved with this work folder, in the order of their approval.

    Raises:
        RecordError: the list is damaged.
    """
    path = work / APPROVED_FILE

    def refuse(seen: str) -> RecordError:
        return RecordError(
            "cannot read which releases the site has approved",
            where=str(path),
            seen=seen,
            remedy="Nothing was changed. Restore it from a backup; without one remove it, and "
            "approve the releases again.",
        )

    found = read_model(ApprovedReleases, path, refuse, damaged="it is no such list")
    return () if found is None else found.releases


def approve(config: SiteConfig, folder: Path, now: datetime) -> Path:
    """Add this site's approval to a signed release, and return the path of the file.

    Args:
        config: the site's settings, paths from their folder.
        folder: of the release.
        now: the present time.

    Raises:
        RecordError: the site's list of approved releases is damaged.
        ReleaseError: the release is not what was signed. Another site's bad approval counts too.
        PolicyError: the release is of another federation, or knows this site by another key.
        ConfigError: kit or key cannot be used.
        DataError: there is no such folder.
    """
    kit = read_kit(config.kit, site=config.name)
    key = read_key(config.key)
    authority = read_authority(config.kit / CA_FILE)
    checked = check_release(folder, authority=authority, now=now)
    own = f"approvals/{config.name}.json"
    # what this site signed of an earlier release in this folder is replaced
    others = tuple(finding for finding in checked.findings if finding.file != own)
    refuse(folder, replace(checked, findings=others), "Nothing was signed.")
    manifest = checked.manifest
    public_key = public_text(key.public_key()).decode()
    known = "" if manifest is None else manifest.sites.get(config.name, "")
    if manifest is None or manifest.federation != kit.federation:
        named = "" if manifest is None else manifest.federation
        raise PolicyError(
            "the release belongs to another federation",
            where=str(folder),
            seen=f"'{printable(named)}'; the kit is of '{kit.federation}'",
            remedy="Nothing was signed. Ask the coordinator which release is meant.",
        )
    if known.split()[:2] != public_key.split()[:2]:
        raise PolicyError(
            "the approval of this site could not be verified",
            where=str(folder),
            seen=f"the release names no site '{config.name}' with the key "
            f"{key_fingerprint(public_key)}",
            remedy="Nothing was signed. Ask the coordinator whether this site is admitted with "
            "this key, and for a new export.",
        )
    release = ApprovedRelease(
        manifest_sha256=checked.manifest_sha256,
        federation=manifest.federation,
        made=manifest.made,
        run=_run_of(folder),
    )
    _remember(config.folder, release)
    return write_approval(folder, manifest, checked.manifest_sha256, config.name, key, now)


def _remember(work: Path, release: ApprovedRelease) -> None:
    known = approved_releases(work)
    if release not in known:
        releases = ApprovedReleases(releases=(*known, release))
        write_json(work / APPROVED_FILE, releases.model_dump(mode="json"))


def _run_of(folder: Path) -> Digest | Literal[""]:
    """The plan's digest by the release's record, which fits the manifest."""
    try:
        record = parse_json(read_plain(folder / RECORD_FILE, _LARGEST_RECORD))
        return _DIGEST.validate_python(record["plan_digest"])
    except (OSError, KeyError, TypeError, ValueError):
        return ""
