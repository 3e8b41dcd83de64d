"""Certificates under real TLS handshakes, the roster's laws, and kits that never change others."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from lift.config.kit import Kit
from lift.config.server import ServerConfig
from lift.errors import ConfigError, GeneratorError
from lift.generator.bundle import load_bundle
from lift.generator.card import builtin_bundle, bundle_folder, check_task, read_card
from lift.keys import key_fingerprint
from lift_server.sites import provisioning
from lift_server.sites.certificates import (
    certificate_hosts,
    certificate_notices,
    read_certificate,
    renew_server_certificate,
    write_new,
)
from lift_server.sites.provisioning import init_folder
from lift_server.sites.roster import Roster, add_site, read_public_key, remove_site
from tests import wording

HOSTS = ("lift.example.org", "192.0.2.7", "2001:db8::7")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OpenSsh = serialization.PublicFormat.OpenSSH


def federation(folder: Path, *, now: datetime | None = None) -> ServerConfig:
    init_folder(folder, HOSTS, "trial", now=now)
    return load(folder)


def load(folder: Path) -> ServerConfig:
    return ServerConfig.from_yaml(folder / "server.yaml").under(folder)


def site_key(path: Path, key: ec.EllipticCurvePrivateKey | None = None) -> Path:
    public = (key or ec.generate_private_key(ec.SECP384R1())).public_key()
    content = public.public_bytes(serialization.Encoding.OpenSSH, OpenSsh)
    path.write_bytes(content + b" physicist@workstation-17\n")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def client_context(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def server_context(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return context


def shake_hands(certificates: Path, ca: Path, host: str) -> None:
    """A whole TLS handshake in memory, between the folder's server and a client that dials host."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(ca).wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context(certificates).wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
        if not waiting:
            return
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1"])
def test_a_site_with_the_kit_trusts_the_server_under_each_of_its_hosts(
    tmp_path: Path, host: str
) -> None:
    config = federation(tmp_path)
    admission = add_site(config, "north", site_key(tmp_path / "site.pub"))
    shake_hands(config.certificates, admission.kit / "ca.pem", host)


def test_a_handshake_over_loopback_ends_with_the_server_s_certificate(tmp_path: Path) -> None:
    config = federation(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            context = server_context(config.certificates)
            with context.wrap_socket(connection, server_side=True) as secured:
                secured.sendall(b"hello")

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            socket.create_connection(listener.getsockname(), timeout=10) as plain,
            client_context(config.certificates / "ca.pem").wrap_socket(
                plain, server_hostname="lift.example.org"
            ) as secured,
        ):
            assert secured.recv(5) == b"hello"
            der = secured.getpeercert(binary_form=True)
        thread.join(10)
    pem = (config.certificates / "server.pem").read_text(encoding="ascii")
    assert der == ssl.PEM_cert_to_DER_cert(pem)


