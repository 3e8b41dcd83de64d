"""The last status of the running server and the run's record, as plain data.

`lift-server status`, the live board of a terminal and the live page all show what stands here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from pydantic import ValidationError

from lift.config.server import ServerConfig
from lift.errors import ConfigError, DataError
from lift.records.rounds import RoundRecord
from lift.records.run import read_run_record
from lift.strict_json import parse_model
from lift_server.sites.certificates import Notice, certificate_notices
from lift_server.sites.provisioning import CONFIG_FILE
from lift_server.sites.roster import Roster
from lift_server.watch.rounds_file import RoundsFile, SiteTally
from lift_server.watch.status import STATUS_FILE, ServerStatus, SiteStatus

# a process that began later than this after the record did is another one with the same number
_PID_REUSE_S: Final = 60.0
_SILENCE_S: Final = 60.0
_NOT_SEEN: Final = SiteStatus()
_AT_WORK: Final = {"statistics": "preparing", "train": "training", "guard": "judging"}
_MOST_REFUSALS: Final = 100


def describe(
    config: ServerConfig, now: datetime, rounds: RoundsFile | None = None
) -> dict[str, Any]:
    """Return the content of `status`, the board and the page, as plain data.

    Args:
        config: the server's settings.
        now: the present time.
        rounds: the reader of the run's rounds; keep one if you call this often.

    Raises:
        ConfigError: the roster cannot be read.
        DataError: the status file or the record of rounds is damaged.
    """
    found = read_status(config)
    running = found is not None and is_alive(found)
    complete = is_complete(config.output)
    record = (rounds or RoundsFile(config.output)).read()
    trained = record.trained
    roster = Roster.read(config.sites)
    names = {*roster.sites, *(found.sites if found else ())}
    planned = config.plan.federation.rounds if found is None else found.rounds
    return {
        "federation": config.name,
        "phantom": config.phantom,
        "data_statement": config.data_statement,
        "summary": _summary(found, roster, running=running, complete=complete, now=now),
        "running": running,
        "complete": complete,
        **({} if found is None else found.model_dump(mode="json", exclude={"sites"})),
        # a process that died cannot have said so
        "phase": "not running" if found is None else _phase(found, running=running),
        "rounds": planned,
        "rounds_done": len(trained),
        "left_s": _left_s(trained, planned) if running and not complete else None,
        "last_round": record.lines[-1].line() if record.lines else None,
        "sites": {
            name: _describe_site(
                name, roster, found if running else None, record.tallies.get(name, SiteTally())
            )
            for name in sorted(names)
        },
        "refusals": record.refusals[:_MOST_REFUSALS],
        "epsilon": record.lines[-1].epsilon if record.lines else None,
        "data_cards": _data_cards(record.lines),
        "certificates": [asdict(notice) for notice in _notices(config, now)],
        "next": _what_next(running=running, complete=complete),
    }


def read_status(config: ServerConfig) -> ServerStatus | None:
    """Return what the server last wrote, or None if it never ran."""
    path = config.state / STATUS_FILE
    try:
        return parse_model(ServerStatus, path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            seen = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        else:
            seen = str(error.strerror) if isinstance(error, OSError) else str(error)
        raise DataError(
            "cannot read the server's status",
            where=str(path),
            seen=seen,
            remedy="Check its permissions or remove it; a running server writes it again.",
        ) from None


def is_alive(found: ServerStatus) -> bool:
    """Return whether the process that wrote the status still runs (not one with a reused pid)."""
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    began = _process_start(found.pid)
    started = time_of(found.started)
    return began is None or started is None or began <= started.timestamp() + _PID_REUSE_S


def is_complete(output: Path) -> bool:
    """Whether `run.json` says that the run came to its end."""
    try:
        return read_run_record(output).complete
    except (OSError, ValueError):
        return False


def _process_start(pid: int) -> float | None:
    """When a process began, in seconds since 1970; None where the system does not tell."""
    try:
        # the second field is the command in brackets, and may hold spaces
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    boot = next((int(line.split()[1]) for line in lines if line.startswith("btime ")), None)
    return None if boot is None else boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _phase(found: ServerStatus, *, running: bool) -> str:
    return found.phase if running or found.phase == "done" else "stopped"


def _summary(
    found: ServerStatus | None, roster: Roster, *, running: bool, complete: bool, now: datetime
) -> str:
    if found is None:
        return "not running; the run is complete" if complete else "not running"
    if found.phase == "done":
        return f"done, {found.rounds} rounds"
    if not running or found.phase == "stopped":
        before = {
            "waiting": "was waiting for sites",
            "round": f"was in round {found.round}",
            "decision": f"was waiting for a decision in round {found.round}",
        }
        return f"stopped ({before.get(found.phase, f'after round {found.round}')})"
    # a server that hangs is alive as well
    updated = time_of(found.updated)
    silence = 0.0 if updated is None else (now - updated).total_seconds()
    silent = f", no news for {span(silence)}" if silence > _SILENCE_S else ""
    if found.phase == "waiting":
        admitted = roster.admitted_keys
        online = sum(site.online for name, site in found.sites.items() if name in admitted)
        return f"waiting for sites, {online} of {len(admitted)} online{silent}"
    if found.phase == "decision":
        return f"round {found.round} missed its quorum: waits for `lift-server go-on`{silent}"
    text = f"round {found.round} of {found.rounds}"
    began = time_of(found.round_started)
    if began is not None:
        text += f", for {span((now - began).total_seconds())}"
        if found.deadline_s is not None:
            left = found.deadline_s - (now - began).total_seconds()
            text += f", closes in {span(left)}" if left > 0 else ", past its deadline"
    return text + silent


def _describe_site(
    name: str, roster: Roster, found: ServerStatus | None, tally: SiteTally
) -> dict[str, Any]:
    """One site; what only a running server knows is null without one."""
    entry = roster.sites.get(name)
    seen = None if found is None else found.sites.get(name, _NOT_SEEN)
    removed = entry is None or entry.removed is not None
    return {
        "admitted": None if entry is None else entry.admitted,
        "removed": None if entry is None else entry.removed,
        "online": None if seen is None else seen.online,
        "last_contact": None if seen is None else seen.last_contact,
        "state": "removed" if removed else "-" if seen is None else seen.state,
        "doing": "removed" if removed else "-" if seen is None else _doing(seen, found),
        **asdict(tally),
    }


def _doing(site: SiteStatus, found: ServerStatus | None) -> str:
    """What the site is at, in a word or two."""
    if found is None or found.phase != "round" or site.state == "idle":
        return "waiting" if site.online else "away"
    if site.state == "asked":
        if not site.online:
            return "away, asked"
        return _AT_WORK[found.exchange or "train"]
    if site.state == "missing":
        return "missed the round"
    return "answered, waiting" if site.online else "answered, away"


def _left_s(trained: Sequence[RoundRecord], planned: int) -> float | None:
    """Seconds that the rounds to come take if they take what the last ten took."""
    last = [line.seconds for line in trained[-10:] if line.seconds is not None]
    return median(last) * max(planned - len(trained), 0) if last else None


def _data_cards(lines: Sequence[RoundRecord]) -> dict[str, Any]:
    """What the sites chose to tell of their cohorts with their first answers."""
    said = lines[0].statistics if lines else {}
    found = {site: said[site].data_card for site in sorted(said)}
    return {site: card for site, card in found.items() if card is not None}


def _notices(config: ServerConfig, now: datetime) -> list[Notice]:
    try:
        return certificate_notices(config.certificates, now)
    except ConfigError as error:
        return [Notice("server certificate", "problem", 0, error.seen, error.remedy)]


def _what_next(*, running: bool, complete: bool) -> str:
    """For a person: the command after this one; DIR stands for the folder."""
    if complete:
        return "lift-server export DIR OUT"
    if running:
        return "lift-server status DIR   # again, whenever you like"
    return f"lift-server check DIR, then: lift-server --config DIR/{CONFIG_FILE}"


def span(seconds: float) -> str:
    """A length of time for a reader: `40 s`, `3 min`, `5 h`."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"


def time_of(text: str | None) -> datetime | None:
    """The moment that ISO 8601 text names; None where it names none."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
