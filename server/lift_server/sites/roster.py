"""The roster: admitted sites with their keys, and their kits.

Admitting or removing one site changes no byte of another one's kit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Annotated, Final, Literal, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from filelock import FileLock
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from lift.config.base import VERSION, Settings
from lift.config.kit import CA_FILE, KIT_FILE, Kit, TaskRule
from lift.config.plan import Name
from lift.config.server import ServerConfig
from lift.errors import ConfigError, GeneratorError
from lift.files import write_atomically, write_json
from lift.generator.card import bundle_folder, read_card
from lift.keys import key_fingerprint
from lift.strict_json import parse_json
from lift_server.sites.certificates import pem, read_certificate

ROSTER_FILE: Final = "sites.json"
_KEY_TYPE: Final = "ecdsa-sha2-nistp384"
_LARGEST_KEY_FILE: Final = 16_384
_NAME: Final = TypeAdapter(Name)

_KIT_README: Final = Template("""\
Kit of the site '$site' for the federation '$federation'. Nothing in it is secret.

  kit.json   the federation's task, and the address of its server: $address
  ca.pem     the certificate that identifies this server

1. Put this folder next to your site.yaml, with the name `kit`.
2. Ask the coordinator by telephone to read out the fingerprint of the certificate authority.
   It must be: $ca
   The fingerprint of your own key, as the coordinator received it, is: $key
3. lift-client check --site site.yaml
4. lift-client --site site.yaml

Your private key (site.key) never leaves your site. The coordinator will never ask for it.
""")


class SiteEntry(Settings):
    """One line of the roster."""

    public_key: str
    """OpenSSH text without its comment: `ecdsa-sha2-nistp384 AAAA...`."""
    fingerprint: str
    """SHA-256 of the key, as `ssh-keygen -l` writes it."""
    admitted: str
    """UTC, ISO 8601."""
    removed: str | None = None
    """UTC, ISO 8601; null while the site is admitted."""
    patients: int | None = Field(default=None, ge=1)
    """Patients that the site declared; a higher claim is refused, and a quorum counts them."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if key_fingerprint(self.public_key) != self.fingerprint:
            raise ValueError("the fingerprint is not that of the public key")
        return self