def test_a_foreign_authority_is_refused(tmp_path: Path) -> None:
    ours, other = federation(tmp_path / "ours"), federation(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(other.certificates, ours.certificates / "ca.pem", "lift.example.org")


def test_a_host_that_the_certificate_does_not_name_is_refused(tmp_path: Path) -> None:
    config = federation(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(config.certificates, config.certificates / "ca.pem", "lift.example.com")


def test_an_expired_server_certificate_is_refused_until_it_is_renewed(tmp_path: Path) -> None:
    config = federation(tmp_path, now=datetime.now(UTC) - timedelta(days=900))
    kit = add_site(config, "north", site_key(tmp_path / "site.pub")).kit
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(config.certificates, kit / "ca.pem", "lift.example.org")
    before = tree(tmp_path)
    renew_server_certificate(config.certificates, HOSTS)
    shake_hands(config.certificates, kit / "ca.pem", "lift.example.org")
    changed = {name for name, content in tree(tmp_path).items() if before.get(name) != content}
    # neither the server's key nor any kit
    assert changed == {"certificates/server.pem"}


def test_a_renewal_without_the_server_s_key_makes_a_new_one_for_its_owner_alone(
    tmp_path: Path,
) -> None:
    config = federation(tmp_path)
    key = config.certificates / "server.key"
    old = key.read_bytes()
    key.unlink()
    renew_server_certificate(config.certificates, ["new.example.org"])
    assert key.read_bytes() != old
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    shake_hands(config.certificates, config.certificates / "ca.pem", "new.example.org")


def test_a_renewal_never_uses_another_authority_s_key_or_an_ended_one(tmp_path: Path) -> None:
    config, other = federation(tmp_path / "ours", now=NOW), federation(tmp_path / "other")
    before = tree(tmp_path / "ours" / "certificates")
    with pytest.raises(ConfigError, match="has ended"):
        renew_server_certificate(config.certificates, HOSTS, now=NOW + timedelta(days=3650))
    (config.certificates / "ca.key").write_bytes((other.certificates / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        renew_server_certificate(config.certificates, HOSTS, now=NOW)
    after = tree(tmp_path / "ours" / "certificates")
    assert after["server.pem"] == before["server.pem"]


def test_no_server_certificate_outlives_its_authority(tmp_path: Path) -> None:
    config = federation(tmp_path, now=NOW)
    made = renew_server_certificate(config.certificates, HOSTS, now=NOW + timedelta(days=3600))
    ca = read_certificate(config.certificates / "ca.pem")
    assert made.not_valid_after_utc == ca.not_valid_after_utc


def test_the_certificates_have_the_extensions_and_the_time_that_they_need(tmp_path: Path) -> None:
    config = federation(tmp_path, now=NOW)
    ca = read_certificate(config.certificates / "ca.pem")
    server = read_certificate(config.certificates / "server.pem")
    server.verify_directly_issued_by(ca)

    def critical(certificate: x509.Certificate) -> dict[type[x509.ExtensionType], bool]:
        return {type(e.value): e.critical for e in certificate.extensions}

    assert critical(ca) == {
        x509.BasicConstraints: True,
        x509.KeyUsage: True,
        x509.SubjectKeyIdentifier: False,
    }
    assert critical(server) == {
        x509.BasicConstraints: True,
        x509.KeyUsage: True,
        x509.ExtendedKeyUsage: False,
        x509.SubjectAlternativeName: False,
        x509.SubjectKeyIdentifier: False,
        x509.AuthorityKeyIdentifier: False,
    }
    authority = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (authority.ca, authority.path_length) == (True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate_hosts(server) == (*HOSTS, "localhost", "127.0.0.1")
    assert (ca.not_valid_after_utc - ca.not_valid_before_utc).days == 3650
    assert (server.not_valid_after_utc - server.not_valid_before_utc).days == 825
    for certificate in (ca, server):
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
        assert certificate.public_key().public_numbers().curve.name == "secp384r1"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (0, []),
        # backdated by an hour: 61 days less an hour are left, and count as 60
        (763, []),
        (764, [("server certificate", "warning", 60)]),
        (824, [("server certificate", "warning", 0)]),
        (825, [("server certificate", "problem", -1)]),
        (
            3600,
            [("certificate authority", "warning", 49), ("server certificate", "problem", -2776)],
        ),
        (-1, [("certificate authority", "problem", 3650), ("server certificate", "problem", 825)]),
    ],
)
def test_notices_begin_sixty_days_before_the_end(
    tmp_path: Path, days: int, expected: list[tuple[str, str, int]]
) -> None:
    config = federation(tmp_path, now=NOW)
    notices = certificate_notices(config.certificates, NOW + timedelta(days=days))
    assert [(n.certificate, n.level, n.days_left) for n in notices] == expected
    assert all(notice.remedy for notice in notices)


def test_keys_are_their_owner_s_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        config = federation(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in config.certificates.iterdir()}
    assert modes["ca.key"] == modes["server.key"] == 0o600
    assert sorted(modes) == ["ca.key", "ca.pem", "server.key", "server.pem"]


@pytest.mark.parametrize("name", ["certificates/ca.key", "sites.json", "server.yaml"])
def test_a_folder_that_holds_one_of_the_files_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious", encoding="ascii")
    with pytest.raises(ConfigError) as caught:
        init_folder(tmp_path, HOSTS, "trial")
    assert name in caught.value.seen
    assert tree(tmp_path) == {name: b"precious"}


def test_an_init_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, content: bytes, mode: int) -> None:
        if path.name == "server.key":
            raise OSError(28, "No space left on device")
        write_new(path, content, mode)

    monkeypatch.setattr(provisioning, "write_new", full_disk)
    with pytest.raises(OSError, match=wording.NO_SPACE):
        init_folder(tmp_path, HOSTS, "trial")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "host", ["", "https://a.org", "a.org:8443", "a b", "10.0.0.300", "-a.org", "a..org", "*.a.org"]
)
def test_what_is_no_host_is_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError):
        init_folder(tmp_path / "new", [host], "trial")
    with pytest.raises(ConfigError):
        init_folder(tmp_path / "new", [], "trial")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["on", "123", "1e3", "null", "0x1f", "a-b_C"])
