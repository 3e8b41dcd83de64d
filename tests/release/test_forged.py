"""A forged release is named, file by file, whatever the forger may compute anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lift.errors import ReleaseError
from lift.keys import read_key
from lift.release.certificate import RELEASE_USAGE
from lift_server.release.key import read_release_key, sign_release
from lift_server.sites.certificates import read_private_key, renew_server_certificate
from tests.release.made import (
    BANNER,
    SUMS,
    World,
    findings,
    list_files,
    looked_at,
    make_world,
    sign_with,
    sum_up,
)

MIXER = "mixer.safetensors"
CHANGED = {(name, "changed") for name in (MIXER, "release.json", "RELEASE.txt", SUMS)}
WRONG_KEY = {("manifest.json.sig", "wrong key")}
NOT_OURS = {("release.pem", "not under the CA")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("other"), sites=())


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    return world.release(tmp_path / "release")


def forge(folder: Path) -> None:
    """Other numbers in the mixer, no banner, an invented audit, and sums that fit."""
    (folder / MIXER).write_bytes((folder / MIXER).read_bytes()[::-1])
    text = (folder / "RELEASE.txt").read_text()
    (folder / "RELEASE.txt").write_text(text.replace(BANNER, ""))
    record = json.loads((folder / "release.json").read_text())
    record |= {"audited": True, "audits": {"sites": {"east": {"auc": 0.5}}}}
    (folder / "release.json").write_text(json.dumps(record))
    sum_up(folder)


def sums_fit(folder: Path) -> bool:
    words = ["sha256sum", "--check", "--strict", SUMS]
    return subprocess.run(words, cwd=folder, capture_output=True, check=False).returncode == 0


def test_a_release_is_whole_and_says_who_signed_it(world: World, folder: Path) -> None:
    checked = looked_at(folder, world.ca)
    assert checked.findings == ()
    assert checked.signer is not None
    assert checked.signer.name == "LiFT trial release"
    assert checked.signer.fingerprint == read_release_key(world.keys).fingerprint


def test_a_forger_who_sums_up_anew_passes_sha256sum_and_is_named_here(
    world: World, folder: Path
) -> None:
    forge(folder)
    assert sums_fit(folder)
    assert findings(folder, world.ca) == CHANGED


def test_a_forger_who_writes_the_manifest_anew_has_no_signature_for_it(
    world: World, folder: Path
) -> None:
    forge(folder)
    list_files(folder)
    assert findings(folder, world.ca) == WRONG_KEY


def test_without_signature_or_certificate_it_is_not_signed(world: World, folder: Path) -> None:
    for name in ("manifest.json.sig", "release.pem"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        assert findings(folder, world.ca) == {(name, "not signed")}
        (folder / name).write_bytes(kept)
    assert findings(folder, world.ca) == set()


def test_a_site_s_key_signs_no_release(world: World, folder: Path) -> None:
    key = read_key(world.site("east").key)
    list_files(folder)
    sign_with(folder, key, None)
    assert findings(folder, world.ca) == WRONG_KEY
    sign_with(folder, key, self_signed(key))
    assert findings(folder, world.ca) == NOT_OURS


def test_the_server_s_tls_key_signs_no_release(world: World, folder: Path) -> None:
    key = read_private_key(world.certificates / "server.key")
    forge(folder)
    list_files(folder)
    sign_with(folder, key, None)
    assert findings(folder, world.ca) == WRONG_KEY
    sign_with(folder, key, (world.certificates / "server.pem").read_bytes())
    assert findings(folder, world.ca) == {("release.pem", "not a release certificate")}


def test_the_authority_itself_signs_no_release(world: World, folder: Path) -> None:
    key = read_private_key(world.certificates / "ca.key")
    sign_with(folder, key, world.ca.read_bytes())
    assert findings(folder, world.ca) == {("release.pem", "not a release certificate")}


def test_another_federation_s_release_key_signs_no_release_of_this_one(
    world: World, other: World, folder: Path
) -> None:
    sign_release(folder, read_release_key(other.keys))
    assert findings(folder, other.ca) == set()
    assert findings(folder, world.ca) == NOT_OURS


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"]
)
def test_a_certificate_that_is_none_is_named(world: World, folder: Path, content: bytes) -> None:
    (folder / "release.pem").write_bytes(content)
    assert findings(folder, world.ca) == {("release.pem", "not a release certificate")}


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_truncated_signature_is_named(world: World, folder: Path, kept: int) -> None:
    path = folder / "manifest.json.sig"
    path.write_bytes(path.read_bytes()[:kept])
    assert findings(folder, world.ca) == WRONG_KEY


def test_a_release_outlives_the_tls_certificate_and_not_the_release_key_s(
    world: World, folder: Path, tmp_path: Path
) -> None:
    certificates = tmp_path / "certificates"
    shutil.copytree(world.certificates, certificates)
    now = datetime.now(UTC)
    tls = renew_server_certificate(certificates, ["127.0.0.1"], now=now)
    later = tls.not_valid_after_utc + timedelta(days=365)
    assert findings(folder, certificates / "ca.pem", later) == set()
    signer = looked_at(folder, world.ca).signer
    assert signer is not None
    assert signer.valid_until - now > timedelta(days=3640)
    ended = signer.valid_until + timedelta(days=1)
    for time in (ended, now - timedelta(days=30)):
        assert findings(folder, world.ca, time) == {("release.pem", "certificate not valid now")}


def swap(folder: Path) -> None:
    one, two = folder / MIXER, folder / "run.json"
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)


def link_mixer(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    (folder / MIXER).rename(outside)
    (folder / MIXER).symlink_to(outside)


def link_folder(folder: Path) -> None:
    (folder / "approvals").symlink_to(folder.parent)


def pipe(folder: Path) -> None:
    (folder / "run.json").unlink()
    os.mkfifo(folder / "run.json")


def fill(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "hidden.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (swap, {(MIXER, "changed"), ("run.json", "changed")}),
        (lambda f: (f / "note.txt").write_text("extra"), {("note.txt", "extra")}),
        (lambda f: (f / ".hidden").write_text("extra"), {(".hidden", "extra")}),
        (lambda f: (f / "a\x1b[2Jb").write_text("extra"), {("a\\x1b[2Jb", "extra")}),
        (fill, {("more", "extra")}),
        (lambda f: (f / MIXER).unlink(), {(MIXER, "missing")}),
        (
            lambda f: (f / MIXER).rename(f / "Mixer.safetensors"),
            {(MIXER, "missing"), ("Mixer.safetensors", "extra")},
        ),
        (link_mixer, {(MIXER, "not a file")}),
        (link_folder, {("approvals", "not a file")}),
        (lambda f: (f / "run.json").write_bytes(b"{}"), {("run.json", "changed")}),
        (lambda f: (f / SUMS).write_text(""), {(SUMS, "changed")}),
        (pipe, {("run.json", "not a file")}),
        (
            lambda f: ((f / "approvals").mkdir(), (f / "approvals" / "x.txt").write_text("")),
            {("approvals/x.txt", "extra")},
        ),
        (lambda f: (f / "manifest.json").unlink(), {("manifest.json", "missing")}),
    ],
)
def test_what_does_not_belong_is_named(
    world: World, folder: Path, change: Callable[[Path], object], found: set[tuple[str, str]]
) -> None:
    change(folder)
    assert findings(folder, world.ca) == found


def test_a_swap_says_whose_bytes_they_are(world: World, folder: Path) -> None:
    swap(folder)
    details = {one.file: one.detail for one in looked_at(folder, world.ca).findings}
    assert details[MIXER] == "it holds the bytes of run.json"


ENTRY = f'{{"size": 1, "sha256": "{"a" * 64}"}}'


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        (f'{{"../x": {ENTRY}}}', "../x"),
        (f'{{"/etc/passwd": {ENTRY}}}', "/etc/passwd"),
        (f'{{"a/../../x": {ENTRY}}}', "a/../../x"),
        (f'{{"a//x": {ENTRY}}}', "a//x"),
        (f'{{"approvals/x.json": {ENTRY}}}', "approvals"),
        (f'{{"manifest.json": {ENTRY}}}', "manifest.json"),
        (f'{{"a": {ENTRY}, "A": {ENTRY}}}', "upper and lower case"),
        (f'{{"a": {ENTRY}, "a": {ENTRY}}}', "given twice"),
        (f'{{"a": {{"size": 1, "size": 2, "sha256": "{"a" * 64}"}}}}', "given twice"),
        (f'{{"a": {{"size": -1, "sha256": "{"a" * 64}"}}}}', "greater than or equal"),
        ('{"a": {"size": NaN}}', "NaN"),
        ("{}", "at least 1"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_manifest_that_can_be_read_in_two_ways_is_none_even_when_signed(
    world: World, folder: Path, files: str, seen: str
) -> None:
    text = (
        '{"format_version": 1, "kind": "release", "federation": "trial", '
        f'"made": "2026", "sites": {{}}, "files": {files}}}'
    )
    (folder / "manifest.json").write_text(text)
    sign_with(folder, read_release_key(world.keys).key, None)
    checked = looked_at(folder, world.ca)
    assert [(one.file, one.problem) for one in checked.findings] == [
        ("manifest.json", "not a manifest")
    ]
    assert seen in checked.findings[0].detail


def test_nothing_is_signed_that_does_not_fit_its_manifest(world: World, folder: Path) -> None:
    before = (folder / "manifest.json.sig").read_bytes()
    forge(folder)
    with pytest.raises(ReleaseError, match=r"mixer\.safetensors: changed"):
        sign_release(folder, read_release_key(world.keys))
    assert (folder / "manifest.json.sig").read_bytes() == before


def test_openssl_takes_a_release_key_s_certificate_for_no_server_s(
    world: World, folder: Path
) -> None:
    def openssl(*purpose: str) -> int:
        words = ["openssl", "verify", *purpose, "-CAfile", str(world.ca), "release.pem"]
        return subprocess.run(words, cwd=folder, capture_output=True, check=False).returncode

    assert openssl() == 0
    for purpose in ("sslserver", "sslclient"):
        assert openssl("-purpose", purpose) != 0


def self_signed(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate that says what a release key's says, but that its own key made."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "LiFT trial CA")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([RELEASE_USAGE]), critical=True)
    )
    made = builder.sign(key, hashes.SHA384())
    return made.public_bytes(serialization.Encoding.PEM)
