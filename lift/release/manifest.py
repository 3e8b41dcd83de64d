"""The manifest of a release: every file of the folder with its size and digest.

Everything else of a release hangs on it: the release key signs its bytes, and hospitals approve
its digest. It does not list itself, its signature, the certificate of its key and the approvals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self, cast

from pydantic import Field, model_validator

from lift.config.base import Settings
from lift.config.plan import Digest, Name
from lift.errors import ConfigError, VersionMismatchError
from lift.strict_json import parse_json

MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.json.sig"
CERTIFICATE_FILE: Final = "release.pem"
RECORD_FILE: Final = "release.json"
TEXT_FILE: Final = "RELEASE.txt"
APPROVALS: Final = "approvals"
"""Folder of `SITE.json`."""
MANIFEST_VERSION: Final = 1
LARGEST_MANIFEST: Final = 4_000_000
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DEEPEST: Final = 4
_UNLISTED: Final = (MANIFEST_FILE, SIGNATURE_FILE, CERTIFICATE_FILE)


class ListedFile(Settings):
    """One file of a release."""

    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    sha256: Digest
    """Digest of its bytes."""


class Manifest(Settings):
    """The content of `manifest.json`."""

    format_version: Literal[1] = 1
    kind: Literal["release"] = "release"
    """The key signs notices too (:mod:`lift.release.notices`): neither is taken for the other."""
    federation: Name
    """Name of the federation."""
    made: str = Field(max_length=40)
    """UTC, ISO 8601: when the folder was made."""
    sites: dict[Name, Annotated[str, Field(max_length=1000)]] = Field(default_factory=dict)
    """SITE -> OpenSSH text of the key by which the coordinator knows it: for its approval."""
    files: dict[str, ListedFile] = Field(min_length=1)
    """Path below the folder, with `/` -> size and digest."""

    @model_validator(mode="after")
    def _paths_stay_inside(self) -> Self:
        seen: set[str] = set()
        for path in self.files:
            parts = path.split("/")
            plain = len(parts) <= _DEEPEST and all(_PART.fullmatch(part) for part in parts)
            if not plain or path in _UNLISTED or parts[0] == APPROVALS:
                raise ValueError(f"'{path[:100]}' is no path of a file that a manifest may list")
            # one file on some file systems
            if path.lower() in seen:
                raise ValueError(f"'{path}' is listed twice but for upper and lower case")
            seen.add(path.lower())
        return self

    def content(self) -> bytes:
        """The bytes of its file: what is signed."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest of a file's bytes.

    Raises:
        ConfigError: it is not JSON, gives a key twice, or lists what is no file of a folder.
        VersionMismatchError: it comes from another version.
    """
    data = strict_json(content, where)
    version = data.get("format_version") if isinstance(data, Mapping) else None
    if isinstance(version, int) and version != MANIFEST_VERSION:
        raise VersionMismatchError(
            "cannot read the manifest: it comes from another version",
            where=where,
            seen=f"format {version}; this version reads {MANIFEST_VERSION}",
            remedy="Use the version that made the release.",
        )
    return Manifest.from_data(data, where)


def strict_json(content: bytes, where: str) -> object:
    """The data of a JSON text in which no object gives a key twice: readers differ in which counts.

    Raises:
        ConfigError: it is something else.
    """
    try:
        return cast("object", parse_json(content))
    except ValueError as error:
        raise ConfigError(
            f"cannot read {where}",
            where=where,
            seen=f"it is not the JSON that is read here: {error}",
            remedy="Ask its author for the original file.",
        ) from None
