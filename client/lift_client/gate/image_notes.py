"""The journal's lines about vetoes of the image checks that the operator overrides."""

from __future__ import annotations

import hashlib
from typing import Final

from lift.cohort.withdrawn import keep_key, new_hashes, read_hashes
from lift.config.site import SiteConfig
from lift_client.gate.journal import JOURNAL_FILE, Entry, Journal, read_journal

_ACCEPTS: Final = "The operator accepts a patient whatever the image checks say."
_SWITCHED: Final = "The policy's image checks are"


def note_overrides(journal: Journal, config: SiteConfig) -> None:
    """Write who is accepted and why, and whether the checks are off, unless the journal has it.

    A patient is named by a keyed hash, as in the list of withdrawn patients.

    Raises:
        RecordError: the journal is damaged, or the key is.
    """
    notes = [
        line
        for line in read_journal(config.folder / JOURNAL_FILE).lines
        if line.kind == "note" and line.purpose.startswith((_ACCEPTS, _SWITCHED))
    ]
    known = {line.sha256 for line in notes}
    for name, reason in sorted(config.accept.items()):
        hashes = read_hashes(config.folder)
        if hashes is None:
            hashes = new_hashes()
            keep_key(config.folder, hashes)
        override = hashes.examination(f"{name}\0{reason}")
        if override not in known:
            purpose = (
                f"{_ACCEPTS} The SHA-256 of this line is a keyed hash of the examination and the "
                f"reason. Nothing was sent. Reason: {reason}"
            )
            journal.append(Entry.note(purpose, sha256=override))
    switched = [line.purpose for line in notes if line.purpose.startswith(_SWITCHED)]
    was_off = bool(switched) and switched[-1] == _switch(on=False)
    if was_off == config.checks_images:
        purpose = _switch(on=config.checks_images)
        # numbered: no switch is a repetition of an earlier one
        digest = hashlib.sha256(f"{len(switched)} {purpose}".encode()).hexdigest()
        journal.append(Entry.note(purpose, sha256=digest))


def _switch(*, on: bool) -> str:
    return f"{_SWITCHED} {'on again' if on else 'off: no patient is left out by them'}."
