"""A site's key pair: reading, signing, fingerprint."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lift.errors import ConfigError

SIGNATURE: Final = ec.ECDSA(hashes.SHA384())
"""How every key of ours signs: ECDSA with SHA-384, DER."""


def key_fingerprint(public_key: str) -> str:
    """`SHA256:` and 43 characters, as `ssh-keygen -l -f site.pub` writes it.

    Raises:
        ValueError: the text is not an OpenSSH public key.
    """
    try:
        blob = base64.b64decode(public_key.split()[1], validate=True)
    except (IndexError, binascii.Error):
        raise ValueError("the public key is not in OpenSSH form") from None
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def public_text(key: ec.EllipticCurvePublicKey) -> bytes:
    """The public key as one OpenSSH line: what the coordinator gets."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the site's private key. Raise unless only its owner can read it and it is EC P-384.

    Raises:
        ConfigError: the file is missing, open to others, or holds something else.
    """
    try:
        mode = path.stat().st_mode & 0o777
        content = path.read_bytes()
    except OSError as error:
        raise _bad_key(path, error.strerror or type(error).__name__) from None
    if mode & 0o077:
        raise ConfigError(
            "the site's private key is open to others",
            where=str(path),
            seen=f"its mode is {mode:04o}; needed: 0600",
            remedy=f"Run: chmod 600 '{path}'. If others could have read it, enrol again.",
        )
    try:
        key = serialization.load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _bad_key(path, "it is not an OpenSSH private key without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _bad_key(path, "it is not an EC P-384 key")
    return key


def sign_text(key: ec.EllipticCurvePrivateKey, content: bytes) -> str:
    """Base64 of the key's signature of these bytes."""
    return base64.b64encode(key.sign(content, SIGNATURE)).decode()


def signature_fits(public_key: str, signature: str, content: bytes) -> bool:
    """Whether this key signed these bytes.

    Args:
        public_key: OpenSSH text.
        signature: base64, as :func:`sign_text` writes it.
        content: what was signed.
    """
    try:
        key = serialization.load_ssh_public_key(public_key.encode())
        decoded = base64.b64decode(signature, validate=True)
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(decoded, content, SIGNATURE)
            return True
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        pass
    return False


def _bad_key(path: Path, seen: str) -> ConfigError:
    return ConfigError(
        "cannot use the site's private key",
        where=str(path),
        seen=seen,
        remedy="Correct `key` in the site's settings, or make a key with `lift-client enroll`.",
    )
