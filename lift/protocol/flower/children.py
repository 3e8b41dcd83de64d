"""Management of the child process, for both sides."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import logging
import os
import secrets
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Final

from lift.files import write_atomically
from lift.logs import rotating_file
from lift.process import prepared_environment

TLS_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""What our servers take below TLS 1.3: authenticated encryption and a key for each connection, so
no CBC suite. TLS 1.3 has no others, and below TLS 1.2 nothing is spoken."""
STOP_S: Final = 10.0
_LAST_WORDS_S: Final = 1.0
_LONGEST_LINE_BYTES: Final = 65_536
_CERTIFICATE_DAYS: Final = 3650


def keep_loopback_direct() -> None:
    """Our own requests to 127.0.0.1 never go through a proxy, whatever the environment names."""
    # both spellings are read, by some programs one and by some the other
    named = [os.environ.get("NO_PROXY"), os.environ.get("no_proxy"), "127.0.0.1"]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(dict.fromkeys(filter(None, named)))


def write_secret(path: Path) -> None:
    """Write a new secret to a file of mode 0600, replacing the old one."""
    write_atomically(path, secrets.token_hex(32).encode(), mode=0o600)


def write_local_certificate(certificate: Path, key: Path) -> None:
    """A new key (mode 0600) and a certificate for 127.0.0.1 that it signs itself.

    Whoever trusts this certificate alone talks to the holder of this key, and to nobody else
    who may have taken the port.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    identifier = x509.SubjectKeyIdentifier.from_public_key(private.public_key())
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        # a clock that is set back meanwhile must not cut this process off from its child
        .not_valid_before(now - timedelta(days=_CERTIFICATE_DAYS))
        .not_valid_after(now + timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(identifier, critical=False)
        .sign(private, hashes.SHA256())
    )
    write_atomically(
        key,
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        mode=0o600,
    )
    write_atomically(certificate, made.public_bytes(Encoding.PEM))


def forbid_telemetry() -> None:
    """Let Flower report nothing to its makers, even where it was imported before we could say so.

    Flower asks the environment once, when it is imported.
    """
    telemetry = importlib.import_module("flwr.supercore.telemetry")
    telemetry.__dict__["FLWR_TELEMETRY_ENABLED"] = "0"


class _LoggedChild(subprocess.Popen[bytes]):
    """A child whose words a thread of this process writes to a log of bounded size."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        handler = rotating_file(log)
        super().__init__(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # also where the program around us did not prepare its own
            env=prepared_environment(),
        )
        self.keeper = threading.Thread(
            target=_keep, args=(self.stdout, handler), name="child-log", daemon=True
        )
        self.keeper.start()


def _keep(words: IO[bytes], handler: logging.Handler) -> None:
    with contextlib.closing(handler), words:
        while line := words.readline(_LONGEST_LINE_BYTES):
            text = line.decode(errors="backslashreplace").removesuffix("\n")
            handler.handle(logging.makeLogRecord({"msg": text}))


def start_child(module: str, settings: str, log: Path) -> subprocess.Popen[bytes]:
    """Start one of our modules with its settings; what it says goes to `log`.

    Its standard input is a pipe that only we hold: it closes when this process ends.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    return _LoggedChild([sys.executable, "-m", module, settings], log)


def end_with_parent() -> None:
    """End this process at once when its standard input closes, as it does when the parent dies."""

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def end_child(child: subprocess.Popen[bytes], *, within_s: float = STOP_S) -> None:
    """Ask the child to end, wait `within_s` seconds for it, and end it."""
    child.terminate()
    try:
        child.wait(within_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdin is not None:
        child.stdin.close()
    if isinstance(child, _LoggedChild):
        # its last words
        child.keeper.join(_LAST_WORDS_S)
