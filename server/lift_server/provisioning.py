"""What a coordinator hands out: certificates, the roster of admitted sites, one kit for each.

The private halves never leave their makers: the site's key is made at the site, the two keys
of this folder stay in it. Nothing that is there is overwritten, and admitting or removing one
site changes no byte of another one's kit.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final, Literal, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from filelock import FileLock
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from lift.config.base import Settings
from lift.config.generator import GeneratorCard, GeneratorChoice
from lift.config.kit import CA_FILE, KIT_FILE, Kit, TaskRule
from lift.config.plan import Name
from lift.config.server import ServerConfig
from lift.errors import ConfigError, GeneratorError
from lift.files import write_atomically, write_json

CONFIG_FILE: Final = "server.yaml"
ROSTER_FILE: Final = "sites.json"
CERTIFICATES: Final = "certificates"
CA_KEY_FILE: Final = "ca.key"
SERVER_FILE: Final = "server.pem"
SERVER_KEY_FILE: Final = "server.key"
NOTICE_DAYS: Final = 60
"""A certificate that ends within this many days is announced."""
_CA_DAYS: Final = 3650
_SERVER_DAYS: Final = 825
# a site's clock may be behind the coordinator's
_BACKDATED: Final = timedelta(hours=1)
_KEY_TYPE: Final = "ecdsa-sha2-nistp384"
_LARGEST_KEY_FILE: Final = 16_384
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_NAME: Final = TypeAdapter(Name)

_SERVER_YAML: Final = Template("""\
# Settings of lift-server. Relative paths are those of this file's folder.
# Every key is checked: a typo stops the start. `lift-server check` tests all that stands here.
name: "$federation"
data_statement: ""   # what the sites' volumes are, in one sentence: it stands in the run's record
phantom: false       # true when every site's volumes are phantoms: said wherever the mixer goes
address: "$address"   # what sites dial; the host must stand in the server's certificate
listen_host: 0.0.0.0
listen_port: 8443              # the only public port: TLS, and nothing but what sites need
control_port: 8444             # on 127.0.0.1 only
health_port: 8445              # on 127.0.0.1 only: gRPC health service; null switches it off
certificates: certificates     # ca.pem, ca.key, server.pem, server.key
sites: sites.json              # written by add-site and remove-site
state: state                   # what the server must remember between starts
output: run                    # run.json, rounds.jsonl, checkpoints, mixer.safetensors
generator:
  # Trained on PHANTOM volumes: for trials. For patients: `bundle: FOLDER` of `lift pretrain`.
  builtin: phantom-t1n-t1c-t2w-t2f
wait_for_sites_s: 3600         # how long a start waits for the quorum of sites to connect
plan:
  task: {source: [t1n, t1c, t2w], target: t2f}
  seed: 1
  threads: 2                   # part of what makes runs bit-identical on a CPU
  split: {train: 0.7, validation: 0.15, key: "$federation"}
  mixer: {kind: zrefine}
  training: {steps: 40, patients_per_step: 4, window: [10, 48, 48]}
  aggregation: {weights: patients, largest_share: 0.6}
  federation:
    rounds: 20
    quorum_sites: 0            # sites that must answer in each round; 0 means all
    quorum_patients: 1.0       # share of all training patients that must have answered
    deadline_s: 3600           # a round closes after this with those who answered; null derives
                               # it from the sites' timed dry runs
  # Required, and a choice: with `none` nobody adds noise to what the sites send, so the updates
  # and the mixer carry no privacy guarantee. Each site's policy must accept it as well.
  privacy: {mode: none}
""")

_KIT_README: Final = Template("""\
Kit of the site '$site' for the federation '$federation'. Nothing in it is secret.

  kit.json   what the federation does, and where its server answers: $address
  ca.pem     the certificate by which your site recognises that server

1. Put this folder beside your site.yaml, under the name `kit`.
2. Ask the coordinator, by telephone, to read out the fingerprint of the certificate authority.
   It must be: $ca
   The fingerprint of your own key, as the coordinator received it, is: $key
3. lift-client check --site site.yaml
4. lift-client --site site.yaml

Your private key (site.key) never leaves your site: nobody will ever ask you for it.
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

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if key_fingerprint(self.public_key) != self.fingerprint:
            raise ValueError("the fingerprint is not that of the public key")
        return self


