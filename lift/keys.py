"""What people compare of a public key, on both sides."""

from __future__ import annotations

import base64
import binascii
import hashlib


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
