"""Enrolment of a site: its key, its settings, and the kit from the coordinator."""

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
# Settings of one site for lift-client. Relative paths are relative to this file's folder.
# Check them at any time: lift-client check --site site.yaml

# Name of this site, as admitted by the coordinator.
name: "{name}"

data:
  # Layout of the data folder: brats, synthrad, bids or table (table also needs `table:
  # patients.csv`). auto detects it, and `lift-client check` prints the result.
  layout: auto
  # Folder of the volumes. It is only read, and no file name leaves this site.
  root: data
  # skip: leave out a patient whose files cannot be used, and name it in the site's own log.
  # stop: refuse to start until every patient can be used. Under a plan that protects patients,
  # stop acts like skip, so that a missing answer reveals nothing about one patient.
  on_bad_file: skip

# auto (the GPU if there is one), cpu or cuda.
device: auto

# The frozen generator: `builtin: NAME` for a shipped one, or `bundle: FOLDER`.
# In both cases its fingerprint must be the one in the kit.
generator:
  builtin: phantom-t1n-t1c-t2w-t2f

cache:
  # Features of the frozen generator are computed once and kept on disk, up to this size.
  largest_gb: 50.0

# The kit from the coordinator: kit.json and ca.pem.
kit: kit
# The private key. It was created here and must never leave this machine.
key: site.key
# Work folder: the journal of what left, the log, and what a restart needs.
folder: work
# Port on 127.0.0.1 between the two processes of this program. No port is open to the outside.
local_port: 9094

# Privacy budget of this cohort's patients over all runs. Decide it with the data protection
# officer, then create the ledger once: lift-client ledger --create --site site.yaml
# budget: {{epsilon: 8.0, delta: 0.0001}}

# The data card describes the cohort to the coordinator. It leaves only after
# `lift-client check --share-card`.
card:
  # Counts of persons are rounded down to a multiple of this. Smaller counts do not appear.
  floor: 5

# What a federation may do at this site. The site refuses every request beyond this.
policy:
  # Which privacy modes this hospital accepts, as [patient-local] or [patient-local, none]. Decide
  # it with the security officer: it has no default, and nothing starts before it is chosen.
  #   none             what leaves carries no added noise: single patients are not protected
  #   patient-local    this site adds noise before anything leaves; needs the section `budget`
  #   patient-central  the server adds the noise: it sees sums without it, and is trusted; `budget`
  #   stats-once       this site adds noise to sums that it sends once (new volumes); `budget`
  #   site             the server hides whether a site took part; patients are not protected
  privacy_modes: []
  # Tasks that may run here. Empty: only the task of the kit. Example:
  #   - {{source: [t1n, t1c, t2w], target: t2f}}
  tasks: []
  # Fingerprints of generators that may run here. Empty: only the one of the kit.
  generators: []
  # A plan with more rounds, or more training steps in a round, is refused.
  most_rounds: 1000
  most_steps_per_round: 10000
  # Bounds on training settings. Beyond them, a server could choose settings with which one patient
  # decides whether training overflows. Useful plans stay far below them.
  largest_learning_rate: 1.0
  largest_weight_decay: 1.0
  largest_gradient_clip: 1000.0
  largest_loss_weight: 1000.0
  least_clip_norm: 0.000001
  largest_clip_norm: 1000.0
  largest_start_value: 1000.0
  # Numbers of patients are rounded up to a multiple of at least this before they leave. 1: exact.
  least_patient_count_step: 5
  # Whether a plan for new volumes may publish this hospital's mean grey scale (two numbers, over
  # its training patients), under its name, to everyone who has the mixer.
  site_styles: false
  # Largest number of bytes in the tensors of one answer of a round.
  largest_update_bytes: 1000000
  # Largest number of bytes in the statistics that are sent once, before the rounds.
  largest_statistics_bytes: 8000000
  # on: a patient whom `lift-client check --images` vetoes is left out of every run. off: only
  # files that cannot be used are refused. The log and the journal say so.
  image_checks: on

# Patients who take part although the image checks veto them, and why. The reason goes into the
# journal, without the name.
# accept: {{PATIENT: "grey background, looked at by the radiologist"}}
"""


@dataclass(frozen=True)
class Enrolled:
    """The files of a new site, and the fingerprint of its key, as in `ssh-keygen -lf site.pub`."""

    key: Path
    public: Path
    settings: Path
    fingerprint: str


def enrol(folder: Path, name: str) -> Enrolled:
    """Create a new EC P-384 key pair and commented settings in `folder`.

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
            "private and public key of the site do not match",
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
