"""The preflight against real TLS servers on loopback: each fault is told apart, by its own line."""

from __future__ import annotations

import email.utils
import ipaddress
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lift.errors import EXIT_CODES, ProtocolError
from lift.protocol.messages import PROTOCOL_VERSION, VERSION_HEADER
from lift_client.check.preflight import run_checks
from lift_client.check.verdict import Verdict
from lift_client.cli import exit_code
from tests import wording
from tests.enrolled import enrolled

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
CONNECTION = ["name", "network", "TLS", "server certificate", "clock", "server"]


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the test."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make_authority(
    common_name: str = "LiFT test authority", *, end: datetime = NOW + 3650 * DAY
) -> Authority:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW - 800 * DAY).not_valid_after(end)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Authority(key, builder.sign(key, hashes.SHA384()))


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def server_context(
    folder: Path,
    authority: Authority,
    *,
    host: str = "127.0.0.1",
    start: datetime = NOW - 400 * DAY,
    end: datetime = NOW + 400 * DAY,
) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    issuer = authority.certificate.subject
    serial = x509.random_serial_number()
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), serial)
    builder = builder.not_valid_before(start).not_valid_after(end)
    names: list[x509.GeneralName] = [x509.DNSName(host)]
    if host[0].isdigit():
        names = [x509.IPAddress(ipaddress.ip_address(host))]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(authority.key, hashes.SHA384())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / f"server-{serial}.pem"
    path.write_bytes(private + pem(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


class Health(BaseHTTPRequestHandler):
    """Answers /health as its server was told to."""

    server: HealthServer

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.send_response_only(self.server.status)
        if self.server.ahead is not None:
            date = email.utils.formatdate(time.time() + self.server.ahead, usegmt=True)
            self.send_header("Date", date)
        if self.server.version is not None:
            self.send_header(VERSION_HEADER, self.server.version)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


class HealthServer(ThreadingHTTPServer):
    """One server; `ahead`: by how many seconds its clock is, None for no Date at all."""

    version: str | None = str(PROTOCOL_VERSION)

    def __init__(self, context: ssl.SSLContext | None, status: int, ahead: float | None) -> None:
        super().__init__(("127.0.0.1", 0), Health)
        self.status, self.ahead = status, ahead
        self.asked: list[str] = []
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what these tests are about."""


class Tunnel(StreamRequestHandler):
    """A CONNECT proxy's one connection."""

    server: Proxy

    def handle(self) -> None:
        request = self.rfile.readline().decode()
        headers = list(iter(lambda: self.rfile.readline().strip(), b""))
        self.server.requests.append(request.strip())
        self.server.headers += [header.decode() for header in headers]
        if self.server.refusal:
            self.wfile.write(
                f"HTTP/1.1 {self.server.refusal}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            return
        with socket.create_connection(self.server.target) as upstream:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ends = {self.connection: upstream, upstream: self.connection}
            while True:
                for ready in select.select([*ends], [], [])[0]:
                    content = ready.recv(65536)
                    if not content:
                        return
                    ends[ready].sendall(content)


class Proxy(ThreadingTCPServer):
    """A CONNECT proxy that leads to `target` whatever name it is given."""

    daemon_threads = True

    def __init__(self, target: tuple[str, int], refusal: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.target, self.refusal = target, refusal
        self.requests: list[str] = []
        self.headers: list[str] = []


class HangUp(StreamRequestHandler):
    """Accepts, and hangs up."""

    def handle(self) -> None:
        self.rfile.read1(1)


@dataclass
class Site:
    """A site's folder, and the servers of its test."""

    folder: Path
    authority: Authority
    running: list[ThreadingTCPServer] = field(default_factory=list)

    def start(self, server: Any) -> Any:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.running.append(server)
        return server

    def serve(
        self, context: ssl.SSLContext | None, *, status: int = 200, ahead: float | None = 0
    ) -> HealthServer:
        server: HealthServer = self.start(HealthServer(context, status, ahead))
        self.write_kit(f"127.0.0.1:{server.server_port}")
        return server

    def write_kit(self, address: str) -> None:
        kit = self.folder / "kit"
        kit.mkdir(exist_ok=True)
        (kit / "ca.pem").write_bytes(pem(self.authority.certificate))
        content = {
            "federation": "brains",
            "site": "north",
            "address": address,
            "ca_sha256": self.authority.certificate.fingerprint(hashes.SHA256()).hex(),
            "generator_fingerprint": "a" * 64,
            "task": {"source": ["t1n", "t1c", "t2w"], "target": "t2f"},
        }
        (kit / "kit.json").write_text(json.dumps(content))

    def check(self, **options: Any) -> dict[str, Verdict]:
        verdicts = list(
            run_checks(self.folder / "site.yaml", **{"quick": True, "timeout_s": 5, **options})
        )
        assert len({verdict.check for verdict in verdicts}) == len(verdicts)
        assert all(verdict.fix for verdict in verdicts if verdict.status == "problem")
        return {verdict.check: verdict for verdict in verdicts}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


@pytest.fixture
def site(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    enrolled(tmp_path, "north")
    made = Site(tmp_path, authority)
    yield made
    for server in made.running:
        server.shutdown()
        server.server_close()


def problems(checks: dict[str, Verdict]) -> list[str]:
    return [name for name, verdict in checks.items() if verdict.status == "problem"]


def test_a_site_that_may_join_has_no_problem(site: Site) -> None:
    server = site.serve(server_context(site.folder, site.authority))
    checks = site.check(admission_check=lambda: None)
    assert problems(checks) == []
    assert [name for name in checks if name in CONNECTION] == CONNECTION
    assert {checks[name].status for name in CONNECTION} == {"ok"}
    assert checks["admission"].status == "ok"
    assert checks["TLS"].detail.startswith("TLSv1.3")
    assert exit_code([*checks.values()]) == 0
    assert server.asked == ["GET /health"], "nothing else is ever asked"


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("wrong name", "wrong name: the server's certificate is not for '127.0.0.1'"),
        ("foreign", "foreign authority"),
        ("impostor", "foreign authority"),
        ("expired", "expired"),
        ("early", "not yet valid"),
        ("plain", "does not speak TLS"),
    ],
)
def test_each_fault_of_tls_is_told_apart(site: Site, fault: str, seen: str) -> None:
    contexts: dict[str, Callable[[], ssl.SSLContext | None]] = {
        "wrong name": lambda: server_context(site.folder, site.authority, host="other.example"),
        "foreign": lambda: server_context(site.folder, make_authority("Elsewhere")),
        # an authority of the kit's name with another key
        "impostor": lambda: server_context(site.folder, make_authority()),
        "expired": lambda: server_context(site.folder, site.authority, end=NOW - DAY),
        "early": lambda: server_context(site.folder, site.authority, start=NOW + DAY),
        "plain": lambda: None,
    }
    server = site.serve(contexts[fault]())
    checks = site.check(admission_check=lambda: pytest.fail("asked over a link not trusted"))
    assert problems(checks) == ["TLS"]
    assert seen in checks["TLS"].detail
    assert checks["admission"].status == "skipped"
    assert exit_code([*checks.values()]) == 4
    assert server.asked == []


def test_a_connection_that_is_cut_in_the_handshake_says_so(site: Site) -> None:
    server = site.start(ThreadingTCPServer(("127.0.0.1", 0), HangUp))
    site.write_kit(f"127.0.0.1:{server.server_address[1]}")
    checks = site.check()
    assert problems(checks) == ["TLS"]
    assert "TLS" in checks["TLS"].detail or "cut off" in checks["TLS"].detail


def test_a_server_that_never_answers_is_given_up(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        site.write_kit(f"127.0.0.1:{silent.getsockname()[1]}")
        checks = site.check(timeout_s=0.2)
    assert problems(checks) == ["TLS"]
    assert "timed out" in checks["TLS"].detail


def test_a_closed_port_is_a_problem_of_the_network(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    site.write_kit(address)
    checks = site.check()
    assert problems(checks) == ["network"]
    assert "refused" in checks["network"].detail
    assert exit_code([*checks.values()]) == 4


def test_a_name_that_nobody_knows_is_a_problem_of_the_name(site: Site) -> None:
    site.write_kit("nowhere.invalid:8443")
    checks = site.check()
    assert problems(checks) == ["name"]
    assert "nowhere.invalid" in checks["name"].detail


@pytest.mark.parametrize(
    ("ahead", "status"),
    [(250, "problem"), (-250, "problem"), (100, "warning"), (-100, "warning"), (None, "warning")],
)
def test_a_clock_that_differs_is_told_before_signatures_are_refused(
    site: Site, ahead: float | None, status: str
) -> None:
    site.serve(server_context(site.folder, site.authority), ahead=ahead)
    clock = site.check()["clock"]
    assert clock.status == status
    if ahead is not None:
        assert ("behind" if ahead > 0 else "ahead") in clock.detail
        assert exit_code([clock]) == (4 if status == "problem" else 0)


@pytest.mark.parametrize(("days", "status"), [(62, "ok"), (60, "warning"), (1, "warning")])
def test_a_servers_certificate_near_its_end_is_announced(
    site: Site, days: int, status: str
) -> None:
    site.serve(server_context(site.folder, site.authority, end=NOW + days * DAY))
    checks = site.check()
    assert checks["server certificate"].status == status
    assert problems(checks) == []


@pytest.mark.parametrize(("days", "status"), [(30, "warning"), (-1, "problem")])
def test_an_authority_near_its_end_is_announced(site: Site, days: int, status: str) -> None:
    site.authority = make_authority(end=NOW + days * DAY)
    site.serve(server_context(site.folder, site.authority))
    checks = site.check()
    assert checks["CA certificate"].status == status
    assert ("TLS" in problems(checks)) == (days < 0)


def test_a_server_that_is_not_well_is_a_problem(site: Site) -> None:
    site.serve(server_context(site.folder, site.authority), status=503)
    checks = site.check()
    assert problems(checks) == ["server"]
    assert "503" in checks["server"].detail


def test_the_connection_goes_through_the_proxy_of_the_environment(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a name that only the proxy can lead to: nothing here dials it directly
    context = server_context(site.folder, site.authority, host="lift.invalid")
    server = site.serve(context)
    proxy = site.start(Proxy(("127.0.0.1", server.server_port)))
    site.write_kit("lift.invalid:8443")
    secret = "tunnel-word"  # noqa: S105  # of the test's own proxy
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{secret}@127.0.0.1:{proxy.server_address[1]}")
    checks = site.check()
    assert problems(checks) == []
    assert proxy.requests == ["CONNECT lift.invalid:8443 HTTP/1.1"]
    assert any(header.lower().startswith("proxy-authorization:") for header in proxy.headers)
    assert "through the proxy" in checks["network"].detail
    assert checks["server certificate"].status == "ok"
    assert server.asked == ["GET /health"]
    shown = "".join(verdict.detail + verdict.fix for verdict in checks.values())
    assert secret not in shown


def test_a_foreign_authority_behind_a_proxy_is_found(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what a proxy that opens TLS looks like
    server = site.serve(server_context(site.folder, make_authority(), host="lift.invalid"))
    proxy = site.start(Proxy(("127.0.0.1", server.server_port)))
    site.write_kit("lift.invalid:8443")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
    checks = site.check()
    assert problems(checks) == ["TLS"]
    assert "foreign authority" in checks["TLS"].detail


@pytest.mark.parametrize("refusal", ["403 Forbidden", "407 Proxy Authentication Required"])
def test_a_proxy_that_refuses_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    proxy = site.start(Proxy(("127.0.0.1", 9), refusal))
    site.write_kit("lift.invalid:8443")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
    checks = site.check()
    assert problems(checks) == ["network"]
    assert refusal in checks["network"].detail
    assert "CONNECT" in checks["network"].fix


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [
        ("http://nowhere.invalid:3128", "name"),
        ("http://127.0.0.1:9", "network"),
        ("gopher://127.0.0.1:9", "network"),
    ],
)
def test_a_wrong_proxy_is_told_from_a_wrong_server(
    site: Site, monkeypatch: pytest.MonkeyPatch, proxy: str, problem: str
) -> None:
    site.write_kit("127.0.0.1:8443")
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    checks = site.check()
    assert problems(checks) == [problem]
    assert "HTTPS_PROXY" in checks[problem].fix


def test_a_key_that_is_not_admitted_has_its_own_exit_code(site: Site) -> None:
    site.serve(server_context(site.folder, site.authority))
    checks = site.check(admission_check=lambda: "the server does not know this key")
    assert problems(checks) == ["admission"]
    assert exit_code([*checks.values()]) == 7

    def broken() -> str | None:
        raise ProtocolError("no answer", remedy="Run it again.")

    assert site.check(admission_check=broken)["admission"].label == "connection"


def test_faults_of_the_sites_own_files_are_each_told(site: Site) -> None:
    site.write_kit("127.0.0.1:9")
    (site.folder / "site.key").chmod(0o644)
    (site.folder / "kit" / "ca.pem").write_bytes(pem(make_authority().certificate))
    checks = site.check()
    assert problems(checks) == ["kit", "key"]
    assert not set(CONNECTION) & set(checks), "nothing is dialled with a kit that is not whole"
    assert exit_code([*checks.values()]) == 2
    (site.folder / "site.yaml").write_text("name: north\nnaem: north\n")
    checks = site.check()
    assert [*checks] == ["settings"]
    assert f"{wording.DID_YOU_MEAN}name'" in checks["settings"].detail


def test_a_folder_that_cannot_be_written_is_a_problem_of_the_disk(site: Site) -> None:
    (site.folder / "work").write_text("a file")
    checks = site.check()
    assert checks["disk"].status == "problem"
    assert not (site.folder / "cache").exists()
    (site.folder / "work").unlink()
    before = sorted(path.name for path in site.folder.rglob("*"))
    assert site.check()["disk"].status != "problem"
    assert sorted(path.name for path in site.folder.rglob("*")) == before, "nothing is changed"


def test_generator_and_data_are_checked_against_the_kit(site: Site) -> None:
    site.serve(server_context(site.folder, site.authority))
    for patient, channels in (("A-000", ("t1n", "t1c", "t2w", "t2f")), ("B-000", ("t1n", "t1c"))):
        folder = site.folder / "data" / patient
        folder.mkdir(parents=True)
        for channel in channels:
            (folder / f"{patient}-{channel}.nii.gz").write_bytes(b"")
    checks = site.check(quick=False)
    assert problems(checks) == ["generator"]
    assert "not the one that is needed" in checks["generator"].detail
    assert checks["device"].status == "ok"
    assert checks["data"].status == "warning"
    assert checks["data"].detail.startswith(
        "1 examinations of 1 persons with all channels, 1 without"
    )
    assert exit_code([*checks.values()]) == 3


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        ([], 0),
        (["data"], 3),
        (["data", "policy"], 7),
        (["policy", "connection"], 4),
        (["data", "connection", "config"], 2),
        (["record"], 9),
    ],
)
def test_the_exit_code_is_that_of_what_is_to_be_mended_first(labels: list[str], code: int) -> None:
    verdicts = [Verdict("x", "problem", "", "", label) for label in labels]
    assert exit_code([*verdicts, Verdict("y", "warning", ""), Verdict("z", "ok", "")]) == code


@pytest.mark.parametrize("theirs", [None, "1", "999"])
def test_a_server_of_another_version_is_told_with_its_own_exit_code(
    site: Site, theirs: str | None
) -> None:
    server = site.serve(server_context(site.folder, site.authority))
    server.version = theirs
    checks = site.check()
    assert problems(checks) == ["version"]
    assert (theirs or "unknown") in checks["version"].detail
    assert exit_code([*checks.values()]) == EXIT_CODES["version"].number


def test_a_local_port_that_is_taken_is_told(site: Site) -> None:
    site.serve(server_context(site.folder, site.authority))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        path = site.folder / "site.yaml"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("local_port: 9094", f"local_port: {port}"), encoding="utf-8")
        taken = site.check()["local port"]
    assert taken.status == "warning"
    assert str(port) in taken.detail
    assert site.check()["local port"].status == "ok"
