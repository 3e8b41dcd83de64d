"""`status.json`: the state of the running server, for `lift-server status`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict

from lift.files import write_json
from lift.records.rounds import RoundRecord

if TYPE_CHECKING:
    from lift.protocol.messages import Kind

STATUS_FILE: Final = "status.json"
_EVERY_S: Final = 1.0
Phase = Literal["waiting", "round", "decision", "done", "stopped"]
Exchange = Literal["statistics", "train", "guard"]


class SiteStatus(BaseModel):
    """One site, as the running server sees it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    online: bool = False
    last_contact: str | None = None
    state: Literal["idle", "asked", "answered", "missing"] = "idle"


class ServerStatus(BaseModel):
    """`status.json`, which the running server writes at every change; unknown keys are left."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pid: int
    started: str
    phase: Phase
    round: int
    rounds: int
    exchange: Exchange | None = None
    """What the sites were asked for last."""
    round_started: str | None = None
    deadline_s: float | None = None
    sites: dict[str, SiteStatus] = {}
    updated: str


class StatusFile:
    """Writes the file at every change, and every second while something goes on.

    Args:
        path: `status.json` in the state folder.
        rounds: training rounds of the plan.
    """

    def __init__(self, path: Path, rounds: int) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._rounds = rounds
        self._started = _now()
        self._phase: Phase = "waiting"
        self._round = 0
        self._exchange: Exchange | None = None
        self._round_started: str | None = None
        self._deadline_s = 0.0
        self._sites: dict[str, SiteStatus] = {}

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Update the file regularly inside the block, so that its age shows a dead server."""

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
            for name in {*self._sites, *sites}:
                site = self._site(name)
                online = name in sites
                last_contact = _now() if online else site.last_contact
                self._sites[name] = SiteStatus(
                    online=online, last_contact=last_contact, state=site.state
                )

    def asking(self, round_index: int, kind: Kind, sites: Sequence[str], deadline_s: float) -> None:
        """Record that a request was sent to these sites."""
        with self._lock:
            self._phase = "round"
            self._exchange = kind.value
            self._round = min(round_index, self._rounds)
            self._round_started = _now()
            self._deadline_s = deadline_s
            for name in sites:
                self._set_state(name, "asked")
        self._write()

    def deciding(self) -> None:
        """The server waits for the coordinator's decision."""
        with self._lock:
            self._phase = "decision"
        self._write()

    def answered(self, name: str) -> None:
        """An answer of this site has come; the file says so within a second."""
        with self._lock:
            self._set_state(name, "answered")

    def round_done(self, record: RoundRecord) -> None:
        """A round is over and on disk."""
        missing = set(record.refused)
        with self._lock:
            for name, site in self._sites.items():
                if site.state in {"asked", "answered"} and name in missing:
                    self._set_state(name, "missing")
                elif site.state == "asked":
                    self._set_state(name, "answered")
        self._write()

    def end(self, phase: Phase) -> None:
        """The server ends."""
        with self._lock:
            self._phase = phase
        self._write()

    def _site(self, name: str) -> SiteStatus:
        return self._sites.get(name, SiteStatus())

    def _set_state(self, name: str, state: Literal["asked", "answered", "missing"]) -> None:
        site = self._site(name)
        self._sites[name] = SiteStatus(
            online=site.online, last_contact=site.last_contact, state=state
        )

    def _write(self) -> None:
        with self._lock:
            status = ServerStatus(
                pid=os.getpid(),
                started=self._started,
                phase=self._phase,
                round=self._round,
                rounds=self._rounds,
                exchange=self._exchange,
                round_started=self._round_started,
                deadline_s=self._deadline_s,
                sites=self._sites,
                updated=_now(),
            )
            write_json(self._path, status.model_dump(mode="json"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
