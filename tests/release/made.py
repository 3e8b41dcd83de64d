"""A federation of keys without a run: a coordinator, two sites, and a release that it made."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from lift.config.site import SiteConfig
from lift.files import file_digest
from lift.release.certificate import read_authority
from lift.release.check import Checked, check_release
from lift.release.manifest import (
    CERTIFICATE_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    ListedFile,
    Manifest,
)
from lift_server.release.key import make_release_key, read_release_key, sign_release
from lift_server.sites import provisioning, roster
from lift_server.sites.provisioning import load_settings
from tests.enrolled import enrolled

SITES: Final = ("east", "west")
SUMS: Final = "SHA256SUMS"
BANNER: Final = "RELEASED WITHOUT AUDIT"
FILES: Final = {
    "mixer.safetensors": b"numbers" * 100,
    "release.json": json.dumps({"audited": False, "audits": {"sites": {}}}).encode(),
    "RELEASE.txt": f"{BANNER}\nMixer of the federation 'trial'\n".encode(),
    "run.json": b"{}\n",
}
Findings = set[tuple[str, str]]


@dataclass(frozen=True)
class World:
    """Folders of the coordinator and the sites."""

    folder: Path

    @property
    def server(self) -> Path:
        return self.folder / "server"

    @property
    def certificates(self) -> Path:
        return self.server / "certificates"

    @property
    def ca(self) -> Path:
        return self.certificates / "ca.pem"

    @property
    def keys(self) -> Path:
        """Of releases: offline."""
        return self.folder / "keys"

    def site(self, name: str) -> SiteConfig:
        folder = self.folder / name
        return SiteConfig.from_yaml(folder / "site.yaml").under(folder)

    def release(self, folder: Path) -> Path:
        """A signed release of this federation, in a new folder."""
        write_files(folder, FILES)
        keys = roster.Roster.read(self.server / "sites.json").admitted_keys
        list_files(folder, sites=keys)
        sign_release(folder, read_release_key(self.keys))
        return folder


def make_world(folder: Path, name: str = "trial", sites: tuple[str, ...] = SITES) -> World:
    """Made once for many tests: none of them changes it."""
    made = World(folder)
    provisioning.init_folder(made.server, ["127.0.0.1"], name)
    make_release_key(made.certificates, made.keys, name)
    config = load_settings(made.server)
    for site in sites:
        joined = enrolled(folder / site, site)
        admitted = roster.add_site(config, site, joined.public)
        shutil.copytree(admitted.kit, folder / site / "kit")
    return made


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sum_up(folder)


def sum_up(folder: Path) -> None:
    """SHA256SUMS of what lies there now, as anybody can write it."""
    names = sorted(FILES)
    lines = [f"{file_digest(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))


def list_files(folder: Path, sites: dict[str, str] | None = None) -> None:
    """A manifest of what lies there now, as anybody can write it; not signed."""
    if sites is None:
        sites = json.loads((folder / MANIFEST_FILE).read_text())["sites"]
    unlisted = {MANIFEST_FILE, SIGNATURE_FILE, CERTIFICATE_FILE, "approvals"}
    manifest = Manifest(
        federation="trial",
        made="2026-01-01T00:00:00+00:00",
        sites=sites,
        files={
            path.name: ListedFile(size=path.stat().st_size, sha256=file_digest(path))
            for path in folder.iterdir()
            if path.name not in unlisted
        },
    )
    (folder / MANIFEST_FILE).write_bytes(manifest.content())


def sign_with(folder: Path, key: ec.EllipticCurvePrivateKey, certificate: bytes | None) -> None:
    """Sign as somebody may who has this key; with their certificate, or the one that is there."""
    content = (folder / MANIFEST_FILE).read_bytes()
    signature = key.sign(content, ec.ECDSA(hashes.SHA384()))
    (folder / SIGNATURE_FILE).write_bytes(signature)
    if certificate is not None:
        (folder / CERTIFICATE_FILE).write_bytes(certificate)


def looked_at(
    folder: Path, ca: Path, now: datetime | None = None, keys: dict[str, str] | None = None
) -> Checked:
    return check_release(
        folder, authority=read_authority(ca), now=now or datetime.now(UTC), keys=keys
    )


def findings(folder: Path, ca: Path, now: datetime | None = None) -> Findings:
    """File and problem of everything that is wrong."""
    return {(one.file, one.problem) for one in looked_at(folder, ca, now).findings}
