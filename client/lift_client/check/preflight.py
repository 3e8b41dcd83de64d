"""`lift-client check`: test everything that could stop this site from taking part.

The connection is tried exactly as the federation will use it: one HTTPS request to the kit's
address, trusting the kit's authority alone, through HTTPS_PROXY where the environment names one.
Nothing but this request leaves, and nothing is changed.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from lift.config.cohort import AutoData, TableData
from lift.config.kit import CA_FILE, Kit
from lift.config.site import SiteConfig
from lift.errors import LiftError
from lift.protocol.local_port import free_local_port
from lift.protocol.messages import PROTOCOL_VERSION, VERSION_HEADER
from lift_client.check.budget_check import check_budget
from lift_client.check.verdict import Status, Verdict, problem
from lift_client.enrolment import check_key, read_authority, read_kit

if TYPE_CHECKING:
    import httpx

_NOTICE_DAYS: Final = 60
# admission signatures allow 300 s; this leaves room for a clock that goes on drifting
_LARGEST_SKEW_S: Final = 240
_NOTABLE_SKEW_S: Final = 60
_LEAST_FREE_GB: Final = 1.0
_OTHER_NAME: Final = (
    "wrong name: the server's certificate is not for '{host}'",
    "Ask the coordinator for the right address, or for a certificate with this name in it.",
)
# by OpenSSL's number of the reason why a certificate is not trusted (x509_vfy.h)
_NOT_TRUSTED: Final = {
    9: (
        "not yet valid: a server certificate starts in the future",
        "This machine's clock is slow, or the coordinator's is fast. Set this clock with NTP.",
    ),
    10: (
        "expired: a server certificate is no longer valid",
        "Ask the coordinator to renew it; check that this machine's clock is right.",
    ),
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}
_FOREIGN: Final = (
    "foreign authority: the server's certificate is not signed by the kit's",
    "Do not go on. Either something opens TLS on the way (proxy, antivirus: ask IT to exempt this "
    "address), or the kit is an old one: compare its ca_sha256 by telephone.",
)
_UNREACHABLE_FIX: Final = (
    "Ask the hospital's IT to allow outbound HTTPS to this address; if the internet is reached "
    "through a proxy, set HTTPS_PROXY. Else ask the coordinator whether the server is up."
)
_SERVER_FIX: Final = "Ask the coordinator whether the server is up; then run this check again."


def run_checks(
    site_file: Path,
    *,
    quick: bool = False,
    timed: bool = False,
    admission_check: Callable[[], str | None] | None = None,
    clock: Callable[[], float] = time.time,
    timeout_s: float = 10.0,
) -> Iterator[Verdict]:
    """Yield the verdicts, each as soon as it is known.

    Args:
        site_file: the site's settings.
        quick: leave out what needs torch or the volumes: device, generator, data.
        timed: also prepare one patient and train a few steps.
        admission_check: asks the server whether it admits the site's key: None when it does,
            else why not; called only when the server was reached.
        clock: seconds since 1970.
        timeout_s: for each step of the connection; a check never waits more than 3 of them.
    """
    try:
        config = SiteConfig.from_yaml(site_file).under(site_file.parent)
    except LiftError as error:
        yield problem("settings", error)
        return
    yield Verdict("settings", "ok", f"site '{config.name}'")
    kit: Kit | None = None
    try:
        kit = read_kit(config.kit, site=config.name)
        yield Verdict("kit", "ok", f"federation '{kit.federation}' at {kit.address}")
    except LiftError as error:
        yield problem("kit", error)
    try:
        yield Verdict("key", "ok", check_key(config.key))
    except LiftError as error:
        yield problem("key", error)
    if kit is None:
        yield _admission(None)
    else:
        yield from check_connection(
            config, kit, admission_check=admission_check, clock=clock, timeout_s=timeout_s
        )
    yield _local_port(config)
    yield _policy(config)
    yield _disk(config)
    if not quick:
        yield _device(config)
        if kit is not None:
            yield _generator(config, kit)
            yield _data(config, kit)
            if timed:
                yield _timing(config, kit)
        yield from check_budget(config)


def check_connection(
    config: SiteConfig,
    kit: Kit,
    *,
    admission_check: Callable[[], str | None] | None,
    clock: Callable[[], float] = time.time,
    timeout_s: float = 10.0,
) -> Iterator[Verdict]:
    """Yield the verdicts on the way to the server; see `run_checks`."""
    now = datetime.fromtimestamp(clock(), UTC)
    yield _expiry("CA certificate", read_authority(config.kit), now)
    reached = False
    for verdict in _connection(kit, config.kit / CA_FILE, clock, timeout_s):
        yield verdict
        reached = verdict.check == "server" and verdict.status != "problem"
    yield _admission(admission_check if reached else None)


@dataclass
class _Contact:
    """What one request to the server met on its way."""

    host: str = ""
    """What was dialled: the server, or the proxy before it."""
    port: int = 0
    addresses: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """Steps: `connection.*` is to what was dialled, `proxy.*` goes through the proxy."""
    error: Exception | None = None
    status: int = 0
    message_version: str = ""
    server_time: float | None = None
    sent_at: float = 0.0
    received_at: float = 0.0
    tls_version: str = ""
    certificate: x509.Certificate | None = None

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.started"):
            self.host, self.port = str(info["host"]), int(info["port"])
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            self.addresses = sorted({str(entry[4][0]) for entry in found})
        self.events.append(event)


def _contact(address: str, ca: Path, clock: Callable[[], float], timeout_s: float) -> _Contact:
    import httpx  # a quarter of a second that other commands need not pay

    contact = _Contact()

    def ask() -> None:
        try:
            # as Flower's own connection: this authority alone, name checked, nothing redirected
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cafile=ca)
            with httpx.Client(verify=context, timeout=timeout_s, trust_env=True) as client:
                contact.sent_at = clock()
                seams = {"trace": contact.trace}
                # the connection is still open here: its certificate can be looked at
                with client.stream("GET", f"https://{address}/health", extensions=seams) as reply:
                    contact.received_at = clock()
                    _take(contact, reply)
        except Exception as error:  # every failure is a verdict
            contact.error = error

    # a name look-up has no time-out of its own
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(3 * timeout_s)
    if thread.is_alive():
        contact.error = TimeoutError(f"no answer within {3 * timeout_s:.0f} s")
    return contact


def _take(contact: _Contact, response: httpx.Response) -> None:
    contact.status = response.status_code
    contact.message_version = response.headers.get(VERSION_HEADER, "")
    try:
        contact.server_time = parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        contact.server_time = None
    stream = response.extensions["network_stream"]
    secured: ssl.SSLObject | None = stream.get_extra_info("ssl_object")
    if secured is not None:
        contact.tls_version = secured.version() or ""
        contact.certificate = x509.load_der_x509_certificate(secured.getpeercert(True) or b"")


def _connection(
    kit: Kit, ca: Path, clock: Callable[[], float], timeout_s: float
) -> Iterator[Verdict]:
    """Name, network, TLS, server certificate, clock, server; ends at the first that fails."""
    contact = _contact(kit.address, ca, clock, timeout_s)
    causes = list(_causes(contact.error))
    target = kit.address.rpartition(":")[0].strip("[]")
    dialled = f"{contact.host}:{contact.port}"
    proxied = dialled != kit.address.lower().replace("[", "").replace("]", "")
    if not contact.addresses:
        reason = next((str(e) for e in causes if isinstance(e, OSError)), str(contact.error))
        if not contact.host:
            yield _failed("network", reason, "Correct HTTPS_PROXY: it must be http://HOST:PORT.")
            return
        fix = " and HTTPS_PROXY." if proxied else ", or ask the coordinator for the address."
        seen = f"the name '{contact.host}' cannot be resolved: {reason}"
        yield _failed("name", seen, f"Check the DNS settings of this machine{fix}")
        return
    via = f" through the proxy {dialled}" if proxied else ""
    rest = f"; '{target}' is left to the proxy" if proxied else ""
    yield Verdict("name", "ok", f"{contact.host} is {', '.join(contact.addresses)}{rest}")
    if "connection.connect_tcp.complete" not in contact.events:
        yield _failed("network", f"{dialled}: {_reason(causes)}", _UNREACHABLE_FIX)
        return
    tls = "proxy.start_tls" if proxied else "connection.start_tls"
    if proxied and f"{tls}.started" not in contact.events:
        yield _failed(
            "network",
            f"the proxy {dialled} does not connect to {kit.address}: {_reason(causes)}",
            f"Ask the hospital's IT to allow CONNECT to {kit.address}, and check the proxy's "
            "user and password in HTTPS_PROXY.",
        )
        return
    yield Verdict("network", "ok", f"{kit.address}{via}")
    if f"{tls}.complete" not in contact.events:
        yield _tls_failure(causes, target)
        return
    yield Verdict("TLS", "ok", f"{contact.tls_version or 'secured'}, signed by the kit's authority")
    if not contact.status:
        yield _failed("server", f"no answer to an HTTPS request: {_reason(causes)}", _SERVER_FIX)
        return
    if contact.certificate is not None:
        now = datetime.fromtimestamp(contact.received_at, UTC)
        yield _expiry("server certificate", contact.certificate, now)
    yield _clock_verdict(contact)
    if contact.status != 200:
        yield _failed("server", f"it answers with HTTP status {contact.status}", _SERVER_FIX)
        return
    yield _version(contact.message_version)
    yield Verdict("server", "ok", "healthy")


def _version(theirs: str) -> Verdict:
    if theirs == str(PROTOCOL_VERSION):
        return Verdict("version", "ok", f"both sides speak version {theirs} of the messages")
    return Verdict(
        "version",
        "problem",
        f"the server speaks version {theirs or 'unknown'} of the messages, this site "
        f"{PROTOCOL_VERSION}",
        "Ask the coordinator which release of the program the federation uses, and install it.",
        "version",
    )


def _tls_failure(causes: Sequence[BaseException], host: str) -> Verdict:
    refused = next((e for e in causes if isinstance(e, ssl.SSLCertVerificationError)), None)
    if refused is None:
        if any(isinstance(error, ssl.SSLError) for error in causes):
            return _failed(
                "TLS",
                f"what answers there does not speak TLS as needed: {_reason(causes)}",
                "Check the address in the kit, and whether a firewall answers in its place.",
            )
        return _failed("TLS", f"the handshake was cut off: {_reason(causes)}", _UNREACHABLE_FIX)
    seen, fix = _NOT_TRUSTED.get(refused.verify_code, _FOREIGN)
    return _failed("TLS", seen.format(host=host), fix)


def _clock_verdict(contact: _Contact) -> Verdict:
    if contact.server_time is None:
        fix = "Check that this machine sets its clock by NTP."
        return Verdict("clock", "warning", "the server sends no time", fix)
    # the header is cut to whole seconds: half a second is its expected remainder
    ours = (contact.sent_at + contact.received_at) / 2
    ahead_s = ours - (contact.server_time + 0.5)
    seen = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server"
    if abs(ahead_s) > _LARGEST_SKEW_S:
        return _failed(
            "clock",
            f"{seen}; at most {_LARGEST_SKEW_S} s, or the server refuses this site's signature",
            "Set this machine's clock with NTP. If it is right, inform the coordinator.",
        )
    if abs(ahead_s) > _NOTABLE_SKEW_S:
        return Verdict("clock", "warning", seen, "Set this machine's clock with NTP.")
    return Verdict("clock", "ok", seen)


def _expiry(check: str, certificate: x509.Certificate, now: datetime) -> Verdict:
    end = certificate.not_valid_after_utc
    days = math.floor((end - now).total_seconds() / 86400)
    seen = f"valid until {end:%Y-%m-%d} ({days} days)"
    fix = "Ask the coordinator to renew it" + (" and send a new kit." if "CA" in check else ".")
    if now >= end:
        return _failed(check, f"it expired on {end:%Y-%m-%d}", fix)
    if days <= _NOTICE_DAYS:
        return Verdict(check, "warning", seen, fix)
    return Verdict(check, "ok", seen)


def _admission(ask: Callable[[], str | None] | None) -> Verdict:
    if ask is None:
        return Verdict("admission", "skipped", "the server was not asked for this site's key")
    try:
        refusal = ask()
    except LiftError as error:
        return problem("admission", error)
    if refusal is None:
        return Verdict("admission", "ok", "the server admits this site's key")
    fix = "Send site.pub to the coordinator, and compare the key's fingerprint by telephone."
    return Verdict("admission", "problem", refusal, fix, "policy")


def _local_port(config: SiteConfig) -> Verdict:
    """Whether something else listens where the two processes of the client meet."""
    port = config.local_port
    if free_local_port(port) == port:
        return Verdict("local port", "ok", f"127.0.0.1:{port} is free")
    return Verdict(
        "local port",
        "warning",
        f"127.0.0.1:{port} is in use: by this client if it runs; else it will take a free port",
        "If the service unit allows this port alone, set another `local_port` in both.",
    )


def _policy(config: SiteConfig) -> Verdict:
    """Summarise what the site's policy lets out. Reads only the settings."""
    policy = config.policy
    once, often = policy.largest_statistics_bytes, policy.largest_update_bytes
    seen = (
        f"privacy: {', '.join(policy.privacy_modes)}; at most {once / 1e6:g} MB leave once as "
        f"statistics, and {often / 1e6:g} MB in an answer of each of {policy.most_rounds} rounds"
    )
    return Verdict("policy", "ok", seen)


