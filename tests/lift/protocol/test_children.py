"""What both sides do with their child process: secret, certificate, start, end."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from pathlib import Path

import pytest

from lift.protocol.flower.children import (
    end_child,
    keep_loopback_direct,
    start_child,
    write_local_certificate,
    write_secret,
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1"),
        ({"NO_PROXY": "a"}, "a,127.0.0.1"),
        # the lower-case one, empty, would hide the other from many programs
        ({"NO_PROXY": "a", "no_proxy": ""}, "a,127.0.0.1"),
        ({"NO_PROXY": "a", "no_proxy": "b"}, "a,b,127.0.0.1"),
    ],
)
def test_loopback_never_goes_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: str
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    keep_loopback_direct()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == after


def test_a_secret_is_new_each_time_and_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_secret(path)
    first = path.read_bytes()
    write_secret(path)
    assert path.read_bytes() != first
    assert len(first) == 64
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_local_certificate_proves_its_own_key_and_no_other(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_local_certificate(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        assert (tmp_path / f"{name}.key").stat().st_mode & 0o777 == 0o600
    assert _shakes_hands(tmp_path, serves="one", trusts="one")
    assert not _shakes_hands(tmp_path, serves="other", trusts="one")


def test_a_child_that_does_not_listen_is_ended_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "stubborn.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(sys.argv[1], flush=True)\n"
        "time.sleep(60)\n"
    )
    log = tmp_path / "logs" / "child.log"
    child = start_child("stubborn", "settings", log)
    while b"settings" not in log.read_bytes():
        assert child.poll() is None
    end_child(child, within_s=0.2)
    assert child.returncode == -signal.SIGKILL
    assert child.stdin is not None
    assert child.stdin.closed


def test_a_child_of_any_program_is_told_to_report_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "0")
    (tmp_path / "telling.py").write_text(
        "import os\n"
        "for name in sorted(name for name in os.environ if name.startswith('FLWR_')):\n"
        "    print(name, os.environ[name])\n"
    )
    log = tmp_path / "child.log"
    child = start_child("telling", "settings", log)
    assert child.wait(60) == 0
    end_child(child)
    assert log.read_text().splitlines() == [
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION 1",
        "FLWR_DISABLE_UPDATE_CHECK 1",
        "FLWR_TELEMETRY_ENABLED 0",
    ]


def _shakes_hands(folder: Path, *, serves: str, trusts: str) -> bool:
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(folder / f"{serves}.pem", folder / f"{serves}.key")
    here = ssl.create_default_context(cafile=str(folder / f"{trusts}.pem"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    there.wrap_socket(connection, server_side=True).close()
                except OSError:
                    return

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=5) as plain,
                here.wrap_socket(plain, server_hostname="127.0.0.1"),
            ):
                return True
        except ssl.SSLCertVerificationError:
            return False
        finally:
            thread.join(5)
