"""`lift verify-release`: check a release that was received. Does not need torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from lift.errors import EXIT_CODES
from lift.release.approvals import read_roster_keys
from lift.release.certificate import read_authority
from lift.release.check import Checked, check_release
from lift.release.folder import Finding
from lift.release.notices import GivenNotice, check_notices


def verify_release(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the release.")],
    ca: Annotated[
        Path,
        typer.Option(
            help="ca.pem of the federation, from the coordinator or the kit. Never take it from "
            "the release itself."
        ),
    ],
    roster: Annotated[
        Path | None,
        typer.Option(
            help="sites.json of the coordinator. Check approvals with its keys instead of those in "
            "the signed manifest."
        ),
    ] = None,
    notices: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of notices (*.json) from the coordinator. Show which of them name this "
            "release: a site, or a patient of it, has withdrawn.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Verify that a release is exactly what the release key of the federation signed.

    Prints one line for each file, for the signature and for each approval by a hospital. Exit code
    9 if anything is missing, added, changed, or not signed by that key. A notice that names the
    release is a warning, and changes no exit code; a notice that this key did not sign is refused.
    """
    authority, now = read_authority(ca), datetime.now(UTC)
    checked = check_release(
        folder,
        authority=authority,
        now=now,
        keys=None if roster is None else read_roster_keys(roster),
    )
    given: list[GivenNotice] = []
    refused: list[Finding] = []
    if notices is not None:
        given, refused = check_notices(
            notices, checked.manifest_sha256, authority=authority, now=now
        )
    code = EXIT_CODES["record" if checked.findings or refused else "done"].number
    if as_json:
        told = {
            "notices": [asdict(one) for one in given],
            "refused_notices": [asdict(one) for one in refused],
        }
        sys.stdout.write(json.dumps(_data(checked, code) | told, indent=2) + "\n")
    else:
        lines = [*_lines(checked), *_notice_lines(given, refused)]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    if code and not checked.findings:
        sys.stderr.write(
            "next: do not rely on the refused notices; get them again from the coordinator, and "
            "ask whether they are genuine\n"
        )
    elif code:
        sys.stderr.write(
            f"next: do not use '{folder}', leave it unchanged, and get the release again from "
            "the coordinator\n"
        )
    else:
        sys.stderr.write("next: compare the fingerprint of the release key once, by telephone\n")
    return code


def _notice_lines(given: Sequence[GivenNotice], refused: Sequence[Finding]) -> list[str]:
    lines = [
        f"WARNING, withdrawn: site '{one.site}', {one.made}, by notice {one.file}"
        + (f": {one.reason}" if one.reason else "")
        for one in given
    ]
    return lines + [f"{one.problem}: {one.file} ({one.detail})" for one in refused]


def _lines(checked: Checked) -> list[str]:
    wrong = {finding.file: finding for finding in checked.findings}
    listed = sorted(checked.manifest.files) if checked.manifest is not None else []
    lines = [f"ok: {name}" for name in listed if name not in wrong]
    for finding in checked.findings:
        detail = f" ({finding.detail})" if finding.detail else ""
        lines.append(f"{finding.problem}: {finding.file}{detail}")
    if checked.signer is not None and checked.manifest is not None:
        ends = f"{checked.signer.valid_until:%Y-%m-%d}"
        lines += [
            f"signed: by '{checked.signer.name}', valid until {ends}, for the federation "
            f"'{checked.manifest.federation}', {checked.manifest.made}",
            f"release key: {checked.signer.fingerprint}",
        ]
    lines += [
        f"approved: {one.site}, {one.made}, key {one.fingerprint}" for one in checked.approvals
    ]
    if checked.findings:
        lines.append(f"NOT the release that was signed: {len(checked.findings)} findings")
    else:
        count = len(checked.approvals)
        lines.append(f"complete: {len(listed)} files, all as signed; approved by {count} sites")
    return lines


def _data(checked: Checked, code: int) -> dict[str, object]:
    manifest, signer = checked.manifest, checked.signer
    return {
        "exit_code": code,
        "whole": not checked.findings,
        "manifest_sha256": checked.manifest_sha256 or None,
        "federation": None if manifest is None else manifest.federation,
        "made": None if manifest is None else manifest.made,
        "files": [] if manifest is None else sorted(manifest.files),
        "signer": None
        if signer is None
        else asdict(signer) | {"valid_until": signer.valid_until.isoformat()},
        "approvals": [asdict(one) for one in checked.approvals],
        "findings": [asdict(finding) for finding in checked.findings],
    }
