"""`lift-server status`: what the running server last wrote, and the run's record, for a reader."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from lift.card_view import show_card
from lift.config.card import DataCard
from lift.config.server import ServerConfig
from lift.errors import ConfigError, DataError
from lift_server.certificates import Notice, certificate_notices
from lift_server.provisioning import CONFIG_FILE
from lift_server.roster import Roster
from lift_server.status import STATUS_FILE, ServerStatus, SiteStatus

# a process that began later than this after the record did is another one with the same number
_PID_REUSE_S: Final = 60.0
_SILENCE_S: Final = 60.0
_NOT_SEEN: Final = SiteStatus()


def describe(config: ServerConfig, now: datetime) -> dict[str, Any]:
    """What `status` shows, as plain data.

    Raises:
        ConfigError: the roster cannot be read.
        DataError: the status file or the record of rounds is damaged.
    """
    found = read_status(config)
    running = found is not None and is_alive(found)
    complete = is_complete(config.output)
    records = _read_records(config.output)
    trained = [record for record in records if record.get("kind") == "train"]
    roster = Roster.read(config.sites)
    names = {*roster.sites, *(found.sites if found else ())}
    return {
        "federation": config.name,
        "summary": _summary(found, roster, running=running, complete=complete, now=now),
        "running": running,
        "complete": complete,
        **({} if found is None else found.model_dump(mode="json", exclude={"sites"})),
        # a process that died cannot have said so
        "phase": "not running" if found is None else _phase(found, running=running),
        "rounds": config.plan.federation.rounds if found is None else found.rounds,
        "rounds_done": len(trained),
        "last_round": records[-1] if records else None,
        "sites": {
            name: _describe_site(name, roster, found if running else None, trained)
            for name in sorted(names)
        },
        "data_cards": _data_cards(records),
        "certificates": [asdict(notice) for notice in _notices(config, now)],
        "next": _what_next(running=running, complete=complete),
    }


def show(console: Console, name: str, shown: Mapping[str, Any], now: datetime) -> None:
    """Print what :func:`describe` gave, for a person.

    Args:
        console: where to.
        name: of the federation.
        shown: what `describe` gave.
        now: the present time.
    """
    console.print(f"{name}: {shown['summary']}", soft_wrap=True)
    table = Table()
    for heading in ("site", "connection", "state", "last contact", "counted", "last refusal"):
        table.add_column(heading)
    for site_name, site in shown["sites"].items():
        table.add_row(
            site_name,
            {None: "-", True: "online", False: "offline"}[site["online"]],
            site["state"],
            _ago(site["last_contact"], now),
            f"{site['counted']} of {shown['rounds_done']}",
            site["last_refusal"] or "",
        )
    console.print(table)
    for card in shown["data_cards"].values():
        show_card(DataCard.model_validate_json(json.dumps(card)), console)
    for notice in shown["certificates"]:
        console.print(f"{notice['level']}: {Notice(**notice)}", soft_wrap=True)


def read_status(config: ServerConfig) -> ServerStatus | None:
    """What the running server last wrote; None when it never ran."""
    path = config.state / STATUS_FILE
    try:
        return ServerStatus.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            seen = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        else:
            seen = str(error.strerror)
        raise DataError(
            "cannot read the server's status",
            where=str(path),
            seen=seen,
            remedy="Check its permissions or remove it; a running server writes it again.",
        ) from None


def is_alive(found: ServerStatus) -> bool:
    """Whether the process that wrote the status is still there, not another of its number."""
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    began = _process_start(found.pid)
    started = _time(found.started)
    return began is None or started is None or began <= started.timestamp() + _PID_REUSE_S


def is_complete(output: Path) -> bool:
    """Whether `run.json` says that the run came to its end."""
    try:
        record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("complete") is True


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


def _read_records(output: Path) -> list[dict[str, Any]]:
    path = output / "rounds.jsonl"
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise DataError(
            "cannot read the record of rounds",
            where=str(path),
            seen="a line is not JSON",
            remedy="Start the server again: it makes this file anew from its checkpoints.",
        ) from None


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
        before = {"waiting": "was waiting for sites", "round": f"was in round {found.round}"}
        return f"stopped ({before.get(found.phase, f'after round {found.round}')})"
    # a server that hangs is alive as well
    updated = _time(found.updated)
    silence = 0.0 if updated is None else (now - updated).total_seconds()
    silent = f", no news for {_span(silence)}" if silence > _SILENCE_S else ""
    if found.phase == "waiting":
        admitted = roster.admitted_keys
        online = sum(site.online for name, site in found.sites.items() if name in admitted)
        return f"waiting for sites, {online} of {len(admitted)} online{silent}"
    text = f"round {found.round} of {found.rounds}"
    began = _time(found.round_started)
    if began is not None:
        text += f", for {_span((now - began).total_seconds())}"
        if found.deadline_s is not None:
            left = found.deadline_s - (now - began).total_seconds()
            text += f", closes in {_span(left)}" if left > 0 else ", past its deadline"
    return text + silent


def _describe_site(
    name: str, roster: Roster, found: ServerStatus | None, trained: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One site; what only a running server knows is null without one."""
    entry = roster.sites.get(name)
    seen = None if found is None else found.sites.get(name, _NOT_SEEN)
    refusals = [
        f"round {record['round']}: {record['refused'][name]}"
        for record in trained
        if name in record.get("refused", {})
    ]
    removed = entry is None or entry.removed is not None
    return {
        "admitted": None if entry is None else entry.admitted,
        "removed": None if entry is None else entry.removed,
        "online": None if seen is None else seen.online,
        "last_contact": None if seen is None else seen.last_contact,
        "state": "removed" if removed else "-" if seen is None else seen.state,
        "counted": sum(name in record.get("counted", {}) for record in trained),
        "last_refusal": refusals[-1] if refusals else None,
    }


def _data_cards(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the sites chose to tell of their cohorts with their first answers."""
    replies = records[0].get("statistics", {}) if records else {}
    found = {site: reply.get("data_card") for site, reply in sorted(replies.items())}
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


def _ago(text: str | None, now: datetime) -> str:
    time = _time(text)
    return "-" if time is None else f"{_span((now - time).total_seconds())} ago"


def _span(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"


def _time(text: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
