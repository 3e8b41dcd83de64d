"""How a site joins: its key, made here; its settings; and the kit that it gets back."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import TypeAdapter, ValidationError

from lift.config.kit import CA_FILE, KIT_FILE, Kit
from lift.config.plan import Name
from lift.errors import ConfigError
from lift.keys import key_fingerprint, public_text, read_key
from lift.strict_json import parse_json

KEY_FILE: Final = "site.key"
PUBLIC_FILE: Final = "site.pub"
SETTINGS_FILE: Final = "site.yaml"
_SETTINGS: Final = """\
# Settings of one site for lift-client. Relative paths start at this file's folder.
# Check them at any time: lift-client check --site site.yaml

# The name under which the coordinator admits this site.
name: "{name}"

data:
  # How the volumes lie on the disk: brats, synthrad, bids or table (then also `table:
  # patients.csv`); auto finds out, and `lift-client check` says what it found.
  layout: auto
  # The folder of the volumes. Nothing in it is changed, and no file name leaves this site.
  root: data
  # skip: a patient whose files cannot be used is left out, by name, in the site's own log.
  # stop: refuse to start until every patient can be used; under a plan that protects patients it is
  # skip all the same, so that no answer that fails to come tells of one patient.
  on_bad_file: skip

# auto: the GPU when there is one; or cpu, or cuda.
device: auto

# The frozen generator: one that ships with this software, or `bundle: FOLDER`.
# Its fingerprint must be the one in the kit, wherever the bundle comes from.
generator:
  builtin: phantom-t1n-t1c-t2w-t2f

cache:
  # Frozen features are computed once and kept on this disk, at most this much.
  largest_gb: 50.0

# The folder that the coordinator sends back: kit.json and ca.pem.
kit: kit
# The private key. It was made here, and must never leave this machine.
key: site.key
# Journal of what left, log, and what is needed to go on after a restart.
folder: work
# A port on 127.0.0.1 between this program's own two processes; nothing listens to the outside.
local_port: 9094

# How much may ever be told about this cohort's patients, all runs together: decide it with the
# data protection officer, then make the ledger once: lift-client ledger --create --site site.yaml
# budget: {{epsilon: 8.0, delta: 0.0001}}

# The data card tells the coordinator what the cohort is like, and leaves only after
# `lift-client check --share-card`.
card:
  # Its counts of persons are rounded down to a multiple of this; nothing smaller appears.
  floor: 5

# What a federation may do here. The site decides: whatever the server asks beyond this is refused.
policy:
  # Which privacy modes this hospital accepts, as [patient-local] or [patient-local, none]. Decide
  # it with the security officer: it has no default, and nothing starts before it is chosen.
  #   none             what leaves carries no added noise: single patients are not protected
  #   patient-local    this site adds noise before anything leaves; needs the section `budget`
  #   patient-central  the server adds the noise: it sees sums without it, and is trusted; `budget`
  #   stats-once       this site adds noise to sums that it sends once (new volumes); `budget`
  #   site             the server hides whether a site took part; patients are not protected
  privacy_modes: []
  # Tasks that may run here; left empty: the kit's own task alone. Example:
  #   - {{source: [t1n, t1c, t2w], target: t2f}}
  tasks: []
  # Fingerprints of generators that may run here; left empty: the kit's own alone.
  generators: []
  # A plan with more rounds, or more training steps in a round, is refused.
  most_rounds: 1000
  most_steps_per_round: 10000
  # What training is steered by. Beyond these bounds a server could let one patient decide whether
  # training overflows; plans that train stay far below them.
  largest_learning_rate: 1.0
  largest_weight_decay: 1.0
  largest_gradient_clip: 1000.0
  largest_loss_weight: 1000.0
  least_clip_norm: 0.000001
  largest_clip_norm: 1000.0
  largest_start_value: 1000.0
  # Numbers of patients leave this hospital rounded up to a multiple of at least this; 1: exact.
  least_patient_count_step: 5
  # Whether a plan for new volumes may make this hospital's mean grey scale (two numbers, over its
  # training patients) known, under its name, to everyone who has the mixer.
  site_styles: false
  # No single answer of a round may hold more bytes of numbers than this.
  largest_update_bytes: 1000000
  # Nor may what is sent once, before the rounds: sums over this hospital's patients.
  largest_statistics_bytes: 8000000