class Roster(Settings):
    """Who may take part, and who no longer may: the content of `sites.json`."""

    format_version: Literal[1] = 1
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

    @classmethod
    def read(cls, path: Path) -> Self:
        """The roster of a file.

        Raises:
            ConfigError: it is missing, is not JSON or does not fit.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
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
    """What `add_site` did.

    Attributes:
        kit: the folder to send to the site.
        fingerprint: of the site's key.
        ca_fingerprint: SHA-256 of the certificate authority's certificate (DER), hexadecimal.
        change: whether the site is new, was there with this key, came back with the key it had
            when it was removed, or came back with another one.
    """

    kit: Path
    fingerprint: str
    ca_fingerprint: str
    change: Literal["new", "unchanged", "same_key", "new_key"]


@dataclass(frozen=True)
class Notice:
    """A certificate that ends soon (warning), or is not valid now (problem)."""

    certificate: Literal["certificate authority", "server certificate"]
    level: Literal["warning", "problem"]
    days_left: int
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.certificate} {self.text}. {self.remedy}"


def init_folder(
    folder: Path, hosts: Sequence[str], federation: str, *, now: datetime | None = None
) -> None:
    """Make a coordinator's folder: certificates with their keys, an empty roster, server.yaml.

    The keys have mode 0600 from their first moment. Either all files are written or, unless
    the process is killed, none.

    Args:
        folder: is made if it is not there.
        hosts: names or IP addresses at which sites reach the server; the first one is dialled.
        federation: name of the federation.
        now: the time at which the certificates are made.

    Raises:
        ConfigError: a name is not one, or the folder holds one of the files already.
    """
    _check_name(federation, "the federation")
    names = _subject_names(hosts)
    present = [path.relative_to(folder).as_posix() for path in _made(folder) if path.exists()]
    if present:
        raise ConfigError(
            "the folder is in use",
            where=str(folder),
            seen=f"it holds {', '.join(present)}",
            remedy="Nothing was changed. Choose another folder; `lift-server renew` makes a new "
            "server certificate.",
        )
    time = now or datetime.now(UTC)
    ca_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca = _authority(ca_key, federation, time)
    host = hosts[0].strip("[]")
    text = {
        "federation": federation,
        "address": f"[{host}]:8443" if ":" in host else f"{host}:8443",
    }
    contents = (
        (_pem(ca), 0o644),
        (_private_pem(ca_key), 0o600),
        (_pem(_server_certificate(ca, ca_key, server_key.public_key(), names, time)), 0o644),
        (_private_pem(server_key), 0o600),
        ((json.dumps(Roster().model_dump(mode="json"), indent=2) + "\n").encode(), 0o644),
        (_SERVER_YAML.substitute(text).encode(), 0o644),
    )
    (folder / CERTIFICATES).mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for path, (content, mode) in zip(_made(folder), contents, strict=True):
            _write_new(path, content, mode)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def renew_server_certificate(
    certificates: Path, hosts: Sequence[str], *, now: datetime | None = None
) -> x509.Certificate:
    """Replace `server.pem` by a new certificate of the same authority: every kit stays good.

    The server's key is kept, so one file changes and it changes at once. To change the key as
    well, remove `server.key` first: a new one is then made. A running server uses the new
    certificate from its next start.

    Args:
        certificates: the folder of ca.pem, ca.key, server.pem and server.key.
        hosts: as in `init_folder`.
        now: the time at which the certificate is made.

    Raises:
        ConfigError: a file is missing or damaged, the authority's key is not that of its
            certificate, or the authority itself has ended.
    """
    time = now or datetime.now(UTC)
    names = _subject_names(hosts)
    ca = read_certificate(certificates / CA_FILE)
    ca_key = read_private_key(certificates / CA_KEY_FILE)
    if ca_key.public_key() != ca.public_key() or time > ca.not_valid_after_utc:
        ended = time > ca.not_valid_after_utc
        raise ConfigError(
            "cannot renew the server's certificate",
            where=str(certificates),
            seen="the certificate authority has ended"
            if ended
            else f"{CA_KEY_FILE} is not the key of {CA_FILE}",
            remedy="Make a new folder with `lift-server init` and give every site its new kit."
            if ended
            else "Restore both files from the same backup.",
        )
    key_path = certificates / SERVER_KEY_FILE
    if key_path.exists():
        key = read_private_key(key_path)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        _write_new(key_path, _private_pem(key), 0o600)
    made = _server_certificate(ca, ca_key, key.public_key(), names, time)
    write_atomically(certificates / SERVER_FILE, _pem(made))
    return made


def certificate_notices(certificates: Path, now: datetime) -> list[Notice]:
    """What is to be said about the two certificates' time of validity; empty when all is well.

    Raises:
        ConfigError: a certificate is missing or damaged.
    """
    notices: list[Notice] = []
    kinds: tuple[tuple[Literal["certificate authority", "server certificate"], str, str], ...] = (
        (
            "certificate authority",
            CA_FILE,
            "Plan a new folder (`lift-server init`): every site needs a new kit from it.",
        ),
        (
            "server certificate",
            SERVER_FILE,
            "Run `lift-server renew`, then start the server again.",
        ),
    )
    for name, file, remedy in kinds:
        certificate = read_certificate(certificates / file)
        ends = certificate.not_valid_after_utc
        days = (ends - now) // timedelta(days=1)
        if now > ends:
            text = f"ended on {ends:%Y-%m-%d}: no site can connect"
            notices.append(Notice(name, "problem", days, text, remedy))
        elif now < certificate.not_valid_before_utc:
            text = f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            notices.append(Notice(name, "problem", days, text, "Set this machine's clock."))
        elif days <= NOTICE_DAYS:
            text = f"ends in {days} days, on {ends:%Y-%m-%d}"
            notices.append(Notice(name, "warning", days, text, remedy))
    return notices


def add_site(
    config: ServerConfig, name: str, public_key_path: Path, *, now: datetime | None = None
) -> Admission:
    """Admit one site and write its kit, `kits/NAME` beside the roster.

    A site that is admitted with this very key stays as it is, and its kit is written anew (the
    address may have changed). A removed site may come back, with the key it had or another one.
    No other site's entry or kit is touched.

    Args:
        config: the server's settings, with paths made absolute (`under`).
        name: the site's name.
        public_key_path: the `site.pub` that `lift-client enroll` made at the site.
        now: the time of the admission.

    Raises:
        ConfigError: the file is no public EC P-384 key, or the name or the key is taken.
        GeneratorError: the federation's generator bundle cannot be read.
    """
    _check_name(name, "a site")
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
        )
        entry = SiteEntry(
            public_key=public_key,
            fingerprint=key_fingerprint(public_key),
            admitted=_iso(now),
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
        write_atomically(kit_folder / CA_FILE, _pem(ca))
        write_atomically(kit_folder / "README.txt", _KIT_README.substitute(text).encode())
        change: Literal["new", "unchanged", "same_key", "new_key"] = "new"
        if before is not None and before.removed is None:
            change = "unchanged"
        else:
            if before is not None:
                change = "same_key" if before.public_key == public_key else "new_key"
            Roster(sites={**roster.sites, name: entry}).write(config.sites)
    return Admission(kit_folder, entry.fingerprint, kit.ca_sha256, change)


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
            "spoiled:\nthe site makes a new one (`lift-client enroll`) and sends site.pub alone.",
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


def key_fingerprint(public_key: str) -> str:
    """`SHA256:` and 43 characters, as `ssh-keygen -l -f site.pub` writes it.

    Raises:
        ValueError: the text is not an OpenSSH public key.
    """
    try:
        blob = base64.b64decode(public_key.split()[1], validate=True)
    except (IndexError, binascii.Error):
        raise ValueError("the public key is not in OpenSSH form") from None
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def ca_fingerprint(certificates: Path) -> str:
    """SHA-256 of the authority's certificate (DER), in hexadecimal."""
    return read_certificate(certificates / CA_FILE).fingerprint(hashes.SHA256()).hex()