def test_the_written_settings_fit_their_model_whatever_the_name(tmp_path: Path, name: str) -> None:
    init_folder(tmp_path, ["2001:db8::7"], name)
    config = load(tmp_path)
    assert (config.name, config.address) == (name, "[2001:db8::7]:8443")
    assert config.plan.privacy.mode == "none"
    assert config.plan.split.key == name
    assert Roster.read(config.sites) == Roster()
    # the bundle that the template names fits its task
    card = read_card(builtin_bundle(str(config.generator.builtin)))
    check_task(card, config.plan.task, config.plan.preprocessing)


def test_a_kit_holds_what_the_site_needs_and_no_secret(tmp_path: Path) -> None:
    config = federation(tmp_path)
    done = add_site(config, "north", site_key(tmp_path / "site.pub"))
    assert sorted(tree(done.kit)) == ["README.txt", "ca.pem", "kit.json"]
    kit = Kit.from_data(json.loads((done.kit / "kit.json").read_text()), "kit.json")
    ca = read_certificate(done.kit / "ca.pem")
    assert (kit.site, kit.federation, kit.address) == ("north", "trial", "lift.example.org:8443")
    assert kit.ca_sha256 == ca.fingerprint(hashes.SHA256()).hex() == done.ca_fingerprint
    card = read_card(builtin_bundle("phantom-t1n-t1c-t2w-t2f"))
    assert kit.generator_fingerprint == card.fingerprint
    assert (kit.task.source, kit.task.target) == (("t1n", "t1c", "t2w"), "t2f")
    assert b"PRIVATE" not in b"".join(tree(done.kit).values())


def test_the_roster_keeps_the_key_and_nothing_of_who_made_it(tmp_path: Path) -> None:
    config = federation(tmp_path)
    path = site_key(tmp_path / "site.pub")
    add_site(config, "north", path, now=NOW)
    entry = Roster.read(config.sites).sites["north"]
    public = serialization.load_ssh_public_key(path.read_bytes())
    kept = serialization.load_ssh_public_key(entry.public_key.encode())
    assert kept == public
    assert (entry.admitted, entry.removed) == ("2026-03-01T12:00:00+00:00", None)
    assert "workstation-17" not in config.sites.read_text()


def test_the_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path) -> None:
    # made with `ssh-keygen -t ecdsa -b 384`, read with `ssh-keygen -l`
    known = (
        "ecdsa-sha2-nistp384 "
        "AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBP1WCXJXpN4MDG/B0E"
        "so1xG5oEAltDZecDfiRAXAa52uIEcyFax5jvBZ87feRNsuAJOS1heoW5NPcmN0OrWwe6R2"
        "V1E22hXRoUBhyfOXLCDY5sKdC6sC+Dri3QZ9HyT4rw=="
    )
    assert key_fingerprint(known) == "SHA256:T8LYxJgoR3t88t2KFOW9dnn2EFimEw9h1MCGwqn5sMA"


def test_admitting_and_removing_a_site_changes_no_byte_of_the_others(tmp_path: Path) -> None:
    config = federation(tmp_path)
    for name in ("north", "harbour"):
        add_site(config, name, site_key(tmp_path / f"{name}.pub"))
    before = tree(tmp_path)
    entries = Roster.read(config.sites).sites
    add_site(config, "valley", site_key(tmp_path / "valley.pub"))
    remove_site(config, "valley")
    after = tree(tmp_path)
    kept = {name: content for name, content in before.items() if name != "sites.json"}
    assert {name: after[name] for name in kept} == kept
    sites = Roster.read(config.sites).sites
    assert {name: sites[name] for name in entries} == entries


def test_admitting_the_same_key_twice_changes_nothing(tmp_path: Path) -> None:
    config = federation(tmp_path)
    path = site_key(tmp_path / "site.pub")
    assert add_site(config, "north", path).change == "new"
    before = tree(tmp_path)
    assert add_site(config, "north", path).change == "unchanged"
    assert tree(tmp_path) == before


def test_a_crash_between_kit_and_roster_admits_nobody_and_is_mended_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = federation(tmp_path)
    path = site_key(tmp_path / "site.pub")

    def crash(self: Roster, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Roster, "write", crash)
        with pytest.raises(KeyboardInterrupt):
            add_site(config, "north", path)
    assert Roster.read(config.sites).admitted_keys == {}
    assert add_site(config, "north", path).change == "new"
    assert list(Roster.read(config.sites).admitted_keys) == ["north"]


