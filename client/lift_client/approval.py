"""`lift-client approve-release`: sign a release as reviewed by this hospital."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from lift.config.kit import CA_FILE
from lift.config.site import SiteConfig
from lift.errors import PolicyError
from lift.keys import key_fingerprint, public_text, read_key
from lift.release.approvals import write_approval
from lift.release.certificate import read_authority
from lift.release.check import check_release, refuse
from lift.release.folder import printable
from lift_client.enrolment import read_kit


def approve(config: SiteConfig, folder: Path, now: datetime) -> Path:
    """Add this site's approval to a signed release, and return the path of the file.

    Args:
        config: the site's settings, paths from their folder.
        folder: of the release.
        now: the present time.

    Raises:
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
    return write_approval(folder, manifest, checked.manifest_sha256, config.name, key, now)
