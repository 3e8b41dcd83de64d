"""The certificates of a federation: its own authority, and the server's certificate.

The two private keys stay in the folder where they were made, readable by their owner alone.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lift.config.kit import CA_FILE
from lift.errors import ConfigError
from lift.files import write_atomically
from lift.release.certificate import RELEASE_USAGE

CA_KEY_FILE: Final = "ca.key"
SERVER_FILE: Final = "server.pem"
SERVER_KEY_FILE: Final = "server.key"
NOTICE_DAYS: Final = 60
"""A certificate that ends within this many days is announced."""
_CA_DAYS: Final = 3650
_SERVER_DAYS: Final = 825
_RELEASE_DAYS: Final = 3650
# a site's clock may be behind the coordinator's
_BACKDATED: Final = timedelta(hours=1)
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class NewCertificates:
    """An authority and a server's certificate with their keys, as the bytes of their files."""

    ca: bytes
    ca_key: bytes = field(repr=False)
    server: bytes
    server_key: bytes = field(repr=False)


@dataclass(frozen=True)
class Notice:
    """A certificate that ends soon (warning), or is not valid now (problem)."""

    certificate: Literal["certificate authority", "server certificate"]
    level: Literal["warning", "problem"]
    days_left: int
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.certificate} {self.text}. {self.remedy}"


def make_certificates(hosts: Sequence[str], federation: str, now: datetime) -> NewCertificates:
    """A new authority and a server's certificate from it; nothing is written.

    Args:
        hosts: names or IP addresses at which sites reach the server; localhost and 127.0.0.1
            are added.
        federation: name of the federation.
        now: the time at which the certificates are made.

    Raises:
        ConfigError: there is no host, or one is neither a DNS name nor an IP address.
    """
    names = _subject_names(hosts)
    ca_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca = _authority(ca_key, federation, now)
    server = _server_certificate(ca, ca_key, server_key.public_key(), names, now)
    return NewCertificates(pem(ca), private_pem(ca_key), pem(server), private_pem(server_key))


def renew_server_certificate(
    certificates: Path, hosts: Sequence[str], *, now: datetime | None = None
) -> x509.Certificate:
    """Replace `server.pem` by a new certificate of the same authority. All kits stay valid.

    The server's key is kept, so one file changes and it changes at once. To change the key as
    well, remove `server.key` first: a new one is then made. A running server uses the new
    certificate from its next start.

    Args:
        certificates: the folder of ca.pem, ca.key, server.pem and server.key.
        hosts: as in `make_certificates`.
        now: the time at which the certificate is made.

    Raises:
        ConfigError: a file is missing or damaged, the authority's key is not that of its
            certificate, or the authority itself has ended.
    """
    time = now or datetime.now(UTC)
    names = _subject_names(hosts)
    ca = read_certificate(certificates / CA_FILE)
    ca_key = read_private_key(certificates / CA_KEY_FILE)
    _check_authority(ca, ca_key, time, "cannot renew the server's certificate")
    key_path = certificates / SERVER_KEY_FILE
    if key_path.exists():
        key = read_private_key(key_path)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        write_new(key_path, private_pem(key), 0o600)
    made = _server_certificate(ca, ca_key, key.public_key(), names, time)
    write_atomically(certificates / SERVER_FILE, pem(made))
    return made


def make_release_certificate(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    federation: str,
    now: datetime,
) -> x509.Certificate:
    """A release key's certificate: from `now` for ten years, and no longer than its authority.

    Raises:
        ConfigError: `ca_key` is not the key of `ca`, or `ca` has ended.
    """
    _check_authority(ca, ca_key, now, "cannot make a release key")
    # critical: who does not know this purpose takes the certificate for none of another
    purpose: dict[x509.ExtensionType, bool] = {x509.ExtendedKeyUsage([RELEASE_USAGE]): True}
    name = f"LiFT {federation} release"
    return _leaf(name, ca, ca_key, public_key, now, _RELEASE_DAYS, purpose)


def certificate_notices(certificates: Path, now: datetime) -> list[Notice]:
    """Return notices about the validity of both certificates. Empty if all is well.

    Raises:
        ConfigError: a certificate is missing or damaged.
    """
    notices: list[Notice] = []
    kinds: tuple[tuple[Literal["certificate authority", "server certificate"], str, str], ...] = (
        (
            "certificate authority",
            CA_FILE,
            "Plan a new folder (`lift-server init`): every site needs a new kit from it.",
        ),
        (
            "server certificate",
            SERVER_FILE,
            "Run `lift-server renew`, then start the server again.",
        ),
    )
    for name, file, remedy in kinds:
        certificate = read_certificate(certificates / file)
        ends = certificate.not_valid_after_utc
        days = (ends - now) // timedelta(days=1)
        if now > ends:
            text = f"ended on {ends:%Y-%m-%d}: no site can connect"
            notices.append(Notice(name, "problem", days, text, remedy))
        elif now < certificate.not_valid_before_utc:
            text = f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            notices.append(Notice(name, "problem", days, text, "Set this machine's clock."))
        elif days <= NOTICE_DAYS:
            text = f"ends in {days} days, on {ends:%Y-%m-%d}"
            notices.append(Notice(name, "warning", days, text, remedy))
    return notices