def test_of_many_admissions_at_once_none_is_lost(tmp_path: Path) -> None:
    config = federation(tmp_path)
    names = [f"site-{index}" for index in range(8)]
    paths = {name: site_key(tmp_path / f"{name}.pub") for name in names}
    threads = [threading.Thread(target=add_site, args=(config, n, paths[n])) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert list(Roster.read(config.sites).admitted_keys) == names


def test_a_removed_site_comes_back_with_its_key_or_another(tmp_path: Path) -> None:
    config = federation(tmp_path)
    old, new = site_key(tmp_path / "old.pub"), site_key(tmp_path / "new.pub")
    add_site(config, "north", old)
    assert remove_site(config, "north", now=NOW)
    assert Roster.read(config.sites).sites["north"].removed == "2026-03-01T12:00:00+00:00"
    assert Roster.read(config.sites).admitted_keys == {}
    assert not remove_site(config, "north")
    assert add_site(config, "north", old).change == "same_key"
    remove_site(config, "north")
    assert add_site(config, "north", new).change == "new_key"
    assert Roster.read(config.sites).admitted_keys["north"] == read_public_key(new)
    with pytest.raises(ConfigError, match="there is no site 'valley'"):
        remove_site(config, "valley")


def test_an_older_roster_put_back_admits_again_whom_it_knew(tmp_path: Path) -> None:
    config = federation(tmp_path)
    add_site(config, "north", site_key(tmp_path / "north.pub"))
    backup = config.sites.read_bytes()
    remove_site(config, "north", now=NOW)
    config.sites.write_bytes(backup)
    # nothing can tell: operations.md says what to do
    assert list(Roster.read(config.sites).admitted_keys) == ["north"]


def test_declared_patients_are_kept_until_they_are_given_anew(tmp_path: Path) -> None:
    config = federation(tmp_path)
    key = site_key(tmp_path / "site.pub")

    def declared() -> dict[str, int]:
        return Roster.read(config.sites).declared_patients

    assert add_site(config, "north", key).patients is None
    assert declared() == {}
    admitted = Roster.read(config.sites).sites["north"].admitted
    again = add_site(config, "north", key, patients=40, now=NOW)
    assert (again.change, again.patients) == ("unchanged", 40)
    assert declared() == {"north": 40}
    assert Roster.read(config.sites).sites["north"].admitted == admitted
    assert add_site(config, "north", key).patients == 40
    assert add_site(config, "north", key, patients=50).patients == 50
    remove_site(config, "north")
    assert declared() == {}
    assert add_site(config, "north", key).patients == 50
    assert declared() == {"north": 50}


def test_a_roster_of_before_has_no_declared_patients(tmp_path: Path) -> None:
    config = federation(tmp_path)
    add_site(config, "north", site_key(tmp_path / "site.pub"))
    data = json.loads(config.sites.read_text())
    del data["sites"]["north"]["patients"]
    config.sites.write_text(json.dumps(data))
    assert Roster.read(config.sites).declared_patients == {}


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        ("north", "other", "is admitted with the key SHA256:"),
        ("valley", "north", "this key is admitted as 'north'"),
        ("North", "other", "upper and lower case"),
        ("../north", "other", "1 to 32 letters"),
        ("", "other", "1 to 32 letters"),
    ],
)
def test_a_name_or_key_that_is_taken_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str, key: str, reason: str
) -> None:
    config = federation(tmp_path)
    keys = {word: site_key(tmp_path / f"{word}.pub") for word in ("north", "other")}
    add_site(config, "north", keys["north"])
    before = tree(tmp_path)
    with pytest.raises(ConfigError) as caught:
        add_site(config, name, keys[key])
    assert reason in caught.value.seen
    assert tree(tmp_path) == before


def private_form(form: serialization.PrivateFormat) -> bytes:
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, form, serialization.NoEncryption()
    )


@pytest.mark.parametrize("form", ["OpenSSH", "PKCS8", "TraditionalOpenSSL"])
def test_a_private_key_given_by_mistake_is_refused_and_said_to_stay_at_its_site(
    tmp_path: Path, form: str
) -> None:
    config = federation(tmp_path)
    path = tmp_path / "site.key"
    path.write_bytes(private_form(getattr(serialization.PrivateFormat, form)))
    before = tree(tmp_path)
    with pytest.raises(ConfigError) as caught:
        add_site(config, "north", path)
    assert "PRIVATE" in caught.value.what
    assert wording.NEVER_LEAVES in caught.value.seen
    assert caught.value.exit_code == 2
    assert tree(tmp_path) == before


