"""The only app that a run may carry: a description without code.

Flower cannot open a run without an app. Ours holds a `pyproject.toml` alone; a site works on
requests of no other, byte for byte, and would not unpack even this one.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import Final

STUB_PYPROJECT: Final = b"""[project]
name = "lift-federated"
version = "1.0.0"
description = "No code: what runs is what each side has installed."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "lift"

[tool.flwr.app.components]
serverapp = "lift_server:none"
clientapp = "lift_client:none"
"""
_MANIFEST: Final = ".info/CONTENT"
_LARGEST_BYTES: Final = 64 << 10
_END_BYTES: Final = 22
_LISTED: Final = (
    f"pyproject.toml,{hashlib.sha256(STUB_PYPROJECT).hexdigest()},{8 * len(STUB_PYPROJECT)}"
).encode()


def is_stub(fab: bytes) -> bool:
    """Whether an app is the stub: its one file and Flower's own list of contents, no more."""
    # an archive may be wrapped in other bytes and still open: this one starts and ends as one
    if len(fab) > _LARGEST_BYTES or not fab.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as archive:
            entries = archive.infolist()
            if sorted(entry.filename for entry in entries) != [_MANIFEST, "pyproject.toml"]:
                return False
            if any(entry.file_size > _LARGEST_BYTES for entry in entries):
                return False
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return False
            if fab[-_END_BYTES : -_END_BYTES + 4] != b"PK\x05\x06":
                return False
            listed = archive.read(_MANIFEST)
            if listed and listed.strip() != _LISTED:
                return False
            return archive.read("pyproject.toml") == STUB_PYPROJECT
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, OSError):
        return False
