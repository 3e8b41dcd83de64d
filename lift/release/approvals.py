"""Approvals: releases that hospitals sign with their own keys after a review.

An approval holds the manifest's digest, so it is of every byte of the release. The manifest does
not list approvals: they come later, one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from lift.config.base import Settings
from lift.config.plan import Digest, Name
from lift.errors import ConfigError, LiftError
from lift.files import write_json
from lift.keys import key_fingerprint, public_text, sign_text, signature_fits
from lift.release.folder import Finding, printable, read_plain
from lift.release.manifest import APPROVALS, Manifest, strict_json

_LARGEST: Final = 100_000
_LARGEST_ROSTER: Final = 10_000_000


class Approval(Settings):
    """What a site signs."""

    format_version: Literal[1] = 1
    kind: Literal["release-approval"] = "release-approval"
    """The site's key signs audits too: neither can be taken for the other."""
    federation: Name
    site: Name
    manifest_sha256: Digest
    """SHA-256 of `manifest.json`."""
    made: Annotated[str, Field(max_length=40)]
    """UTC, ISO 8601."""


class SignedApproval(Settings):
    """The content of `approvals/SITE.json`."""

    approval: Approval
    public_key: Annotated[str, Field(max_length=1000)]
    """OpenSSH text of the site's key; it counts only where it is the key that is known."""
    signature: Annotated[str, Field(max_length=1000)]
    """Base64 of ECDSA with SHA-384, DER, over the approval's canonical JSON."""


@dataclass(frozen=True)
class GivenApproval:
    """An approval that holds."""

    site: str
    made: str
    fingerprint: str
    """Of the site's key, as `ssh-keygen -l` writes it."""


def write_approval(
    folder: Path,
    manifest: Manifest,
    manifest_sha256: str,
    site: str,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> Path:
    """Write a site's approval into the release folder, in place of an older one; its path."""
    approval = Approval(
        federation=manifest.federation,
        site=site,
        manifest_sha256=manifest_sha256,
        made=now.astimezone(UTC).isoformat(timespec="seconds"),
    )
    signed = SignedApproval(
        approval=approval,
        public_key=public_text(key.public_key()).decode(),
        signature=sign_text(key, approval.canonical_json().encode()),
    )
    path = folder / APPROVALS / f"{site}.json"
    write_json(path, signed.model_dump(mode="json"))
    return path


def check_approvals(
    folder: Path, manifest: Manifest, manifest_sha256: str, keys: Mapping[str, str]
) -> tuple[list[GivenApproval], list[Finding]]:
    """Return the valid approvals, and the faults of the others, both by site.

    Args:
        folder: of the release.
        manifest: of the release.
        manifest_sha256: SHA-256 of its file.
        keys: SITE -> OpenSSH text of its key, by the signed manifest or by a roster.
    """
    given, found = [], []
    for path in sorted((folder / APPROVALS).glob("*.json")):
        name = printable(f"{APPROVALS}/{path.name}")
        try:
            data = strict_json(read_plain(path, _LARGEST), name)
            signed = SignedApproval.from_data(data, name)
        except (OSError, LiftError) as error:
            seen = error.seen if isinstance(error, LiftError) else str(error.strerror)
            found.append(Finding(name, "wrong approval", printable("; ".join(seen.splitlines()))))
            continue
        problem = _problem(signed, path.stem, manifest, manifest_sha256, keys)
        if problem is not None:
            found.append(Finding(name, "wrong approval", problem))
            continue
        approval = signed.approval
        given.append(
            GivenApproval(
                approval.site, printable(approval.made), key_fingerprint(signed.public_key)
            )
        )
    return given, found


def read_roster_keys(path: Path) -> dict[str, str]:
    """SITE -> public key of a coordinator's `sites.json`, removed sites too.

    Raises:
        ConfigError: it is missing, or something else.
    """
    try:
        data = strict_json(read_plain(path, _LARGEST_ROSTER), str(path))
        if not isinstance(data, Mapping):
            raise TypeError
        return {str(site): str(entry["public_key"]) for site, entry in data["sites"].items()}
    except (OSError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ConfigError(
            "cannot read the roster",
            where=str(path),
            seen=(error.strerror or "not readable")
            if isinstance(error, OSError)
            else "it is no roster",
            remedy="Give sites.json of the coordinator's folder.",
        ) from None


def _problem(
    signed: SignedApproval,
    stem: str,
    manifest: Manifest,
    manifest_sha256: str,
    keys: Mapping[str, str],
) -> str | None:
    approval = signed.approval
    if approval.site != stem:
        return f"it is of site '{approval.site}'"
    if (approval.federation, approval.manifest_sha256) != (manifest.federation, manifest_sha256):
        return "it is of another release"
    known = keys.get(approval.site)
    if known is None:
        return f"no key of a site '{approval.site}' is known"
    if known.split()[:2] != signed.public_key.split()[:2]:
        return f"it is signed with another key than that of site '{approval.site}'"
    if not signature_fits(known, signed.signature, approval.canonical_json().encode()):
        return "the signature does not fit: the file was changed, or another key signed"
    return None