def ca_fingerprint(certificates: Path) -> str:
    """SHA-256 of the authority's certificate (DER), in hexadecimal."""
    return read_certificate(certificates / CA_FILE).fingerprint(hashes.SHA256()).hex()


def read_certificate(path: Path) -> x509.Certificate:
    """One PEM certificate.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, "a PEM certificate") from None


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """One PEM private key without a password.

    Raises:
        ConfigError: it is missing, damaged, encrypted or of another kind.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unreadable(path, error, "a PEM key without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unreadable(path, ValueError(), "an elliptic-curve key")
    return key


def certificate_hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    """Names and IP addresses under which the certificate is valid."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in extension.value)


def address_host(address: str) -> str:
    """The host of `host:port`; an IPv6 address comes without its brackets."""
    return address.rpartition(":")[0].strip("[]")


def pem(certificate: x509.Certificate) -> bytes:
    """The content of a certificate's file."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The content of a private key's file."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Create a file that must not exist yet, with its final mode from the start."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _check_authority(
    ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, now: datetime, what: str
) -> None:
    """Raise unless this authority can sign now. The error names what cannot be done."""
    ended = now > ca.not_valid_after_utc
    if not ended and ca_key.public_key() == ca.public_key():
        return
    raise ConfigError(
        what,
        where=CA_FILE,
        seen="the certificate authority has ended"
        if ended
        else f"{CA_KEY_FILE} is not the key of {CA_FILE}",
        remedy="Make a new folder with `lift-server init` and give every site its new kit."
        if ended
        else "Restore both files from the same backup.",
    )


def _authority(key: ec.EllipticCurvePrivateKey, federation: str, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"LiFT {federation} CA")])
    usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
    return _sign(
        name,
        name,
        key.public_key(),
        key,
        (now - _BACKDATED, now - _BACKDATED + timedelta(days=_CA_DAYS)),
        {
            x509.BasicConstraints(ca=True, path_length=0): True,
            x509.KeyUsage(**usage): True,
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()): False,
        },
    )


def _server_certificate(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    names: Sequence[x509.GeneralName],
    now: datetime,
) -> x509.Certificate:
    # the subject's name is not what is compared: the alternative names are, and they may be long
    extensions: dict[x509.ExtensionType, bool] = {
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]): False,
        x509.SubjectAlternativeName(names): False,
    }
    return _leaf("LiFT server", ca, ca_key, public_key, now, _SERVER_DAYS, extensions)


def _leaf(
    name: str,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    purpose: Mapping[x509.ExtensionType, bool],
) -> x509.Certificate:
    """A certificate of a key that signs and no more; it never outlives its authority."""
    begins = max(now - _BACKDATED, ca.not_valid_before_utc)
    issuer = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    usage = dict.fromkeys(_USAGES, False) | {"digital_signature": True}
    return _sign(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
        ca.subject,
        public_key,
        ca_key,
        (begins, min(begins + timedelta(days=days), ca.not_valid_after_utc)),
        {
            x509.BasicConstraints(ca=False, path_length=None): True,
            x509.KeyUsage(**usage): True,
            **purpose,
            x509.SubjectKeyIdentifier.from_public_key(public_key): False,
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer): False,
        },
    )


_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    ca_key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime, datetime],
    extensions: Mapping[x509.ExtensionType, bool],
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )
    for extension, critical in extensions.items():
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(ca_key, hashes.SHA384())


def _subject_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """The given hosts, then localhost and 127.0.0.1, each once."""
    if not hosts:
        raise _bad_host("no host is given")
    names: list[x509.GeneralName] = []
    for host in (*hosts, "localhost", "127.0.0.1"):
        name = _subject_name(host.strip())
        if name not in names:
            names.append(name)
    return names


def _subject_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        labels = host.split(".")
        fits = len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
        # a last label of digits is a mistyped IP address
        if not fits or labels[-1].isdigit():
            raise _bad_host(f"'{host}' is neither") from None
        return x509.DNSName(host.lower())


def _bad_host(seen: str) -> ConfigError:
    return ConfigError(
        "the server's host cannot be used",
        where="--host",
        seen=f"{seen}; needed: a DNS name or an IP address, without scheme and port",
        remedy="Nothing was changed. Give what sites will dial, such as lift.example.org.",
    )


def _unreadable(path: Path, error: Exception, needed: str) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else "not readable"
    return ConfigError(
        f"cannot use {path.name}",
        where=str(path.parent),
        seen=f"{reason}; needed: {needed}",
        remedy="`lift-server init` makes it in a new folder; restore it from your backup.",
    )
