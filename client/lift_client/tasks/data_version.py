"""The data version of a site: how often its training data changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from lift.files import write_json
from lift.strict_json import parse_json

_VERSION_FILE: Final = "data-version.json"


def data_version(work: Path, digests: list[str]) -> int:
    """How often the training data changed since the first time: 0, 1, ...

    Args:
        work: the site's folder; keeps the number and a digest of the files.
        digests: SHA-256 of the training patients' files, sorted.
    """
    path = work / _VERSION_FILE
    now = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    version = 0
    try:
        stored = parse_json(path.read_bytes())
        version = int(stored["version"]) + (stored["digest"] != now)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    write_json(path, {"version": version, "digest": now})
    return version