def _disk(config: SiteConfig) -> Verdict:
    cache = config.cache.folder or config.folder / "cache"
    for folder in (config.folder, cache):
        place = _existing(folder)
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            fix = "Let the user that runs this write there, or correct `folder` and cache.folder."
            return Verdict("disk", "problem", f"'{folder}' cannot be written", fix, "data")
    free_gb = shutil.disk_usage(_existing(cache)).free / 1e9
    used_gb = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / 1e9
    fix = "Free some space, or set cache.folder to a larger disk or a smaller cache.largest_gb."
    if free_gb < _LEAST_FREE_GB:
        return Verdict("disk", "problem", f"{free_gb:.1f} GB free", fix, "data")
    seen = f"{free_gb:.0f} GB free; the cache may take {config.cache.largest_gb:g} GB"
    if free_gb + used_gb < config.cache.largest_gb:
        return Verdict("disk", "warning", seen, fix)
    return Verdict("disk", "ok", seen)


def _device(config: SiteConfig) -> Verdict:
    import torch

    from lift.device import resolve_device

    try:
        device = resolve_device(config.device)
    except LiftError as error:
        return problem("device", error)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Verdict("device", "ok", name)


def _generator(config: SiteConfig, kit: Kit) -> Verdict:
    import torch

    from lift.generator.card import bundle_folder
    from lift.tasks.registry import load_generator

    try:
        cpu = torch.device("cpu")
        folder = bundle_folder(config.generator)
        load_generator(folder, expected_fingerprint=kit.generator_fingerprint, device=cpu)
    except LiftError as error:
        return problem("generator", error)
    return Verdict("generator", "ok", f"fingerprint {kit.generator_fingerprint[:16]}..., the kit's")