def plan_fingerprint(config: ServerConfig) -> str:
    """The fingerprint of the federation's generator, from its bundle's card.

    The card says it; whether the weights are those is checked when they are loaded.

    Raises:
        GeneratorError: no card, or not the generator that the plan names.
    """
    card = read_card(config.generator)
    wanted = config.plan.generator_fingerprint
    if wanted is not None and wanted != card.fingerprint:
        raise GeneratorError(
            "the generator is not the one that the plan names",
            where="generator, plan.generator_fingerprint",
            seen=f"fingerprint {card.fingerprint[:16]}...; the plan says {wanted[:16]}...",
            remedy="Give the bundle that belongs to this plan.",
        )
    return card.fingerprint


def bundle_folder(choice: GeneratorChoice) -> Path:
    """The folder of the chosen bundle; one of your own may not exist.

    Raises:
        GeneratorError: no bundle of this name is part of the package.
    """
    if choice.bundle is not None:
        return choice.bundle
    root = Path(str(files("lift.generator"))) / "bundles"
    names = sorted(card.parent.name for card in root.glob("*/generator.json"))
    if choice.builtin not in names:
        raise GeneratorError(
            f"there is no built-in generator bundle '{choice.builtin}'",
            where="generator",
            seen=f"built in: {', '.join(names) or 'none'}",
            remedy="Name one of these, or give the folder of a bundle.",
        )
    return root / str(choice.builtin)


