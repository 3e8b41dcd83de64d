"""The content of the live page as JSON, read from the server's files at most once per second."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, Final

from lift.config.kit import CA_FILE
from lift.config.server import ServerConfig
from lift.errors import ConfigError, LiftError
from lift.records.rounds import RoundRecord, outcome
from lift.records.run import RunRecord, read_run_record
from lift_server.sites.certificates import SERVER_FILE, read_certificate
from lift_server.watch.live.exposition import exposition
from lift_server.watch.rounds_file import RoundsFile
from lift_server.watch.status_view import describe

OLDEST_S: Final = 1.0
_LOG_FILE: Final = "log.txt"
_LOG_BYTES: Final = 32_768
_LOG_LINES: Final = 80
_PRIVACY_KEYS: Final = (
    "mode",
    "statement",
    "unit",
    "delta",
    "accountant",
    "epsilon",
    "epsilon_where_times_are_seen",
    "epsilon_of_a_patient_in_two_hospitals",
)


@dataclass(frozen=True)
class Snapshot:
    """The content of the files at one time.

    Attributes:
        state: everything but the rounds, as JSON.
        metrics: the same figures in Prometheus' text format.
        rounds: the rounds for the curves, each as JSON.
        run: what tells this run from another one.
    """

    state: bytes
    metrics: bytes
    rounds: tuple[bytes, ...]
    run: str


class Snapshots:
    """Reads a server's files on request, at most once per second.

    Args:
        config: the server's settings.
        clock: seconds, for the age of a look.
        now: the present time.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._clock = clock
        self._now = now
        self._rounds = RoundsFile(config.output)
        self._curves: tuple[bytes, ...] = ()
        self._curves_of: tuple[RoundRecord, ...] | None = None
        self._taken_at = float("-inf")
        self._taken: Snapshot | None = None

    def latest(self) -> Snapshot:
        """The files as they are, or were a second ago at most.

        What cannot be read is said in the state's `problem`; nothing is raised for it.
        """
        if self._taken is None or self._clock() - self._taken_at >= OLDEST_S:
            self._taken = self._take()
            self._taken_at = self._clock()
        return self._taken

    def rounds_after(self, known: int, run: str) -> bytes:
        """The rounds that a page does not know yet; all of them when it knows another run's.

        Args:
            known: how many rounds the page has.
            run: the run that they are of.
        """
        latest = self.latest()
        start = known if run == latest.run and 0 <= known <= len(latest.rounds) else 0
        fresh = b",".join(latest.rounds[start:])
        name = json.dumps(latest.run).encode()
        return b'{"run":%b,"from":%d,"rounds":[%b]}' % (name, start, fresh)

    def _take(self) -> Snapshot:
        now = self._now()
        state: dict[str, Any] = {
            "now": now.isoformat(timespec="seconds"),
            "version": version("lift-federated"),
        }
        try:
            state |= describe(self._config, now, self._rounds)
            lines = self._rounds.read().lines
        except LiftError as error:
            # do not go blank: show the problem and try again
            state["problem"] = {"what": error.what, "seen": error.seen, "remedy": error.remedy}
            lines = ()
        state.pop("last_round", None)
        state.pop("data_cards", None)
        record = _run_record(self._config.output)
        state |= {
            "run": str((record and record.started) or state.get("started") or ""),
            "plan_digest": None if record is None else record.plan_digest,
            "privacy": _privacy(record),
            "expiry": _expiry(self._config),
            "log": _tail(self._config.state / _LOG_FILE),
            "round_count": len(lines),
        }
        if lines is not self._curves_of:
            self._curves = tuple(_curve_point(line) for line in lines)
            self._curves_of = lines
        body = json.dumps(state, allow_nan=False, separators=(",", ":")).encode()
        return Snapshot(body, exposition(state, lines).encode(), self._curves, state["run"])


def _curve_point(line: RoundRecord) -> bytes:
    """One round as the page draws it."""
    point = {
        "round": line.round,
        "kind": line.kind,
        "seconds": line.seconds,
        "loss": line.loss,
        "psnr": line.validation_psnr_db,
        "epsilon": line.epsilon,
        "resumed": line.resumed,
        # SITE -> norm as a multiple of the median norm, and the factor it was scaled by
        "clipped": {
            site: [line.norm_ratios.get(site), factor]
            for site, factor in sorted(line.clipped.items())
        },
        "fall": None if line.fall is None else line.fall.sentence,
        "sites": {
            site: outcome(line, site).value
            for site in sorted({*line.asked, *line.counted, *line.refused})
        },
    }
    return json.dumps(point, allow_nan=False, separators=(",", ":")).encode()


def _run_record(output: Path) -> RunRecord | None:
    try:
        return read_run_record(output)
    except (OSError, ValueError):
        return None


def _privacy(record: RunRecord | None) -> dict[str, Any] | None:
    told = None if record is None else record.privacy
    return {key: told[key] for key in _PRIVACY_KEYS if key in told} if told else None


def _expiry(config: ServerConfig) -> dict[str, str]:
    """When each certificate ends; one that cannot be read is left to the notices."""
    ends = {}
    named = (("certificate authority", CA_FILE), ("server certificate", SERVER_FILE))
    for name, file in named:
        try:
            certificate = read_certificate(config.certificates / file)
        except ConfigError:
            continue
        ends[name] = certificate.not_valid_after_utc.isoformat()
    return ends


def _tail(path: Path) -> list[str]:
    """The last lines of a log; a line that begins before the last 32 kB is left out."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - _LOG_BYTES, 0))
            lines = stream.read(_LOG_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
    if size > _LOG_BYTES:
        lines = lines[1:]
    return lines[-_LOG_LINES:]
