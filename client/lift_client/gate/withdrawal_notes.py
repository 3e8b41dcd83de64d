"""The journal's lines about withdrawals: an older list, or none, is noticed by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lift.cohort.withdrawn import (
    WITHDRAWN_FILE,
    PatientHashes,
    WithdrawnPatient,
    read_hashes,
    read_withdrawn,
)
from lift.errors import RecordError
from lift_client.gate.journal import JOURNAL_FILE, Entry, Journal, Line, read_journal

_BEGINS: Final = "The operator withdrew a patient. "
_KEY_DIGITS: Final = 16


def note_withdrawal(journal: Journal, work: Path, entry: WithdrawnPatient) -> None:
    """Write the line of a withdrawal, unless the journal has it. The list is on the disk already.

    Raises:
        RecordError: the journal is damaged, or the key is.
    """
    hashes = read_hashes(work)
    if hashes is None or entry.person in _noted(read_journal(work / JOURNAL_FILE).lines, hashes):
        return
    because = f" Reason: {entry.reason}" if entry.reason else ""
    journal.append(
        Entry.note(
            f"{_BEGINS}The SHA-256 of this line is a hash of the patient, {_under(hashes)} Nothing "
            f"was sent.{because}",
            sha256=entry.person,
        )
    )


def check_noted(work: Path) -> None:
    """Raise if the journal notes a withdrawal that the list lacks: it is an older one, or is gone.

    Lines under a key that was lost, and replaced, are passed over.

    Raises:
        RecordError: it does, or the list cannot be read.
    """
    hashes = read_hashes(work)
    listed = {one.person for one in read_withdrawn(work)}
    missing = _noted(read_journal(work / JOURNAL_FILE).lines, hashes) - listed
    if missing:
        raise RecordError(
            "the list of withdrawn patients is an older one, or is gone",
            where=str(work / WITHDRAWN_FILE),
            seen=f"the journal notes {len(missing)} withdrawals that are not in it, the first of "
            f"{min(missing)[:16]}...",
            remedy="Nothing was read of any patient. Restore the newest copy, or repeat these "
            "withdrawals: `lift-client withdraw`.",
        )


def _noted(lines: Sequence[Line], hashes: PatientHashes | None) -> set[str]:
    """Persons of the lines under this key; of all where there is none any more."""
    return {
        line.sha256
        for line in lines
        if line.kind == "note"
        and line.purpose.startswith(_BEGINS)
        and (hashes is None or _under(hashes) in line.purpose)
    }


def _under(hashes: PatientHashes) -> str:
    return f"under the key {hashes.key_digest[:_KEY_DIGITS]}."
