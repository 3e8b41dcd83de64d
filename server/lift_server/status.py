"""`status.json`: what the running server is doing, for `lift-server status` in another shell."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from lift.files import write_json

_EVERY_S: Final = 2.0
Phase = Literal["waiting", "round", "done", "stopped"]


class StatusFile:
    """Writes the file at every change, and every two seconds while something goes on.

    Args:
        path: `status.json` in the state folder.
        rounds: training rounds of the plan.
    """

    def __init__(self, path: Path, rounds: int) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._data: dict[str, Any] = {
            "pid": os.getpid(),
            "started": _now(),
            "phase": "waiting",
            "round": 0,
            "rounds": rounds,
            "round_started": None,
            "deadline_s": 0.0,
            "sites": {},
        }

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """The file is renewed inside the block, so that its age says whether anybody is there."""

        def renew() -> None:
            while not self._over.wait(_EVERY_S):
                self._write()

        thread = threading.Thread(target=renew, name="status", daemon=True)
        self._write()
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def connected(self, sites: Collection[str]) -> None:
        """These sites, and no others, are connected now."""
        with self._lock:
            for name in sites:
                self._site(name)["last_contact"] = _now()
            for name, site in self._data["sites"].items():
                site["online"] = name in sites

    def asking(self, round_index: int, sites: Sequence[str], deadline_s: float) -> None:
        """A request goes out to these sites."""
        with self._lock:
            self._data |= {
                "phase": "round",
                "round": min(round_index, self._data["rounds"]),
                "round_started": _now(),
                "deadline_s": deadline_s,
            }
            for name in sites:
                self._site(name)["state"] = "asked"
        self._write()

    def round_done(self, record: Mapping[str, object]) -> None:
        """A round is over and on disk."""
        refused = record["refused"]
        missing = set(refused) if isinstance(refused, dict) else set()
        with self._lock:
            for name, site in self._data["sites"].items():
                if site["state"] == "asked":
                    site["state"] = "missing" if name in missing else "answered"
        self._write()

    def end(self, phase: Phase) -> None:
        """The server ends."""
        with self._lock:
            self._data["phase"] = phase
        self._write()

    def _site(self, name: str) -> dict[str, Any]:
        empty = {"online": False, "last_contact": None, "state": "idle"}
        site: dict[str, Any] = self._data["sites"].setdefault(name, empty)
        return site

    def _write(self) -> None:
        with self._lock:
            write_json(self._path, self._data | {"updated": _now()})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
