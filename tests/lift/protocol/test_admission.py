"""Is this key admitted? Asked of a real SuperLink: it answers, and nothing in it changes."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import flwr.supernode.node_auth_http_interceptor as signing
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from lift.config.server import ServerConfig
from lift.errors import ConfigError, ProtocolError
from lift.keys import read_key
from lift.protocol.flower.admission import admission_problem
from lift.protocol.flower.coordinator import Coordinator, SuperLink, make_secret
from lift.protocol.flower.superlink import SuperLinkSettings
from lift_client.cli import PROGRAM, main
from lift_client.enrolment import enrol
from lift_server.sites.provisioning import init_folder, load_settings
from lift_server.sites.roster import add_site
from tests import wording
from tests.enrolled import enrolled
from tests.ports import free_ports


@dataclass
class Server:
    """A SuperLink that runs, and its coordinator's folder."""

    config: ServerConfig
    settings: SuperLinkSettings
    coordinator: Coordinator
    admitted: dict[str, str] = field(default_factory=dict)

    @property
    def ca(self) -> Path:
        return Path(self.settings.ca)

    def admit(self, name: str, key: Path) -> None:
        public = key.with_suffix(".pub").read_text(encoding="ascii")
        self.admitted[name] = public.strip()
        self.coordinator.admit(self.admitted)

    def remove(self, name: str) -> None:
        del self.admitted[name]
        self.coordinator.admit(self.admitted)

    def nodes(self) -> list[tuple[Any, ...]]:
        """Every row that the server keeps of its nodes."""
        with sqlite3.connect(f"file:{self.settings.database}?mode=ro", uri=True) as database:
            rows = database.execute("SELECT * FROM node ORDER BY node_id").fetchall()
        database.close()
        return rows

    def ask(self, key: Path) -> str | None:
        """The question under test; it must leave every row as it is."""
        before = self.nodes()
        answer = admission_problem(self.config.address, self.ca, key)
        assert self.nodes() == before
        return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    init_folder(folder, ["localhost"], "trial")
    public, control = free_ports(2)
    path = folder / "server.yaml"
    path.write_text(path.read_text().replace("localhost:8443", f"localhost:{public}"))
    config = load_settings(folder)
    settings = SuperLinkSettings(
        listen_host="127.0.0.1",
        listen_port=public,
        control_port=control,
        ca=str(config.certificates / "ca.pem"),
        certificate=str(config.certificates / "server.pem"),
        key=str(config.certificates / "server.key"),
        database=str(config.state / "superlink.db"),
        secret=str(config.state / "executor.secret"),
        second_sessions=str(config.state / "second-sessions.txt"),
    )
    make_secret(Path(settings.secret))
    superlink = SuperLink(settings, folder / "superlink.log")
    with superlink.running():
        coordinator = Coordinator(superlink, settings)
        yield Server(config, settings, coordinator)
        coordinator.close()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return enrol(tmp_path / "site", "north").key


class Site:
    """What a site's SuperNode says to the server."""

    def __init__(self, server: Server, key: Path) -> None:
        private = read_key(key)
        self._public = public_key_to_bytes(private.public_key())
        self._client = FleetHttpClient.from_server_address(
            server.config.address,
            insecure=False,
            root_certificates=server.ca.read_bytes(),
            interceptors=[NodeAuthHttpInterceptor(private, private.public_key())],
        )

    def connect(self) -> int:
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=600)
        return int(self._client.ActivateNode(request).node_id)

    def disconnect(self, node: int) -> None:
        self._client.DeactivateNode(DeactivateNodeRequest(node_id=node))
        self._client.close()


def test_an_admitted_key_is_known_and_stays_offline_or_online_as_it_is(
    server: Server, key: Path
) -> None:
    server.admit("always", key)
    assert server.ask(key) is None
    assert "always" not in server.coordinator.connected()
    site = Site(server, key)
    before = server.nodes()
    node = site.connect()
    assert server.nodes() != before, "the comparison in `ask` would see nothing"
    assert server.ask(key) is None
    assert "always" in server.coordinator.connected()
    site.disconnect(node)
    assert server.ask(key) is None
    assert "always" not in server.coordinator.connected()