"""


@dataclass(frozen=True)
class Enrolled:
    """The files of a new site, and its key's fingerprint as `ssh-keygen -lf site.pub` shows it."""

    key: Path
    public: Path
    settings: Path
    fingerprint: str


def enrol(folder: Path, name: str) -> Enrolled:
    """A new EC P-384 key, its public half, and commented settings, all in `folder`.

    Guarantee: the private key has mode 0600 from its first byte on; nothing that exists is
    overwritten; when it fails, none of the three files is left behind.

    Raises:
        ConfigError: the name is not one, or one of the files exists.
    """
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise ConfigError(
            "cannot enrol the site",
            where="NAME",
            seen=f"{name!r} is not a site's name",
            remedy="Use 1 to 32 letters, digits, - and _, beginning with a letter or a digit.",
        ) from None
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    settings = _SETTINGS.format(name=name).encode()
    contents = (
        (KEY_FILE, private, 0o600),
        (PUBLIC_FILE, public_text(key.public_key()) + b"\n", 0o644),
        (SETTINGS_FILE, settings, 0o644),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file, _, _ in contents:
        if os.path.lexists(folder / file):
            raise _exists(folder / file)
    with ExitStack() as undo:
        for file, content, mode in contents:
            _create(folder / file, content, mode, undo)
        undo.pop_all()
    return Enrolled(
        folder / KEY_FILE,
        folder / PUBLIC_FILE,
        folder / SETTINGS_FILE,
        key_fingerprint(public_text(key.public_key()).decode()),
    )


def check_key(path: Path) -> str:
    """The fingerprint of the site's key, if :func:`read_key` takes it and its pair fits.

    A public half that is no longer there is no problem: only the coordinator needs it.

    Raises:
        ConfigError: see :func:`read_key`; or the public half beside it is that of another key.
    """
    key = read_key(path).public_key()
    public = path.with_suffix(".pub")
    if public.exists() and public.read_bytes().split()[:2] != public_text(key).split()[:2]:
        raise ConfigError(
            "the site's key is no pair",
            where=str(path),
            seen=f"'{public.name}' belongs to another key",
            remedy="Find out which one the coordinator has admitted, and put its pair here.",
        )
    return key_fingerprint(public_text(key).decode())


def read_kit(folder: Path, *, site: str | None = None) -> Kit:
    """The kit in a folder, if its certificate is the one that it names.

    Args:
        folder: holds `kit.json` and `ca.pem`.
        site: the name in the site's settings; None does not compare it.

    Raises:
        ConfigError: a file is missing or damaged, the certificate is another one, there is more
            than one, or the kit is for another site.
    """
    path = folder / KIT_FILE
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not JSON"
        raise _bad_kit(path, str(reason)) from None
    kit = Kit.from_data(data, str(path))
    found = read_authority(folder).fingerprint(hashes.SHA256()).hex()
    if found != kit.ca_sha256:
        raise _bad_kit(
            folder / CA_FILE,
            f"its SHA-256 is {found[:16]}...; {KIT_FILE} says {kit.ca_sha256[:16]}...",
        )
    if site is not None and kit.site != site:
        raise _bad_kit(path, f"it is for site '{kit.site}'; this site is '{site}'")
    return kit


def read_authority(kit: Path) -> x509.Certificate:
    """The certificate of the federation's authority in a kit's folder.

    Raises:
        ConfigError: the file is missing, or holds anything but exactly one certificate.
    """
    path = kit / CA_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _bad_kit(path, error.strerror or type(error).__name__) from None
    # a second block would be trusted too, without being in the fingerprint
    if content.count(b"-----BEGIN") != 1:
        raise _bad_kit(path, "it does not hold exactly one certificate")
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError:
        raise _bad_kit(path, "it is not a certificate") from None


def _create(path: Path, content: bytes, mode: int, undo: ExitStack) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise _exists(path) from None
    undo.callback(path.unlink, missing_ok=True)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        "cannot enrol the site",
        where=str(path),
        seen="the file exists",
        remedy="Nothing was changed. Choose another folder, or move the old files away first.",
    )


def _bad_kit(path: Path, seen: str) -> ConfigError:
    return ConfigError(
        "cannot use the kit",
        where=str(path),
        seen=seen,
        remedy="Nothing was sent. Ask the coordinator for this site's kit, and compare the "
        "certificate's SHA-256 by telephone.",
    )
