"""`lift-server check`: test everything that a start needs. Changes nothing."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature

from lift.config.kit import CA_FILE
from lift.config.server import ServerConfig
from lift.errors import LiftError
from lift.generator.card import WEIGHTS_FILE, bundle_folder, check_task, read_card
from lift_server.sites import certificates
from lift_server.sites.certificates import CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE
from lift_server.sites.provisioning import load_settings
from lift_server.sites.roster import Roster, plan_fingerprint
from lift_server.watch.status_view import is_alive, read_status

EXECUTOR_FILE: Final = "executor.secret"
_LEAST_FREE_BYTES: Final = 200 << 20
_AMPLE_FREE_BYTES: Final = 2 << 30
_LOCAL: Final = frozenset({"127.0.0.1", "localhost", "::1"})


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


def run_checks(folder: Path, now: datetime) -> Iterator[Verdict]:
    """Yield the verdicts of `check`, each as soon as it is known. Changes nothing."""
    try:
        config = load_settings(folder)
    except LiftError as error:
        yield _problem("settings", error)
        return
    rounds = config.plan.federation.rounds
    yield Verdict("settings", "ok", f"'{config.name}' at {config.address}, {rounds} rounds")
    yield from _check_certificates(config, now)
    yield from _check_key_modes(config)
    yield _check_roster(config)
    yield from _check_ports(config)
    yield from _check_page(config)
    yield from _check_disk(config)
    yield _check_generator(config)


def _check_certificates(config: ServerConfig, now: datetime) -> Iterator[Verdict]:
    folder = config.certificates
    try:
        ca = certificates.read_certificate(folder / CA_FILE)
        server = certificates.read_certificate(folder / SERVER_FILE)
        key = certificates.read_private_key(folder / SERVER_KEY_FILE)
        notices = certificates.certificate_notices(folder, now)
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
    host, hosts = certificates.address_host(config.address), certificates.certificate_hosts(server)
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
            yield Verdict("key mode", "problem", detail, f"chmod 600 {shlex.quote(str(path))}")
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
        found = read_status(config)
    except LiftError as error:
        yield _problem("server", error)
        found = None
    ours = found if found is not None and is_alive(found) else None
    ports = [(config.listen_host, config.listen_port), ("127.0.0.1", config.control_port)]
    if config.health_port is not None:
        ports.append(("127.0.0.1", config.health_port))
    if config.page_port is not None:
        ports.append((config.page_host, config.page_port))
    for host, port in ports:
        seen = _port_error(host, port)
        if seen is None:
            yield Verdict("port", "ok", f"{port} is free")
        elif seen == errno.EADDRINUSE and ours is not None:
            yield Verdict("port", "ok", f"{port} is held by the running server (pid {ours.pid})")
        else:
            fix = "Stop the program that holds it, or set another port in server.yaml."
            yield Verdict("port", "problem", f"{port}: {os.strerror(seen)}", fix, "connection")


def _check_page(config: ServerConfig) -> Iterator[Verdict]:
    """The page has no password: on another interface than this machine's own it is a choice."""
    if config.page_port is None or config.page_host in _LOCAL:
        return
    detail = f"the live page listens on {config.page_host} and asks for no password"
    fix = "Set page_host: 127.0.0.1, or put a web server with a login in front of it."
    yield Verdict("page", "warning", detail, fix)


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
        folder = bundle_folder(config.generator)
        fingerprint = plan_fingerprint(config)
        check_task(read_card(folder), config.plan.task, config.plan.preprocessing)
    except LiftError as error:
        return _problem("generator", error)
    if not (folder / WEIGHTS_FILE).is_file():
        fix = "Correct the plan, or choose the bundle that was trained for it."
        return Verdict("generator", "problem", f"its {WEIGHTS_FILE} is missing", fix, "data")
    return Verdict("generator", "ok", f"fingerprint {fingerprint[:16]}..., fits the task")


def _problem(check_name: str, error: LiftError) -> Verdict:
    detail = "; ".join(part for part in (error.what, *error.seen.splitlines()) if part)
    return Verdict(check_name, "problem", detail, error.remedy, error.label)
