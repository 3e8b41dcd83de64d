"""The release key, which is kept offline and signs manifests of releases.

It is no TLS key. A release is checked years later, when the server's certificate has long ended.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from lift.config.kit import CA_FILE
from lift.errors import ConfigError
from lift.files import write_atomically
from lift.keys import SIGNATURE
from lift.release.certificate import certificate_problem, signer_of
from lift.release.check import check_release, refuse
from lift.release.folder import Finding
from lift.release.manifest import CERTIFICATE_FILE, MANIFEST_FILE, SIGNATURE_FILE
from lift_server.sites.certificates import (
    CA_KEY_FILE,
    make_release_certificate,
    pem,
    private_pem,
    read_certificate,
    read_private_key,
    write_new,
)

RELEASE_KEY_FILE: Final = "release.key"


@dataclass(frozen=True)
class ReleaseKey:
    """A release key with its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate (DER), hexadecimal."""
        return signer_of(self.certificate).fingerprint


def make_release_key(
    certificates: Path, output: Path, federation: str, *, now: datetime | None = None
) -> ReleaseKey:
    """A new key with its certificate in a new folder, for a medium that stays offline.

    The key has mode 0600 from its first moment. The certificate lasts ten years, and no longer
    than the authority.

    Args:
        certificates: the folder of ca.pem and ca.key.
        output: gets `release.key` and `release.pem`; neither may exist.
        federation: name of the federation.
        now: the time at which the certificate is made.

    Raises:
        ConfigError: a file is there already, the authority's files are missing, damaged or no
            pair, or it has ended. Nothing is written in any of these cases.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    made = make_release_certificate(
        read_certificate(certificates / CA_FILE),
        read_private_key(certificates / CA_KEY_FILE),
        key.public_key(),
        federation,
        now or datetime.now(UTC),
    )
    contents = ((CERTIFICATE_FILE, pem(made), 0o644), (RELEASE_KEY_FILE, private_pem(key), 0o600))
    present = [name for name, _, _ in contents if os.path.lexists(output / name)]
    if present:
        raise ConfigError(
            "there is a release key already",
            where=str(output),
            seen=f"it holds {', '.join(present)}",
            remedy="Nothing was changed. Use it, or choose another folder: what it signed stays "
            "valid.",
        )
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name, content, mode in contents:
            write_new(output / name, content, mode)
            written.append(output / name)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return ReleaseKey(key, made)


def read_release_key(folder: Path) -> ReleaseKey:
    """The release key of a folder.

    Raises:
        ConfigError: a file is missing or damaged, the key is open to others, or not that of the
            certificate.
    """
    path = folder / RELEASE_KEY_FILE
    key = read_private_key(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(
            "the release key is open to others",
            where=str(path),
            seen=f"its mode is {mode:04o}; needed: 0600",
            remedy=f"Run: chmod 600 '{path}'. If others could have read it, it is compromised: see "
            "SECURITY.md.",
        )
    certificate = read_certificate(folder / CERTIFICATE_FILE)
    if certificate.public_key() != key.public_key():
        raise ConfigError(
            "key and certificate of the release key do not match",
            where=str(folder),
            seen=f"{CERTIFICATE_FILE} is of another key than {RELEASE_KEY_FILE}",
            remedy="Restore both files from the same backup.",
        )
    return ReleaseKey(key, certificate)


def check_release_key(found: ReleaseKey, certificates: Path, now: datetime) -> None:
    """Raise unless this federation's authority certified the key for releases and it is valid now.

    Raises:
        ConfigError: it is not.
    """
    problem = certificate_problem(found.certificate, read_certificate(certificates / CA_FILE), now)
    if problem is not None:
        raise ConfigError(
            "this is no release key of this federation",
            where=CERTIFICATE_FILE,
            seen=f"{problem.problem}: {problem.detail}",
            remedy="Nothing was written. Give the folder of `lift-server release-key`.",
        )


def sign_release(folder: Path, found: ReleaseKey, *, now: datetime | None = None) -> None:
    """Sign the manifest of a release folder whose files fit it.

    An earlier signature is replaced; approvals stay good, for they are of the manifest.

    Args:
        folder: what `lift-server export` made.
        found: the release key.
        now: the present time.

    Raises:
        ReleaseError: a file does not fit the manifest: nothing is signed.
        DataError: there is no such folder.
    """
    time = now or datetime.now(UTC)
    checked = check_release(folder, authority=None, now=time)
    refuse(folder, checked, "Nothing was signed.")
    content = (folder / MANIFEST_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != checked.manifest_sha256:
        changed = Finding(MANIFEST_FILE, "changed", "while it was looked at")
        refuse(folder, replace(checked, findings=(changed,)), "Nothing was signed.")
    signature = found.key.sign(content, SIGNATURE)
    write_atomically(folder / CERTIFICATE_FILE, pem(found.certificate))
    write_atomically(folder / SIGNATURE_FILE, signature)
