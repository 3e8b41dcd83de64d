"""Patients who were withdrawn: kept as keyed hashes, and left out whenever a cohort is opened.

A patient's name is hashed with HMAC-SHA256 under a key that stays in the site's work folder. So
the lists there name nobody, and whoever has the folder can still ask whether a name is in them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from lift.cohort.patients import Patient
from lift.config.base import VERSION, Settings
from lift.config.plan import Digest
from lift.config.site import SiteSettings
from lift.errors import RecordError
from lift.files import write_atomically
from lift.strict_json import read_model

KEY_FILE: Final = "patients.key"
WITHDRAWN_FILE: Final = "withdrawn.json"
LONGEST_REASON: Final = 200
_KEY_BYTES: Final = 32
Reason = Annotated[str, Field(max_length=LONGEST_REASON, pattern=r"^[^\x00-\x1f\x7f]*$")]
LeftOut = Callable[[Patient], bool]
"""Whether a patient is left out."""


class PatientHashes:
    """Keyed hashes of names: HMAC-SHA256, hexadecimal. A person and an examination differ."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def person(self, subject: str) -> str:
        """The hash of a person (`Patient.subject`)."""
        return self._hash("person", subject)

    def examination(self, name: str) -> str:
        """The hash of an examination (`Patient.id`)."""
        return self._hash("examination", name)

    @property
    def key_digest(self) -> str:
        """Tells whether a list was made with this key."""
        return self._hash("key", "")

    def _hash(self, kind: str, name: str) -> str:
        return hmac.new(self.key, f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()


class WithdrawnPatient(Settings):
    """One person who was withdrawn."""

    person: Digest
    """Keyed hash of the person."""
    examinations: tuple[Digest, ...]
    """Keyed hashes of the examinations that were known then."""
    withdrawn: Annotated[str, Field(max_length=40)]
    """UTC, ISO 8601."""
    reason: Reason = ""


class WithdrawnPatients(Settings):
    """The content of `withdrawn.json`."""

    format_version: Annotated[Literal[1], VERSION] = 1
    key_digest: Digest
    """Of the key of these hashes."""
    patients: tuple[WithdrawnPatient, ...] = ()


def read_hashes(folder: Path) -> PatientHashes | None:
    """The hashes under the key of a work folder; None where there is no key yet.

    Raises:
        RecordError: the key is damaged or cannot be read.
    """
    path = folder / KEY_FILE
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        if len(key) != _KEY_BYTES:
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        seen = error.strerror if isinstance(error, OSError) else "it holds no key"
        raise _unknown(path, str(seen)) from None
    return PatientHashes(key)


def new_hashes() -> PatientHashes:
    """The hashes under a new key, which is not kept yet."""
    return PatientHashes(secrets.token_bytes(_KEY_BYTES))


def keep_key(folder: Path, hashes: PatientHashes) -> None:
    """Keep the key in a work folder that has none yet, with mode 0600."""
    path = folder / KEY_FILE
    if not path.exists():
        write_atomically(path, f"{hashes.key.hex()}\n".encode(), mode=0o600)


def read_withdrawn(folder: Path) -> tuple[WithdrawnPatient, ...]:
    """The patients who were withdrawn at a site, in the order of their withdrawal.

    Raises:
        RecordError: the list is damaged, or its key is missing or another one.
    """
    path = folder / WITHDRAWN_FILE
    refuse = partial(_unknown, path)
    found = read_model(WithdrawnPatients, path, refuse, damaged="it is not such a list")
    if found is None:
        return ()
    check_key(path, found.key_digest, read_hashes(folder))
    return found.patients


def write_withdrawn(
    folder: Path, hashes: PatientHashes, patients: tuple[WithdrawnPatient, ...]
) -> None:
    """Replace the list, with mode 0600. The key is kept first, where there is none yet."""
    keep_key(folder, hashes)
    found = WithdrawnPatients(key_digest=hashes.key_digest, patients=patients)
    content = found.model_dump_json(indent=2).encode() + b"\n"
    write_atomically(folder / WITHDRAWN_FILE, content, mode=0o600)


def check_key(path: Path, key_digest: str, hashes: PatientHashes | None) -> None:
    """Raise unless a list of hashes was made with the key that lies beside it.

    Raises:
        RecordError: with another one, or the key is missing.
    """
    if hashes is None:
        raise _unknown(path, f"{KEY_FILE}, the key of its hashes, is missing")
    if hashes.key_digest != key_digest:
        raise _unknown(path, f"its hashes were made with another key than {KEY_FILE}")


def left_out(settings: SiteSettings) -> LeftOut:
    """Return whether a patient was withdrawn at this site.

    Raises:
        RecordError: the list cannot be read, so nobody can be told from those who were withdrawn.
    """
    folder = settings.patient_records
    withdrawn = () if folder is None else read_withdrawn(folder)
    hashes = None if folder is None else read_hashes(folder)
    if hashes is None or not withdrawn:
        return nobody
    persons = {one.person for one in withdrawn}
    examinations = {name for one in withdrawn for name in one.examinations}

    def is_left_out(patient: Patient) -> bool:
        # by both: a table may have lost its column of subjects since
        return (
            hashes.person(patient.subject) in persons
            or hashes.examination(patient.id) in examinations
        )

    return is_left_out


def nobody(patient: Patient) -> bool:
    """Leaves out no patient."""
    del patient
    return False


def _unknown(path: Path, seen: str) -> RecordError:
    return RecordError(
        "cannot tell which patients were withdrawn",
        where=str(path),
        seen=seen,
        remedy=f"Nothing was read of any patient. Restore {KEY_FILE} and the lists beside it from "
        "the newest backup, and repeat withdrawals that are newer. Without a backup see "
        "`Withdraw a patient` in the guide for sites.",
    )
