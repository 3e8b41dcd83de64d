"""Identities of a run at tracking services, stored so that a resumed run continues there."""

from __future__ import annotations

from pathlib import Path

from lift.files import write_json
from lift.strict_json import parse_json


class Identity:
    """One service's name for one federation of the run, in a JSON file of the run's folder.

    Args:
        path: the file; it is made by `keep`.
        part: which federation of the run; empty for the whole run.
        where: the service or store; the identity at another one is not known here.
    """

    def __init__(self, path: Path, part: str, where: str) -> None:
        self._path = path
        self._key = part or "run"
        self._where = where

    @property
    def known(self) -> str | None:
        """The identity, or None where there is none, or the file is damaged."""
        found = self._all().get(self._key)
        if not isinstance(found, dict) or found.get("where") != self._where:
            return None
        identity = found.get("id")
        # our own kinds of identity only: it becomes part of file names
        return identity if isinstance(identity, str) and identity.isalnum() else None

    def keep(self, identity: str) -> None:
        """Remember it for the next start."""
        write_json(self._path, self._all() | {self._key: {"where": self._where, "id": identity}})

    def _all(self) -> dict[str, object]:
        try:
            found = parse_json(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
