"""Notices of withdrawal: a site has withdrawn, and these releases were made with it.

The coordinator signs a notice with the release key. It says nothing about patients. A release
stays what was signed: whoever has it decides, with the notice, whether to go on using it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from pydantic import Field

from lift.config.base import VERSION, Settings
from lift.config.plan import Digest, Name
from lift.errors import DataError, LiftError
from lift.release.certificate import Signer, signer_or_problem
from lift.release.folder import Finding, printable, read_plain
from lift.release.manifest import strict_json

_LARGEST: Final = 1_000_000


class Notice(Settings):
    """What the release key signs."""

    format_version: Annotated[Literal[1], VERSION] = 1
    kind: Literal["withdrawal-notice"] = "withdrawal-notice"
    """The same key signs manifests: neither can be taken for the other."""
    federation: Name
    site: Name
    made: Annotated[str, Field(max_length=40)]
    """UTC, ISO 8601."""
    reason: Annotated[str, Field(max_length=400, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    """One sentence of the coordinator, which everybody may read."""
    releases: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=10_000)]
    """SHA-256 of `manifest.json` of each release that was made with the site."""


class SignedNotice(Settings):
    """The content of a notice's file."""

    notice: Notice
    certificate: Annotated[str, Field(max_length=10_000)]
    """Of the release key, PEM."""
    signature: Annotated[str, Field(max_length=1000)]
    """Base64 of ECDSA with SHA-384, DER, over the notice's canonical JSON."""


@dataclass(frozen=True)
class GivenNotice:
    """A notice whose signature holds, and which names the release."""

    file: str
    site: str
    made: str
    reason: str


def check_notices(
    folder: Path, manifest_sha256: str, *, authority: x509.Certificate, now: datetime
) -> tuple[list[GivenNotice], list[Finding]]:
    """Return the notices that name a release, and the faults of those that nobody signed.

    Args:
        folder: of notices, each a file `NAME.json`.
        manifest_sha256: of the release; empty finds faults alone.
        authority: certificate of the federation's authority.
        now: must lie within the time of the release key's certificate.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(
            "there are no notices",
            where=str(folder),
            seen="no such folder",
            remedy="Give the folder with the notices that you received, or leave --notices out.",
        )
    given, found = [], []
    for path in sorted(folder.glob("*.json")):
        name = printable(path.name)
        try:
            signed = SignedNotice.from_data(strict_json(read_plain(path, _LARGEST), name), name)
            problem = _problem(signed, authority, now)
        except (OSError, LiftError) as error:
            seen = error.seen if isinstance(error, LiftError) else str(error.strerror)
            problem = printable("; ".join(seen.splitlines()))
        if problem:
            found.append(Finding(name, "wrong notice", problem))
        elif manifest_sha256 in signed.notice.releases:
            notice = signed.notice
            given.append(
                GivenNotice(name, notice.site, printable(notice.made), printable(notice.reason))
            )
    return given, found


def _problem(signed: SignedNotice, authority: x509.Certificate, now: datetime) -> str:
    """What is wrong with a notice; empty where nothing is."""
    try:
        signature = base64.b64decode(signed.signature, validate=True)
    except binascii.Error:
        return "its signature is no base64"
    found = signer_or_problem(
        signed.notice.canonical_json().encode(),
        signature,
        signed.certificate.encode(),
        authority,
        now,
    )
    if isinstance(found, Signer):
        return ""
    if found.problem == "wrong key":
        return "the signature does not fit: the file was changed, or another key signed"
    return f"{found.problem}: {found.detail}"