class Roster(Settings):
    """Admitted and removed sites: the content of `sites.json`."""

    format_version: Annotated[Literal[1], VERSION] = 1
    sites: dict[Name, SiteEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        keys = list(self.admitted_keys.values())
        if len(set(keys)) != len(keys):
            raise ValueError("two admitted sites have the same key")
        return self

    @property
    def admitted_keys(self) -> dict[str, str]:
        """Name -> OpenSSH public key of every site that may take part now, sorted by name."""
        return {n: e.public_key for n, e in sorted(self.sites.items()) if e.removed is None}

    @property
    def declared_patients(self) -> dict[str, int]:
        """Name -> patients that an admitted site declared, sorted by name; others are left out."""
        return {
            name: entry.patients
            for name, entry in sorted(self.sites.items())
            if entry.removed is None and entry.patients is not None
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """The roster of a file.

        Raises:
            ConfigError: it is missing, is not JSON or does not fit.
        """
        try:
            data = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(
                "cannot read the roster of sites",
                where=str(path),
                seen=str(error.strerror) if isinstance(error, OSError) else "not JSON",
                remedy="`lift-server init` makes it; restore a damaged one from your backup.",
            ) from None
        return cls.from_data(data, str(path))

    def write(self, path: Path) -> None:
        """Replace the file: a reader, or a crash, sees the old roster or the new one."""
        write_json(path, self.model_dump(mode="json"))


@dataclass(frozen=True)
class Admission:
    """The result of `add_site`.

    Attributes:
        kit: the folder to send to the site.
        fingerprint: of the site's key.
        ca_fingerprint: SHA-256 of the certificate authority's certificate (DER), hexadecimal.
        change: whether the site is new, was there with this key, came back with the key it had
            when it was removed, or came back with another one.
        patients: that the site declared; None where it declared none.
    """

    kit: Path
    fingerprint: str
    ca_fingerprint: str
    change: Literal["new", "unchanged", "same_key", "new_key"]
    patients: int | None


def add_site(
    config: ServerConfig,
    name: str,
    public_key_path: Path,
    *,
    patients: int | None = None,
    now: datetime | None = None,
) -> Admission:
    """Admit one site and write its kit, `kits/NAME` beside the roster.

    A site that is admitted with this very key stays as it is, and its kit is written again (the
    address may have changed). A removed site may come back, with the key it had or another one.
    No other site's entry or kit is touched.

    Args:
        config: the server's settings, with paths made absolute (`under`).
        name: the site's name.
        public_key_path: the `site.pub` that `lift-client enroll` made at the site.
        patients: that the site declares, at least 1; None keeps what it declared before.
        now: the time of the admission.

    Raises:
        ConfigError: the file is no public EC P-384 key, or the name or the key is taken.
        GeneratorError: the federation's generator bundle cannot be read.
    """
    check_name(name, "a site")
    public_key = read_public_key(public_key_path)
    kit_folder = config.sites.parent / "kits" / name
    with _locked(config.sites):
        roster = Roster.read(config.sites)
        _check_free(roster, name, public_key)
        before = roster.sites.get(name)
        # one certificate alone, whatever else the file may hold: a site trusts all it finds there
        ca = read_certificate(config.certificates / CA_FILE)
        kit = Kit(
            federation=config.name,
            site=name,
            address=config.address,
            ca_sha256=ca.fingerprint(hashes.SHA256()).hex(),
            generator_fingerprint=plan_fingerprint(config),
            task=TaskRule(source=config.plan.task.source, target=config.plan.task.target),
            grid=config.plan.preprocessing.grid,
        )
        entry = SiteEntry(
            public_key=public_key,
            fingerprint=key_fingerprint(public_key),
            admitted=_iso(now),
            patients=patients if patients is not None or before is None else before.patients,
        )
        text = {
            "site": name,
            "federation": config.name,
            "address": config.address,
            "ca": " ".join(re.findall("....", kit.ca_sha256)),
            "key": entry.fingerprint,
        }
        # the kit first: a crash in between leaves a kit that admits nobody
        write_json(kit_folder / KIT_FILE, kit.model_dump(mode="json"))
        write_atomically(kit_folder / CA_FILE, pem(ca))
        write_atomically(kit_folder / "README.txt", _KIT_README.substitute(text).encode())
        change: Literal["new", "unchanged", "same_key", "new_key"] = "new"
        if before is not None and before.removed is None:
            change = "unchanged"
            entry = before.model_copy(update={"patients": entry.patients})
        elif before is not None:
            change = "same_key" if before.public_key == public_key else "new_key"
        if entry != before:
            Roster(sites={**roster.sites, name: entry}).write(config.sites)
    return Admission(kit_folder, entry.fingerprint, kit.ca_sha256, change, entry.patients)


def remove_site(config: ServerConfig, name: str, *, now: datetime | None = None) -> bool:
    """Mark a site as removed and say whether it was admitted until now.

    A running server refuses the site from its next round. `add_site` takes it back.

    Raises:
        ConfigError: the roster has no site of this name.
    """
    with _locked(config.sites):
        roster = Roster.read(config.sites)
        entry = roster.sites.get(name)
        if entry is None:
            raise ConfigError(
                f"there is no site '{name}'",
                where=str(config.sites),
                seen=f"sites: {', '.join(sorted(roster.sites)) or 'none'}",
                remedy="Nothing was changed. Give one of these names.",
            )
        if entry.removed is not None:
            return False
        removed = entry.model_copy(update={"removed": _iso(now)})
        Roster(sites={**roster.sites, name: removed}).write(config.sites)
    return True


def read_public_key(path: Path) -> str:
    """The key of one `site.pub`, as OpenSSH text without its comment.

    Raises:
        ConfigError: it is a private key, or not one public EC P-384 key in OpenSSH form.
    """
    with path.open("rb") as stream:
        content = stream.read(_LARGEST_KEY_FILE)
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            "this is a site's PRIVATE key",
            where=str(path),
            seen="a private key must never leave its site; needed: the public one, `site.pub`",
            remedy="Nothing was admitted. Delete this file. If it came from a site, its key is "
            "compromised:\nit makes a new one (`lift-client enroll`) and sends only site.pub.",
        )
    words = content.split()
    seen = "it is not a public key in OpenSSH form"
    if len(content.strip().splitlines()) == 1 and len(words) >= 2:
        kind = words[0].decode("ascii", "replace")[:40]
        if kind == _KEY_TYPE:
            try:
                key = serialization.load_ssh_public_key(b" ".join(words[:2]))
            except (ValueError, UnsupportedAlgorithm):
                seen = "the key is damaged"
            else:
                form = serialization.PublicFormat.OpenSSH
                return key.public_bytes(serialization.Encoding.OpenSSH, form).decode("ascii")
        elif kind.startswith(("ssh-", "ecdsa-", "sk-")):
            seen = f"the key is of the kind {kind}"
    raise ConfigError(
        "cannot use the site's public key",
        where=str(path),
        seen=f"{seen}; needed: one line `{_KEY_TYPE} ...`",
        remedy="Nothing was admitted. Ask the site for the site.pub of `lift-client enroll`.",
    )


def plan_fingerprint(config: ServerConfig) -> str:
    """The fingerprint of the federation's generator, from its bundle's card.

    The card says it; whether the weights are those is checked when they are loaded.

    Raises:
        GeneratorError: no card, or not the generator that the plan names.
    """
    card = read_card(bundle_folder(config.generator))
    wanted = config.plan.generator_fingerprint
    if wanted is not None and wanted != card.fingerprint:
        raise GeneratorError(
            "the generator is not the one that the plan names",
            where="generator, plan.generator_fingerprint",
            seen=f"fingerprint {card.fingerprint[:16]}...; the plan says {wanted[:16]}...",
            remedy="Give the bundle that belongs to this plan.",
        )
    return card.fingerprint


def check_name(name: str, of: str) -> None:
    """Raise ConfigError unless this is a valid name for `of`: "a site", "the federation".

    Raises:
        ConfigError: it cannot.
    """
    try:
        _NAME.validate_python(name)
    except ValidationError:
        raise ConfigError(
            f"this cannot be the name of {of}",
            seen=f"'{name}'; needed: 1 to 32 letters, digits, - or _, the first a letter or digit",
            remedy="Nothing was changed. Choose another name.",
        ) from None


def _check_free(roster: Roster, name: str, public_key: str) -> None:
    """Raise unless `add_site` may give this name to this key."""
    seen = ""
    for other, entry in sorted(roster.sites.items()):
        if other == name:
            if entry.removed is None and entry.public_key != public_key:
                seen = (
                    f"'{name}' is admitted with the key {entry.fingerprint}; "
                    f"this one is {key_fingerprint(public_key)}"
                )
        elif other.lower() == name.lower():
            # the folders of their kits are one folder on some file systems
            seen = f"'{other}' differs in upper and lower case only"
        elif entry.removed is None and entry.public_key == public_key:
            seen = f"this key is admitted as '{other}'"
    if seen:
        raise ConfigError(
            f"cannot admit the site '{name}'",
            where=ROSTER_FILE,
            seen=seen,
            remedy="Nothing was changed. To replace a key or a name, remove the old one first: "
            "`lift-server remove-site`.",
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer of the roster at a time: of two admissions at once neither is lost."""
    if not path.is_file():
        Roster.read(path)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def _iso(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