def test_a_key_that_was_never_admitted_or_was_removed_is_told(server: Server, key: Path) -> None:
    assert "does not know this site's key" in str(server.ask(key))
    server.admit("guest", key)
    assert server.ask(key) is None
    server.remove("guest")
    assert "does not know this site's key" in str(server.ask(key))


@pytest.mark.parametrize("ahead_s", [-600, 600])
def test_a_clock_too_far_off_is_no_verdict_on_the_key(
    server: Server, key: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    server.admit("early", key)
    monkeypatch.setattr(signing, "now", lambda: now() + timedelta(seconds=ahead_s))
    with pytest.raises(ProtocolError, match="clock") as caught:
        server.ask(key)
    assert caught.value.exit_code == 4


def test_a_server_that_cannot_be_asked_is_no_verdict_on_the_key(
    server: Server, key: Path, tmp_path: Path
) -> None:
    init_folder(tmp_path / "other", ["localhost"], "other")
    foreign = tmp_path / "other" / "certificates" / "ca.pem"
    with pytest.raises(ProtocolError, match="certificate verify failed"):
        admission_problem(server.config.address, foreign, key)
    (nobody,) = free_ports(1)
    with pytest.raises(ProtocolError, match="refused"):
        admission_problem(f"localhost:{nobody}", server.ca, key)
    # the local door speaks TLS of the same authority, and knows no such path
    with pytest.raises(ProtocolError, match="HTTP status 404"):
        admission_problem(f"localhost:{server.settings.control_port}", server.ca, key)
    with pytest.raises(ProtocolError):
        admission_problem("localhost:99999", server.ca, key)


def test_files_that_cannot_be_used_are_named(server: Server, key: Path, tmp_path: Path) -> None:
    address = server.config.address
    other = tmp_path / "other.key"
    with pytest.raises(ConfigError, match=r"other\.key; No such file"):
        admission_problem(address, server.ca, other)
    other.write_bytes(key.read_bytes()[:-200])
    with pytest.raises(ConfigError, match="not readable; needed: an OpenSSH private key"):
        admission_problem(address, server.ca, other)
    for form, content in (
        ("an OpenSSH private key", b"-----BEGIN"),
        ("an EC P-384 key", small_key()),
    ):
        other.write_bytes(content)
        with pytest.raises(ConfigError, match=form):
            admission_problem(address, server.ca, other)
    with pytest.raises(ConfigError, match=wording.NO_SUCH_FILE):
        admission_problem(address, tmp_path / "ca.pem", key)
    (tmp_path / "ca.pem").write_bytes(b"no certificate")
    with pytest.raises(ConfigError, match="not readable; needed: a PEM certificate"):
        admission_problem(address, tmp_path / "ca.pem", key)


def small_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


Check = Callable[..., tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """`lift-client check` as a hospital types it: exit code, and the verdict of each check."""

    def command(*words: str | Path) -> tuple[int, dict[str, dict[str, str]]]:
        monkeypatch.setattr(sys, "argv", [PROGRAM, "check", *map(str, words), "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        found = json.loads(capsys.readouterr().out)
        assert found["exit_code"] == ended.value.code
        return found["exit_code"], {row["check"]: row for row in found["checks"]}

    return command


def test_the_check_of_a_site_says_whether_it_is_admitted_and_ends_with_seven_when_not(
    server: Server, tmp_path: Path, check: Check
) -> None:
    made = enrolled(tmp_path / "valley", "valley")
    kit = add_site(server.config, "valley", made.public).kit
    shutil.copytree(kit, made.settings.parent / "kit")
    code, verdicts = check("--site", made.settings, "--quick")
    assert (code, verdicts["server"]["status"]) == (0, "ok")
    assert verdicts["admission"]["status"] == "skipped"
    code, verdicts = check("--site", made.settings)
    refused = verdicts["admission"]
    assert (code, refused["status"], refused["label"]) == (7, "problem", "policy")
    assert wording.SEND_PUBLIC_KEY in refused["fix"].lower()
    before = server.nodes()
    server.admit("valley", made.key)
    assert len(server.nodes()) == len(before) + 1
    code, verdicts = check("--site", made.settings)
    assert verdicts["admission"]["status"] == "ok"
    # this site has no volumes yet: that is what is left to mend
    assert (code, verdicts["data"]["status"]) == (3, "problem")