def read_card(choice: GeneratorChoice) -> GeneratorCard:
    """The card of the chosen bundle; torch, which takes seconds to load, is not needed.

    Raises:
        GeneratorError: the card is missing or damaged.
    """
    path = bundle_folder(choice) / "generator.json"
    try:
        return GeneratorCard.from_data(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        reason = error.seen if isinstance(error, ConfigError) else "not JSON"
        raise GeneratorError(
            "cannot use the generator bundle",
            where=str(path.parent),
            seen=str(error.strerror) if isinstance(error, OSError) else reason,
            remedy="Give a built-in name or the folder of a bundle under `generator`.",
        ) from None


def read_certificate(path: Path) -> x509.Certificate:
    """One PEM certificate.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, "a PEM certificate") from None


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """One PEM private key without a password.

    Raises:
        ConfigError: it is missing, damaged, encrypted or of another kind.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unreadable(path, error, "a PEM key without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unreadable(path, ValueError(), "an elliptic-curve key")
    return key


def certificate_hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    """Names and IP addresses under which the certificate is valid."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in extension.value)


def address_host(address: str) -> str:
    """The host of `host:port`; an IPv6 address comes without its brackets."""
    return address.rpartition(":")[0].strip("[]")


def _made(folder: Path) -> tuple[Path, ...]:
    """The files of `init_folder`, server.yaml last: with it the folder is complete."""
    names = (CA_FILE, CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE)
    certificates = (folder / CERTIFICATES / name for name in names)
    return (*certificates, folder / ROSTER_FILE, folder / CONFIG_FILE)


def _authority(key: ec.EllipticCurvePrivateKey, federation: str, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"LiFT {federation} CA")])
    usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
    return _sign(
        name,
        name,
        key.public_key(),
        key,
        (now - _BACKDATED, now - _BACKDATED + timedelta(days=_CA_DAYS)),
        {
            x509.BasicConstraints(ca=True, path_length=0): True,
            x509.KeyUsage(**usage): True,
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()): False,
        },
    )


def _server_certificate(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    names: Sequence[x509.GeneralName],
    now: datetime,
) -> x509.Certificate:
    begins = max(now - _BACKDATED, ca.not_valid_before_utc)
    issuer = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    usage = dict.fromkeys(_USAGES, False) | {"digital_signature": True}
    # the subject's name is not what is compared: the alternative names are, and they may be long
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "LiFT server")])
    return _sign(
        subject,
        ca.subject,
        public_key,
        ca_key,
        (begins, min(begins + timedelta(days=_SERVER_DAYS), ca.not_valid_after_utc)),
        {
            x509.BasicConstraints(ca=False, path_length=None): True,
            x509.KeyUsage(**usage): True,
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]): False,
            x509.SubjectAlternativeName(names): False,
            x509.SubjectKeyIdentifier.from_public_key(public_key): False,
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer): False,
        },
    )


_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    ca_key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime, datetime],
    extensions: Mapping[x509.ExtensionType, bool],
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )
    for extension, critical in extensions.items():
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(ca_key, hashes.SHA384())


def _subject_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """The given hosts, then localhost and 127.0.0.1, each once."""
    if not hosts:
        raise _bad_host("no host is given")
    names: list[x509.GeneralName] = []
    for host in (*hosts, "localhost", "127.0.0.1"):
        name = _subject_name(host.strip())
        if name not in names:
            names.append(name)
    return names


def _subject_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        labels = host.split(".")
        fits = len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
        # a last label of digits is a mistyped IP address
        if not fits or labels[-1].isdigit():
            raise _bad_host(f"'{host}' is neither") from None
        return x509.DNSName(host.lower())


def _bad_host(seen: str) -> ConfigError:
    return ConfigError(
        "the server's host cannot be used",
        where="--host",
        seen=f"{seen}; needed: a DNS name or an IP address, without scheme and port",
        remedy="Nothing was changed. Give what sites will dial, such as lift.example.org.",
    )


def _check_name(name: str, of: str) -> None:
    try:
        _NAME.validate_python(name)
    except ValidationError:
        raise ConfigError(
            f"this cannot be the name of {of}",
            seen=f"'{name}'; needed: 1 to 32 letters, digits, - or _, the first a letter or digit",
            remedy="Nothing was changed. Choose another name.",
        ) from None


def _check_free(roster: Roster, name: str, public_key: str) -> None:
    """Nothing, when `add_site` may give this name to this key."""
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


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist yet; it has its mode from the first moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _unreadable(path: Path, error: Exception, needed: str) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else "not readable"
    return ConfigError(
        f"cannot use {path.name}",
        where=str(path.parent),
        seen=f"{reason}; needed: {needed}",
        remedy="`lift-server init` makes it in a new folder; restore it from your backup.",
    )


def _iso(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
