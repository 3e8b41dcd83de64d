"""Train, validation and test patients: by person, from a keyed hash, stored at the site."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from lift.cohort.layouts import Patient
from lift.config.plan import SplitPlan
from lift.errors import DataError
from lift.files import write_json

FEWEST_VALIDATION: Final = 2
"""With fewer validation patients the guard's verdict is always `undecided`."""
_FEWEST_FOR_ALL_PARTS: Final = 6


@dataclass(frozen=True)
class Split:
    """Patient ids of each part, sorted; disjoint, and together all of the cohort."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_patients(patients: Sequence[Patient], rule: SplitPlan, site: str) -> Split:
    """The split of one site's patients; it does not depend on their order.

    Persons (`Patient.subject`) are ordered by a keyed hash of their name and cut at whole
    numbers. Cohorts of at least 6 persons have at least 2 validation persons and 1 test person
    where their shares are above 0. With `rule.held_out` the named patients are the test
    patients and nobody else is; the rest is divided between training and validation.
    """
    prefix = f"{site}/"
    if rule.held_out:
        held = {name.removeprefix(prefix) for name in rule.held_out if name.startswith(prefix)}
        tested = {patient.subject for patient in patients if patient.id in held}
        rest = _ordered(patients, rule.key, without=tested)
        share = rule.validation / (rule.train + rule.validation)
        count = 0
        if len(rest) >= _FEWEST_FOR_ALL_PARTS and rule.validation > 0:
            count = max(round(len(rest) * share), FEWEST_VALIDATION)
        return _split(patients, set(rest[:count]), tested)
    order = _ordered(patients, rule.key, without=set())
    n = len(order)
    test_share = max(0.0, 1.0 - rule.train - rule.validation)
    tests, validations = round(n * test_share), round(n * rule.validation)
    if n >= _FEWEST_FOR_ALL_PARTS:
        tests = max(tests, 1 if test_share > 1e-9 else 0)
        validations = max(validations, FEWEST_VALIDATION if rule.validation > 0 else 0)
    # training is never empty
    tests = min(tests, max(n - 1, 0))
    validations = min(validations, max(n - 1 - tests, 0))
    return _split(patients, set(order[tests : tests + validations]), set(order[:tests]))


def write_split(path: Path, split: Split) -> None:
    """Store the split at the site."""
    write_json(path, asdict(split))


def read_split(path: Path) -> Split:
    """The stored split.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: tuple(str(name) for name in data[part]) for part in Split.__annotations__}
        return Split(**parts)
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            "cannot read the stored split",
            where=path.name,
            seen="it is missing or damaged",
            remedy="Run the command again: the split is computed anew, and is the same.",
        ) from None


def _ordered(patients: Sequence[Patient], key: str, *, without: set[str]) -> list[str]:
    subjects = {patient.subject for patient in patients} - without

    def rank(subject: str) -> bytes:
        return hmac.new(key.encode(), subject.encode(), hashlib.sha256).digest()

    return sorted(subjects, key=lambda subject: (rank(subject), subject))


def _split(patients: Sequence[Patient], validation: set[str], test: set[str]) -> Split:
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for patient in patients:
        part = "test" if patient.subject in test else "train"
        part = "validation" if patient.subject in validation else part
        parts[part].append(patient.id)
    return Split(**{part: tuple(sorted(ids)) for part, ids in parts.items()})
