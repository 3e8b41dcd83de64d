"""`lift-server`: the coordinator's commands. All but the start itself answer without torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import click
import typer
from cryptography.exceptions import InvalidSignature
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.table import Table

from lift.commands import run_command
from lift.config.kit import CA_FILE
from lift.config.server import ServerConfig
from lift.errors import EXIT_CODES, CheckpointError, ConfigError, DataError, LiftError
from lift.files import file_digest, write_atomically
from lift_server import provisioning
from lift_server.provisioning import (
    CA_KEY_FILE,
    CONFIG_FILE,
    SERVER_FILE,
    SERVER_KEY_FILE,
    Notice,
    Roster,
)

PROGRAM = "lift-server"
STATUS_FILE: Final = "status.json"
EXECUTOR_FILE: Final = "executor.secret"
RELEASED: Final = ("mixer.safetensors", "run.json", "rounds.jsonl", "metrics.json")
_LEAST_FREE_BYTES: Final = 200 << 20
_AMPLE_FREE_BYTES: Final = 2 << 30
# the first of these that a problem has is the one to mend first: it decides the exit code
_WORST_FIRST: Final = ("config", "version", "connection", "data", "quorum")
# a process that began later than this after the record did is another one with the same number
_PID_REUSE_S: Final = 60.0
_SILENCE_S: Final = 60.0
_PIPE_WIDTH: Final = 120

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Coordinate a federation: admit sites, run the rounds, ship the result.",
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help=f"Folder of {CONFIG_FILE}.")]


class SiteStatus(BaseModel):
    """One site, as the running server sees it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    online: bool = False
    last_contact: str | None = None
    state: Literal["idle", "asked", "answered", "missing"] = "idle"


_NOT_SEEN: Final = SiteStatus()


