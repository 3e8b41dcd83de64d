"""Joining: the key is private from its first byte, nothing is overwritten, the kit is checked."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from lift.config.privacy import PrivacyMode
from lift.config.site import SiteConfig
from lift.errors import ConfigError
from lift_client.check.preflight import run_checks
from lift_client.enrolment import check_key, enrol, read_kit
from tests import wording
from tests.enrolled import NOT_CHOSEN, enrolled

FILES = ["site.key", "site.pub", "site.yaml"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# YAML would read some of these as a number or as false
@pytest.mark.parametrize("name", ["north", "123", "no", "1e3", "A-b_9", "x" * 32])
def test_enrolment_makes_a_key_pair_and_settings_that_fit(tmp_path: Path, name: str) -> None:
    made = enrol(tmp_path / "deep" / "site", name)
    assert names_in(made.key.parent) == FILES
    assert mode_of(made.key) == 0o600
    key = serialization.load_ssh_private_key(made.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    public = serialization.load_ssh_public_key(made.public.read_bytes())
    assert public == key.public_key()
    assert b"PRIVATE" not in made.public.read_bytes() + made.settings.read_bytes()
    chosen = made.settings.read_text().replace(NOT_CHOSEN, "  privacy_modes: [site]\n")
    made.settings.write_text(chosen)
    config = SiteConfig.from_yaml(made.settings)
    assert config.name == name
    assert config.data.layout == "auto"
    assert config.policy.privacy_modes == ("site",)
    assert config.under(tmp_path).key == tmp_path / "site.key"
    assert check_key(made.key) == made.fingerprint


def test_the_settings_hold_the_defaults_and_explain_every_key(tmp_path: Path) -> None:
    path = enrolled(tmp_path, "north").settings
    shortest = {
        "name": "north",
        "data": {"layout": "auto", "root": "data"},
        "generator": {"builtin": "phantom-t1n-t1c-t2w-t2f"},
        "policy": {"privacy_modes": ["none"], "image_checks": False},
    }
    assert SiteConfig.from_yaml(path) == SiteConfig.from_data(shortest, "test")
    text = path.read_text()
    keys = [*SiteConfig.model_fields, *SiteConfig.model_fields["policy"].annotation.model_fields]  # type: ignore[union-attr]  # a model
    # `folder` of the cache alone is left to its default
    assert [key for key in keys if f"{key}:" not in text] == []
    assert text.count("#") > 20


def test_nothing_starts_before_somebody_has_chosen_the_privacy_modes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = enrol(tmp_path, "north").settings
    text = path.read_text()
    with pytest.raises(ConfigError) as caught:
        SiteConfig.from_yaml(path)
    assert caught.value.seen.startswith("policy.privacy_modes: nobody has chosen yet")
    # what each mode means stands above the key, and the check says what is missing
    for mode in get_args(PrivacyMode):
        assert mode in caught.value.seen
        assert re.search(rf"^  #   {mode} +\S", text, re.MULTILINE), mode
    (verdict,) = run_checks(path, quick=True)
    assert (verdict.check, verdict.status) == ("settings", "problem")
    assert "nobody has chosen yet" in verdict.detail
    without = text.replace(NOT_CHOSEN, "")
    path.write_text(without)
    with pytest.raises(ConfigError, match="privacy_modes: missing"):
        SiteConfig.from_yaml(path)


def test_the_key_is_never_open_to_others_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    real_fsync = os.fsync

    def look(descriptor: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    before = os.umask(0)
    try:
        enrol(tmp_path, "north")
    finally:
        os.umask(before)
    # before the name is even complete on the disk
    assert modes[0] == 0o600
    assert mode_of(tmp_path / "site.key") == 0o600


@pytest.mark.parametrize("existing", FILES)
def test_nothing_that_exists_is_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(ConfigError, match=wording.FILE_EXISTS):
        enrol(tmp_path, "north")
    assert names_in(tmp_path) == [existing]
    assert (tmp_path / existing).read_text() == "mine"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "site.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=wording.FILE_EXISTS):
        enrol(tmp_path, "north")
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_leaves_no_half_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=wording.NO_SPACE):
        enrol(tmp_path, "north")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../up", "a b", "-x", "x" * 33, "n\n", 'a"b'])
def test_a_name_that_is_none_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not a site's name"):
        enrol(tmp_path / "site", name)
    assert names_in(tmp_path) == []


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_the_fingerprint_is_the_one_that_openssh_shows(tmp_path: Path) -> None:
    made = enrol(tmp_path, "north")
    for path in (made.key, made.public):
        shown = subprocess.run(
            ["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True
        )
        assert shown.stdout.split()[:2] == ["384", made.fingerprint]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    made = enrol(tmp_path, "north")
    made.key.chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}"):
        check_key(made.key)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = enrol(tmp_path, "north").key
    others: list[ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey] = [
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ]
    openssh = serialization.PrivateFormat.OpenSSH
    for key in others:
        path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption())
        )
        with pytest.raises(ConfigError, match="P-384"):
            check_key(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="OpenSSH"):
        check_key(path)
    path.unlink()
    with pytest.raises(ConfigError, match=wording.NO_SUCH_FILE):
        check_key(path)


def test_a_public_half_of_another_key_is_refused_and_a_missing_one_is_not(tmp_path: Path) -> None:
    made, other = enrol(tmp_path / "a", "north"), enrol(tmp_path / "b", "north")
    made.public.write_bytes(other.public.read_bytes())
    with pytest.raises(ConfigError, match="another key"):
        check_key(made.key)
    made.public.unlink()
    assert check_key(made.key) == made.fingerprint


def make_authority() -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=3650))
        .sign(key, hashes.SHA384())
    )


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    authority = make_authority()
    (tmp_path / "ca.pem").write_bytes(pem(authority))
    content = {
        "format_version": 1,
        "federation": "brains",
        "site": "north",
        "address": "lift.example.org:8443",
        "ca_sha256": authority.fingerprint(hashes.SHA256()).hex(),
        "generator_fingerprint": "a" * 64,
        "task": {"source": ["t1n", "t1c", "t2w"], "target": "t2f"},
    }
    (tmp_path / "kit.json").write_text(json.dumps(content))
    return tmp_path


def test_a_kit_is_read_and_its_site_compared(kit: Path) -> None:
    assert read_kit(kit).address == "lift.example.org:8443"
    assert read_kit(kit, site="north").site == "north"
    with pytest.raises(ConfigError, match="it is for site 'north'"):
        read_kit(kit, site="south")


def test_another_or_a_second_authority_is_refused(kit: Path) -> None:
    path = kit / "ca.pem"
    ours, foreign = path.read_bytes(), pem(make_authority())
    path.write_bytes(foreign)
    with pytest.raises(ConfigError, match="SHA-256"):
        read_kit(kit)
    # TLS would trust every certificate in the file, not the fingerprinted one alone
    hidden = foreign.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE")
    for content in (ours + foreign, foreign + ours, ours + hidden, b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="exactly one"):
            read_kit(kit)
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match="not a certificate"):
        read_kit(kit)


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (None, wording.NO_SUCH_FILE),
        ("{", "not JSON"),
        ("[]", "the file"),
        ('{"site": "north"}', "missing"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_damaged_kit_is_refused(kit: Path, content: str | None, seen: str) -> None:
    if content is None:
        (kit / "kit.json").unlink()
    else:
        (kit / "kit.json").write_text(content)
    with pytest.raises(ConfigError, match=seen):
        read_kit(kit)
