"""The release key: its certificate under the federation's authority, and what it signs.

The certificate is for releases alone, by an extended usage of its own: a TLS key is not accepted
as a release key, nor a release key by TLS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from lift.errors import ConfigError
from lift.keys import SIGNATURE
from lift.release.folder import Finding
from lift.release.manifest import CERTIFICATE_FILE, MANIFEST_FILE, SIGNATURE_FILE

# under 2.25 (ITU-T X.667) a number that was drawn as a UUID belongs to whoever drew it
RELEASE_USAGE: Final = x509.ObjectIdentifier("2.25.284440019431723638298576700525222968904")
"""The extended key usage of a release key's certificate, and its only one."""


@dataclass(frozen=True)
class Signer:
    """Who signed a release."""

    name: str
    """Common name in the certificate."""
    fingerprint: str
    """SHA-256 of the certificate (DER), hexadecimal: to be compared by telephone."""
    valid_until: datetime


def read_authority(path: Path) -> x509.Certificate:
    """The certificate of the federation's authority.

    Raises:
        ConfigError: the file is missing, or holds anything but exactly one authority's certificate.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _bad_authority(path, error.strerror or type(error).__name__) from None
    if content.count(b"-----BEGIN") != 1:
        raise _bad_authority(path, "it does not hold exactly one certificate")
    try:
        found = x509.load_pem_x509_certificate(content)
        basic = found.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound):
        raise _bad_authority(path, "it is no certificate of an authority") from None
    if not basic.ca:
        raise _bad_authority(path, "it is no certificate of an authority")
    return found


def check_signature(
    manifest: bytes,
    signature: bytes | None,
    certificate: bytes | None,
    authority: x509.Certificate,
    now: datetime,
) -> tuple[Signer | None, list[Finding]]:
    """Return the signer of the manifest if it is a release key of this authority, else the fault.

    Args:
        manifest: bytes of `manifest.json`.
        signature: bytes of `manifest.json.sig`; None where there is none.
        certificate: bytes of `release.pem`; None where there is none.
        authority: of the federation, from elsewhere than the release.
        now: must lie within the certificate's time.
    """
    absent = [
        Finding(name, "not signed", "the file is missing")
        for name, content in ((SIGNATURE_FILE, signature), (CERTIFICATE_FILE, certificate))
        if content is None
    ]
    if signature is None or certificate is None:
        return None, absent
    found = signer_or_problem(manifest, signature, certificate, authority, now)
    if isinstance(found, Signer):
        return found, []
    if found.problem == "wrong key":
        detail = (
            f"the signature is not of this {MANIFEST_FILE} by the key of {CERTIFICATE_FILE}: "
            "another key signed, or the manifest or the signature was changed"
        )
        found = replace(found, detail=detail)
    return None, [found]


def signer_or_problem(
    content: bytes,
    signature: bytes,
    certificate: bytes,
    authority: x509.Certificate,
    now: datetime,
) -> Signer | Finding:
    """Return who signed a content if it is a release key of this authority, else the fault.

    Args:
        content: what was signed.
        signature: DER.
        certificate: PEM.
        authority: as in :func:`check_signature`, like `now`.
        now: as there.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate)
        key = found.public_key()
    except ValueError:
        return _of_certificate("it is no certificate")
    problem = certificate_problem(found, authority, now)
    if problem is not None:
        return problem
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(signature, content, SIGNATURE)
    except InvalidSignature:
        return Finding(SIGNATURE_FILE, "wrong key")
    return signer_of(found)


def certificate_problem(
    certificate: x509.Certificate, authority: x509.Certificate, now: datetime
) -> Finding | None:
    """Return why this is not a release certificate of this authority, or None."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return Finding(
            CERTIFICATE_FILE, "not under the CA", "this federation's authority did not make it"
        )
    if not _is_for_releases(certificate):
        return _of_certificate("the authority made it for something else")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        return Finding(
            CERTIFICATE_FILE,
            "certificate not valid now",
            f"valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}; today is {now:%Y-%m-%d}",
        )
    return None


def signer_of(certificate: x509.Certificate) -> Signer:
    """Name and fingerprint of a release key's certificate."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return Signer(
        name=str(names[0].value) if names else "",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        valid_until=certificate.not_valid_after_utc,
    )


def _is_for_releases(certificate: x509.Certificate) -> bool:
    try:
        extensions = certificate.extensions
        usage = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        keys = extensions.get_extension_for_class(x509.KeyUsage).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return usage == [RELEASE_USAGE] and not basic.ca and keys.digital_signature


def _of_certificate(detail: str) -> Finding:
    return Finding(CERTIFICATE_FILE, "not a release certificate", detail)


def _bad_authority(path: Path, seen: str) -> ConfigError:
    return ConfigError(
        "cannot use the authority's certificate",
        where=str(path),
        seen=f"{seen}; needed: ca.pem of the federation",
        remedy="Take it from the coordinator or from your kit, never from the release itself, and "
        "compare its SHA-256 by telephone.",
    )