class ServerStatus(BaseModel):
    """`status.json`, which the running server writes at every change; unknown keys are left."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pid: int
    started: str
    phase: Literal["waiting", "round", "done", "stopped"]
    round: int
    rounds: int
    round_started: str | None = None
    deadline_s: float | None = None
    sites: dict[str, SiteStatus] = {}
    updated: str


@dataclass(frozen=True)
class Verdict:
    """One line of `check`.

    Attributes:
        check: what was tested.
        verdict: warning: a start works; problem: it does not, or no site can connect.
        detail: what was seen.
        fix: what to do; empty when all is well.
        label: kind of the problem in the table of exit codes.
    """

    check: str
    verdict: Literal["ok", "warning", "problem"]
    detail: str
    fix: str = ""
    label: str = "config"


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help=f"Settings (YAML); default: {CONFIG_FILE} here.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")
    ] = False,
) -> None:
    """Start the federation, or resume it, and stay until it ends.

    Run the same command again to resume.
    """
    if context.invoked_subcommand is not None:
        if config is not None or dry_run:
            raise click.UsageError(
                f"--config and --dry-run start the server: leave out '{context.invoked_subcommand}'"
            )
        return
    path = config or Path(CONFIG_FILE)
    settings = ServerConfig.from_yaml(path).under(path.absolute().parent)
    if dry_run:
        sys.stdout.write(json.dumps(_dry_run(settings), indent=2) + "\n")
        return
    from lift_server.app import serve  # torch and flwr take seconds: a typo must not wait for them

    serve(settings, Console(stderr=True))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    host: Annotated[
        list[str],
        typer.Option(help="Name or IP address that sites dial; repeat it for further ones."),
    ],
    name: Annotated[str, typer.Option(help="Name of the federation.")],
) -> None:
    """Make certificates, an empty roster of sites and a commented server.yaml."""
    provisioning.init_folder(folder, host, name)
    config = _load(folder)
    _write(
        f"made: {folder}",
        f"address: {config.address}",
        f"certificate authority: {provisioning.ca_fingerprint(config.certificates)}",
        f"keep secret: {config.certificates / CA_KEY_FILE} (makes certificates), "
        f"{config.certificates / SERVER_KEY_FILE}",
    )
    _next(
        f"edit {shlex.quote(str(folder / CONFIG_FILE))}, then for each site: "
        f"lift-server add-site {_quoted(folder)} NAME SITE.PUB"
    )


@app.command("add-site")
def add_site(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The site's name.")],
    public_key: Annotated[
        Path, typer.Argument(metavar="PUBKEY", help="The site.pub that the site sent.")
    ],
) -> None:
    """Admit one site and write its kit; nothing of any other site changes.

    A removed site can be admitted again. With the key it had this works as long as no server
    was running after the removal; else let the site enroll anew and admit the new key.
    """
    config = _load(folder)
    done = provisioning.add_site(config, name, public_key)
    said = {
        "new": f"admitted: {name}",
        "unchanged": f"{name} is admitted with this key already; its kit was written anew",
        "same_key": f"admitted again, with the key it had: {name}\n"
        "if the server refuses this key, let the site enroll anew and admit the new one",
        "new_key": f"admitted again, with a new key: {name}",
    }
    _write(
        said[done.change],
        f"key: {done.fingerprint}",
        f"kit: {done.kit}",
        "compare both fingerprints with the site by telephone; the authority's: "
        f"{done.ca_fingerprint}",
    )
    _next(
        f"send the folder {shlex.quote(str(done.kit))} to the site (nothing in it is secret); "
        "a running server takes the site from its next round"
    )


@app.command("remove-site")
def remove_site(
    folder: Folder, name: Annotated[str, typer.Argument(help="The site's name.")]
) -> None:
    """Remove one site: a running server refuses it from the next round."""
    changed = provisioning.remove_site(_load(folder), name)
    _write(f"removed: {name}" if changed else f"{name} was removed before; nothing was changed")
    _next(f"lift-server check {_quoted(folder)}   # is the quorum still within reach?")


@app.command()
def renew(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or IP address; default: those of the present certificate."),
    ] = None,
) -> None:
    """Make a new server certificate from the same authority: every kit stays good."""
    config = _load(folder)
    made = provisioning.renew_server_certificate(config.certificates, host or _hosts(config))
    _write(
        f"valid until: {made.not_valid_after_utc:%Y-%m-%d}",
        f"hosts: {', '.join(provisioning.certificate_hosts(made))}",
    )
    _next("stop the server and start it again: it reads the certificate at its start")


@app.command()
def check(folder: Folder) -> None:
    """Test everything that a start needs, one verdict each; nothing is changed."""
    verdicts: list[Verdict] = []
    for verdict in run_checks(folder, datetime.now(UTC)):
        verdicts.append(verdict)
        lines = [f"{verdict.check:<14} {verdict.verdict:<8} {verdict.detail}"]
        lines += [f"{'':<23} {line}" for line in verdict.fix.splitlines()]
        _write(*lines)
    problems = [verdict for verdict in verdicts if verdict.verdict == "problem"]
    if problems:
        _next(f"mend what is marked `problem`, then: lift-server check {_quoted(folder)}")
        labels = [verdict.label for verdict in problems]
        first = next((label for label in _WORST_FIRST if label in labels), labels[0])
        raise typer.Exit(EXIT_CODES[first].number)
    _next(f"lift-server --config {shlex.quote(str(folder / CONFIG_FILE))}")


@app.command()
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the running federation: its round, each site with its last contact, certificates."""
    config = _load(folder)
    now = datetime.now(UTC)
    shown = describe(config, now)
    shown["next"] = str(shown["next"]).replace("DIR", _quoted(folder))
    if as_json:
        sys.stdout.write(json.dumps(shown, indent=2, allow_nan=False) + "\n")
        return
    console = Console(
        width=None if sys.stdout.isatty() else _PIPE_WIDTH, markup=False, highlight=False
    )
    console.print(f"{config.name}: {shown['summary']}", soft_wrap=True)
    table = Table()
    for heading in ("site", "connection", "state", "last contact", "counted", "last refusal"):
        table.add_column(heading)
    for name, site in shown["sites"].items():
        table.add_row(
            name,
            {None: "-", True: "online", False: "offline"}[site["online"]],
            site["state"],
            _ago(site["last_contact"], now),
            f"{site['counted']} of {shown['rounds_done']}",
            site["last_refusal"] or "",
        )
    console.print(table)
    for notice in shown["certificates"]:
        console.print(f"{notice['level']}: {Notice(**notice)}", soft_wrap=True)
    _next(shown["next"])


