"""Verification of a release folder, and the refusal of mixers from a changed one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from lift.errors import ConfigError, DataError, ReleaseError
from lift.release.approvals import GivenApproval, check_approvals
from lift.release.certificate import Signer, check_signature, read_authority
from lift.release.folder import Finding, compare, printable, read_plain
from lift.release.manifest import (
    CERTIFICATE_FILE,
    LARGEST_MANIFEST,
    MANIFEST_FILE,
    RECORD_FILE,
    SIGNATURE_FILE,
    TEXT_FILE,
    Manifest,
    parse_manifest,
)

MIXER_FILE: Final = "mixer.safetensors"
_MARKS: Final = (MANIFEST_FILE, SIGNATURE_FILE, CERTIFICATE_FILE, RECORD_FILE, TEXT_FILE)
_SMALL: Final = 100_000
_MOST_SHOWN: Final = 10


@dataclass(frozen=True)
class Checked:
    """The result of the check of a release folder."""

    manifest: Manifest | None
    """None where it cannot be read."""
    manifest_sha256: str
    """Empty where it cannot be read."""
    signer: Signer | None
    """None if it is not signed, or the signature was not checked."""
    approvals: tuple[GivenApproval, ...]
    """Those that hold; none where the release is not signed by its federation."""
    findings: tuple[Finding, ...]
    """What is wrong; empty when everything is as it was signed."""


def check_release(
    folder: Path,
    *,
    authority: x509.Certificate | None,
    now: datetime,
    keys: Mapping[str, str] | None = None,
) -> Checked:
    """Check every file of a release against its manifest, and the manifest's signature.

    Args:
        folder: of the release.
        authority: certificate of the federation's authority; None looks at the files alone.
        now: must lie within the time of the release key's certificate.
        keys: SITE -> public key, for the approvals; None takes those of the signed manifest.

    Raises:
        DataError: there is no such folder.
        VersionMismatchError: the manifest comes from another version.
    """
    if not folder.is_dir():
        raise DataError(
            "there is no release",
            where=str(folder),
            seen="no such folder",
            remedy="Give the folder that `lift-server export` made.",
        )
    try:
        content = read_plain(folder / MANIFEST_FILE, LARGEST_MANIFEST)
        manifest = parse_manifest(content, MANIFEST_FILE)
    except FileNotFoundError:
        return _without(Finding(MANIFEST_FILE, "missing", "nothing says what belongs here"))
    except OSError as error:
        return _without(Finding(MANIFEST_FILE, "unreadable", str(error.strerror)))
    except ConfigError as error:
        return _without(
            Finding(MANIFEST_FILE, "not a manifest", printable("; ".join(error.seen.splitlines())))
        )
    digest = hashlib.sha256(content).hexdigest()
    findings = compare(folder, manifest)
    if authority is None:
        return Checked(manifest, digest, None, (), tuple(findings))
    signer, wrong = check_signature(
        content,
        _optional(folder / SIGNATURE_FILE),
        _optional(folder / CERTIFICATE_FILE),
        authority,
        now,
    )
    approvals: list[GivenApproval] = []
    if signer is not None:
        # without a signer the keys in the manifest are nobody's word
        known = manifest.sites if keys is None else keys
        approvals, unfit = check_approvals(folder, manifest, digest, known)
        wrong += unfit
    named = {finding.file for finding in findings}
    findings += [finding for finding in wrong if finding.file not in named]
    return Checked(manifest, digest, signer, tuple(approvals), tuple(findings))


def mixer_file(path: Path, *, ca: Path | None = None, now: datetime | None = None) -> Path:
    """The file of a mixer: `path`, or `mixer.safetensors` of the folder `path`.

    Where it lies in a release folder, every file there must fit the manifest.

    Args:
        path: a file, or a folder of a run or a release.
        ca: the authority's certificate: with it, the mixer must come from a release that a
            release key of this authority signed.
        now: as in :func:`check_release`.

    Raises:
        ReleaseError: the release does not fit its manifest, or is not one.
        ConfigError: the authority's certificate cannot be read.
        VersionMismatchError: the manifest comes from another version.
    """
    file = path / MIXER_FILE if path.is_dir() else path
    authority = None if ca is None else read_authority(ca)
    # what a link leads to may lie in a release, and so may the link
    folders = {file.parent, file.resolve().parent}
    for folder in sorted(folders):
        if authority is None and not is_release(folder):
            continue
        checked = check_release(folder, authority=authority, now=now or datetime.now(UTC))
        refuse(folder, checked, "Nothing was computed.")
        listed = {} if checked.manifest is None else checked.manifest.files
        if authority is not None and file.name not in listed:
            refuse(folder, _without(Finding(file.name, "extra", "not in the manifest")), "")
    return file


def check_beside(path: Path) -> None:
    """Raise ReleaseError if `path` is in a release folder that does not match its manifest.

    Raises:
        ReleaseError: it does.
    """
    mixer_file(path if path.is_file() else path / MIXER_FILE)


def is_release(folder: Path) -> bool:
    """Whether a file of the folder says that it is a release, be it without its manifest."""
    return any(os.path.lexists(folder / name) for name in _MARKS)


def refuse(folder: Path, checked: Checked, unharmed: str) -> None:
    """Raise ReleaseError if there is any finding.

    Args:
        folder: of the release.
        checked: what was found.
        unharmed: first sentence of the remedy: what was not done.

    Raises:
        ReleaseError: with the first findings.
    """
    if not checked.findings:
        return
    lines = [
        f"{finding.file}: {finding.problem}" + (f" ({finding.detail})" if finding.detail else "")
        for finding in checked.findings[:_MOST_SHOWN]
    ]
    if len(checked.findings) > _MOST_SHOWN:
        lines.append(f"and {len(checked.findings) - _MOST_SHOWN} more")
    raise ReleaseError(
        "the release is not what was signed",
        where=str(folder),
        seen="\n".join(lines),
        remedy=f"{unharmed} Keep the folder as it is, and get the release again from the "
        "coordinator; `lift verify-release` tells all that is wrong.".strip(),
    )


def _without(finding: Finding) -> Checked:
    return Checked(None, "", None, (), (finding,))


def _optional(path: Path) -> bytes | None:
    """A small file's bytes; None where there is no plain one (`compare` names what is there)."""
    try:
        return read_plain(path, _SMALL)
    except OSError:
        return None