def openssh(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, OpenSsh)


def p384() -> bytes:
    return openssh(ec.generate_private_key(ec.SECP384R1()).public_key())


WRONG_KEYS: Mapping[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "binary": lambda: bytes(range(256)),
    "damaged": lambda: p384()[:-20],
    "two keys": lambda: p384() + b"\n" + p384(),
    "P-256": lambda: openssh(ec.generate_private_key(ec.SECP256R1()).public_key()),
    "ed25519": lambda: openssh(ed25519.Ed25519PrivateKey.generate().public_key()),
    "another kind under this name": lambda: openssh(
        ec.generate_private_key(ec.SECP256R1()).public_key()
    ).replace(b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp384"),
    "PEM": lambda: (
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    ),
}


@pytest.mark.parametrize("kind", WRONG_KEYS)
def test_what_is_not_one_public_p384_key_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "site.pub"
    path.write_bytes(WRONG_KEYS[kind]())
    with pytest.raises(ConfigError, match="public key"):
        read_public_key(path)


@given(content=st.binary(max_size=300), start=st.booleans())
def test_any_bytes_are_refused_as_a_key_with_a_reason(
    tmp_path: Path, content: bytes, start: bool
) -> None:
    path = tmp_path / "site.pub"
    path.write_bytes((b"ecdsa-sha2-nistp384 " if start else b"") + content)
    with pytest.raises(ConfigError):
        read_public_key(path)


@pytest.mark.parametrize(
    "damage",
    ["", "[]", "{", '{"sites": {}, "extra": 1}', '{"format_version": 2, "sites": {}}'],
)
def test_a_damaged_roster_is_refused_and_never_taken_for_an_empty_one(
    tmp_path: Path, damage: str
) -> None:
    config = federation(tmp_path)
    config.sites.write_text(damage, encoding="ascii")
    with pytest.raises(ConfigError):
        add_site(config, "north", site_key(tmp_path / "site.pub"))
    assert config.sites.read_text(encoding="ascii") == damage


def edited(config: ServerConfig, change: Callable[[dict[str, dict[str, str]]], None]) -> None:
    data = json.loads(config.sites.read_text())
    change(data["sites"])
    config.sites.write_text(json.dumps(data))


def test_a_roster_edited_by_hand_into_a_contradiction_is_refused(tmp_path: Path) -> None:
    config = federation(tmp_path)
    for name in ("north", "valley"):
        add_site(config, name, site_key(tmp_path / f"{name}.pub"))
    good = config.sites.read_text()
    edited(config, lambda sites: sites["north"].update(public_key=sites["valley"]["public_key"]))
    with pytest.raises(ConfigError, match="fingerprint is not that of the public key"):
        Roster.read(config.sites)
    config.sites.write_text(good)
    edited(config, lambda sites: sites.update(north=sites["valley"]))
    with pytest.raises(ConfigError, match="the same key"):
        Roster.read(config.sites)


@pytest.mark.parametrize("names", [("b", "a", "c"), ("c", "b", "a")])
def test_admitted_keys_are_sorted_by_name(tmp_path: Path, names: Sequence[str]) -> None:
    config = federation(tmp_path)
    for name in names:
        add_site(config, name, site_key(tmp_path / f"{name}.pub"))
    assert list(Roster.read(config.sites).admitted_keys) == ["a", "b", "c"]


def test_no_kit_is_written_for_another_generator_than_the_plan_s(tmp_path: Path) -> None:
    config = federation(tmp_path)
    plan = config.plan.model_copy(update={"generator_fingerprint": "0" * 64})
    other = config.model_copy(update={"plan": plan})
    with pytest.raises(GeneratorError, match="not the one that the plan names"):
        add_site(other, "north", site_key(tmp_path / "site.pub"))
    assert not (tmp_path / "kits").exists()


def test_the_card_read_without_torch_is_the_one_that_the_loader_reads(tmp_path: Path) -> None:
    folder = bundle_folder(federation(tmp_path).generator)
    loaded = load_bundle(folder, expected_fingerprint=None, device=torch.device("cpu"))
    assert read_card(folder) == loaded.card