@app.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
) -> None:
    """Copy the finished mixer and its records into a new folder, with SHA256SUMS."""
    run = _load(folder).output
    mixer = run / RELEASED[0]
    if not mixer.is_file() or not _complete(run):
        raise CheckpointError(
            "the run has no finished mixer",
            where=str(run),
            seen="run.json does not say that the run is complete"
            if mixer.is_file()
            else f"there is no {RELEASED[0]}",
            remedy="Nothing was written. Let `lift-server` run to its end: a partial run is "
            "never shipped.",
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            "the folder is in use",
            where=str(output),
            seen="it exists and is not empty",
            remedy="Nothing was changed. Choose another folder.",
        )
    sums = []
    for name in RELEASED:
        if (run / name).is_file():
            content = (run / name).read_bytes()
            write_atomically(output / name, content)
            # of what the disk gives back, against what was read: a bad copy is found here
            digest = file_digest(output / name)
            if digest != hashlib.sha256(content).hexdigest():
                raise DataError(
                    "a copy differs from its source",
                    where=str(output / name),
                    seen="other bytes came back from the disk",
                    remedy="Check the disk, remove the folder and run the same command again.",
                )
            sums.append(f"{digest}  {name}\n")
    write_atomically(output / "SHA256SUMS", "".join(sums).encode())
    _write(f"exported: {output}", *(line.rstrip() for line in sums))
    _next(f"cd {_quoted(output)} && sha256sum -c SHA256SUMS")


def run_checks(folder: Path, now: datetime) -> Iterator[Verdict]:
    """The verdicts of `check`, each as soon as it is known; nothing is changed."""
    try:
        config = _load(folder)
    except LiftError as error:
        yield _problem("settings", error)
        return
    rounds = config.plan.federation.rounds
    yield Verdict("settings", "ok", f"'{config.name}' at {config.address}, {rounds} rounds")
    yield from _check_certificates(config, now)
    yield from _check_key_modes(config)
    yield _check_roster(config)
    yield from _check_ports(config)
    yield from _check_disk(config)
    yield _check_generator(config)


def describe(config: ServerConfig, now: datetime) -> dict[str, Any]:
    """What `status` shows, as plain data.

    Raises:
        ConfigError: the roster cannot be read.
        DataError: the status file or the record of rounds is damaged.
    """
    found = _read_status(config)
    running = found is not None and _alive(found)
    complete = _complete(config.output)
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
        "certificates": [asdict(notice) for notice in _notices(config, now)],
        "next": _what_next(running=running, complete=complete),
    }


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)


def _load(folder: Path) -> ServerConfig:
    return ServerConfig.from_yaml(folder / CONFIG_FILE).under(folder)


def _dry_run(config: ServerConfig) -> dict[str, object]:
    """The resolved plan and what a run would send, without starting anything."""
    from lift.assembly import plan_mixer
    from lift.device import resolve_device
    from lift.generator.bundle import check_task, load_bundle

    generator = load_bundle(
        provisioning.bundle_folder(config.generator),
        expected_fingerprint=config.plan.generator_fingerprint,
        device=resolve_device("cpu"),
    )
    plan = config.plan.model_copy(update={"generator_fingerprint": generator.fingerprint})
    check_task(generator.card, plan.task, plan.preprocessing)
    parameters = plan_mixer(plan, generator).parameter_count()
    return {
        "plan": plan.model_dump(mode="json"),
        "plan_digest": plan.digest(),
        "sites": list(Roster.read(config.sites).admitted_keys),
        "mixer_parameters": parameters,
        "update_bytes_by_round_and_site": parameters
        * (2 if plan.federation.update_dtype == "float16" else 4),
        "rounds": plan.federation.rounds,
        "privacy": "none: nobody adds noise",
    }