def _data(config: SiteConfig, kit: Kit) -> Verdict:
    from lift.cohort.guess import guess_layout
    from lift.cohort.layouts import list_patients, tells_subjects
    from lift.cohort.patients import some
    from lift.cohort.vetoes import known_vetoes
    from lift.cohort.withdrawn import left_out

    channels = [*kit.task.source, kit.task.target]
    data, found_out = config.data, ""
    try:
        if isinstance(data, AutoData):
            guess = guess_layout(data, channels)
            data = guess.data
            found_out = f"; layout found out: {data.layout} ({guess.evidence})"
        usable, refused = list_patients(data, channels, without=left_out(config))
        known = known_vetoes(config, channels, kit.grid, usable)
    except LiftError as error:
        return problem("data", error)
    persons = len({one.subject for one in usable})
    seen = (
        f"{len(usable)} examinations of {persons} persons with all channels, {len(refused)} "
        f"without{found_out}"
    )
    if isinstance(data, TableData) and not tells_subjects(data):
        seen += "; the table has no column `subject`: each row is taken for a person"
    if known.unexamined:
        seen += f"; images not looked at yet: {known.unexamined}"
    if known.vetoed:
        left = len(usable) - len(known.vetoed)
        seen += (
            f"; vetoed by the image checks and left out: {len(known.vetoed)} "
            f"({some(sorted(known.vetoed))}), so {left} take part"
        )
        vetoed: Status = "warning" if left else "problem"
        fix = "`lift-client check --images` says why, and what to do."
        return Verdict("data", vetoed, seen, fix, "" if left else "data")
    if not refused:
        return Verdict("data", "ok", seen)
    first = refused[0].reason
    seen += f" ({some([one.patient for one in refused])}); the first: {first.what}, {first.seen}"
    status: Status = "warning" if usable else "problem"
    return Verdict("data", status, seen, first.remedy, "" if usable else "data")


def _timing(config: SiteConfig, kit: Kit) -> Verdict:
    from lift_client.check.timing import (
        check_timing,  # torch takes seconds: quick checks go without
    )

    return check_timing(config, kit)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _failed(check: str, seen: str, fix: str) -> Verdict:
    return Verdict(check, "problem", seen, fix, "connection")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(causes: Sequence[BaseException]) -> str:
    """The failure as the operating system or the proxy tells it."""
    named = [error for error in causes if str(error)]
    return str(named[-1]) if named else type(causes[0]).__name__ if causes else "no reason given"