def _hosts(config: ServerConfig) -> Sequence[str]:
    """What the server's certificate is for now, and the address that sites dial."""
    address = provisioning.address_host(config.address)
    path = config.certificates / SERVER_FILE
    present = (
        provisioning.certificate_hosts(provisioning.read_certificate(path)) if path.exists() else ()
    )
    return (address, *present)


def _check_certificates(config: ServerConfig, now: datetime) -> Iterator[Verdict]:
    folder = config.certificates
    try:
        ca = provisioning.read_certificate(folder / CA_FILE)
        server = provisioning.read_certificate(folder / SERVER_FILE)
        key = provisioning.read_private_key(folder / SERVER_KEY_FILE)
        notices = provisioning.certificate_notices(folder, now)
    except LiftError as error:
        yield _problem("certificates", error)
        return
    renewing = "`lift-server renew` makes a new one; no kit has to be sent again."
    offline = "" if (folder / CA_KEY_FILE).exists() else f"; {CA_KEY_FILE} is kept elsewhere"
    yield Verdict("certificates", "ok", f"present{offline}")
    if key.public_key() == server.public_key():
        yield Verdict("server key", "ok", "belongs to the server's certificate")
    else:
        detail = f"{SERVER_KEY_FILE} is not the key of {SERVER_FILE}"
        yield Verdict("server key", "problem", detail, renewing, "connection")
    try:
        server.verify_directly_issued_by(ca)
        yield Verdict("chain", "ok", f"{SERVER_FILE} was issued by {CA_FILE}")
    except (ValueError, TypeError, InvalidSignature):
        detail = f"{SERVER_FILE} was not issued by {CA_FILE}: every site refuses it"
        yield Verdict("chain", "problem", detail, renewing, "connection")
    host, hosts = provisioning.address_host(config.address), provisioning.certificate_hosts(server)
    if host.lower() in hosts:
        yield Verdict("host", "ok", f"the certificate names {host}")
    else:
        detail = f"sites dial {host}; the certificate names {', '.join(hosts) or 'no host'}"
        yield Verdict("host", "problem", detail, renewing, "connection")
    for notice in notices:
        detail = f"{notice.certificate} {notice.text}"
        yield Verdict("expiry", notice.level, detail, notice.remedy, "connection")
    if not notices:
        ends = min(ca.not_valid_after_utc, server.not_valid_after_utc)
        yield Verdict("expiry", "ok", f"valid until {ends:%Y-%m-%d}")


def _check_key_modes(config: ServerConfig) -> Iterator[Verdict]:
    keys = [config.certificates / name for name in (CA_KEY_FILE, SERVER_KEY_FILE)]
    for path in (*keys, config.state / EXECUTOR_FILE):
        if not path.is_file():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            detail = f"others can use {path.name}: its mode is {mode:04o}"
            yield Verdict("key mode", "problem", detail, f"chmod 600 {_quoted(path)}")
        else:
            yield Verdict("key mode", "ok", f"{path.name} is the owner's alone")


def _check_roster(config: ServerConfig) -> Verdict:
    try:
        admitted = list(Roster.read(config.sites).admitted_keys)
    except LiftError as error:
        return _problem("sites", error)
    needed = config.plan.federation.quorum_sites
    detail = f"{len(admitted)} admitted; the quorum is {needed or 'all of them'}"
    if len(admitted) >= max(needed, 1):
        return Verdict("sites", "ok", detail)
    fix = "Admit more sites (`lift-server add-site`), or lower plan.federation.quorum_sites."
    return Verdict("sites", "problem", detail, fix, "quorum")


def _check_ports(config: ServerConfig) -> Iterator[Verdict]:
    try:
        found = _read_status(config)
    except LiftError as error:
        yield _problem("server", error)
        found = None
    ours = found if found is not None and _alive(found) else None
    ports = [(config.listen_host, config.listen_port), ("127.0.0.1", config.control_port)]
    if config.health_port is not None:
        ports.append(("127.0.0.1", config.health_port))
    for host, port in ports:
        seen = _port_error(host, port)
        if seen is None:
            yield Verdict("port", "ok", f"{port} is free")
        elif seen == errno.EADDRINUSE and ours is not None:
            yield Verdict("port", "ok", f"{port} is held by the running server (pid {ours.pid})")
        else:
            fix = "Stop the program that holds it, or set another port in server.yaml."
            yield Verdict("port", "problem", f"{port}: {os.strerror(seen)}", fix, "connection")


def _port_error(host: str, port: int) -> int | None:
    """The error number with which this port cannot be listened on; None when it can."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # as servers do: connections that are still closing do not hold a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno or errno.EIO
    return None


def _check_disk(config: ServerConfig) -> Iterator[Verdict]:
    for name, folder in (("state", config.state), ("output", config.output)):
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        fix = f"Free space, or set another folder under `{name}`."
        if not there.is_dir() or not os.access(there, os.W_OK):
            yield Verdict("disk", "problem", f"{name}: {there} cannot be written", fix, "data")
            continue
        free = shutil.disk_usage(there).free
        detail = f"{name}: {free / 1e9:.1f} GB free"
        if free < _LEAST_FREE_BYTES:
            yield Verdict("disk", "problem", detail, fix, "data")
        elif free < _AMPLE_FREE_BYTES:
            yield Verdict("disk", "warning", detail, fix, "data")
        else:
            yield Verdict("disk", "ok", detail)


def _check_generator(config: ServerConfig) -> Verdict:
    """By its card; the weights' own fingerprint is checked when the server loads them."""
    try:
        fingerprint = provisioning.plan_fingerprint(config)
        card = provisioning.read_card(config.generator)
    except LiftError as error:
        return _problem("generator", error)
    task, rules = config.plan.task, config.plan.preprocessing
    fix = "Correct the plan, or choose the bundle that was trained for it."
    if (card.source, card.target) != (task.source, task.target):
        made = f"{card.target} from {', '.join(card.source)}"
        wanted = f"{task.target} from {', '.join(task.source)}"
        return Verdict(
            "generator", "problem", f"it makes {made}; the plan wants {wanted}", fix, "config"
        )
    others = [name for name, rule in card.normalisation.items() if rules.rule(name) != rule]
    if others:
        detail = f"it was trained with another normalisation of {', '.join(others)}"
        return Verdict("generator", "problem", detail, fix, "config")
    if not (provisioning.bundle_folder(config.generator) / "weights.safetensors").is_file():
        return Verdict("generator", "problem", "its weights.safetensors is missing", fix, "data")
    return Verdict("generator", "ok", f"fingerprint {fingerprint[:16]}..., fits the task")


def _problem(check_name: str, error: LiftError) -> Verdict:
    detail = "; ".join(part for part in (error.what, *error.seen.splitlines()) if part)
    return Verdict(check_name, "problem", detail, error.remedy, error.label)


def _read_status(config: ServerConfig) -> ServerStatus | None:
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


def _alive(found: ServerStatus) -> bool:
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


def _complete(output: Path) -> bool:
    try:
        record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("complete") is True


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


def _notices(config: ServerConfig, now: datetime) -> list[Notice]:
    try:
        return provisioning.certificate_notices(config.certificates, now)
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


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _write(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _next(text: str) -> None:
    _write(f"next: {text}")
