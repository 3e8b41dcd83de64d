"""Train, validation and test patients: by person, from a keyed hash, stored at the site."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import TypeAdapter

from lift.cohort.patients import Patient
from lift.config.plan import SplitPlan
from lift.errors import DataError
from lift.files import write_json
from lift.strict_json import parse_typed

SPLIT_FILE: Final = "split.json"
"""In a work folder: the split of the last run."""
FEWEST_VALIDATION: Final = 2
"""With fewer validation patients, the guard also uses training patients, or is left out."""
_FEWEST_FOR_ALL_PARTS: Final = 5
_FEWEST_BESIDE_HELD_OUT: Final = 6

Part = Literal["train", "validation", "test"]
"""A part of the split."""


@dataclass(frozen=True)
class Split:
    """Patient ids of each part, sorted; disjoint.

    Together they are all of the cohort, unless the plan limits the training patients.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def everybody(self) -> frozenset[str]:
        """The ids of all parts."""
        return frozenset((*self.train, *self.validation, *self.test))

    def among(self, present: Container[str]) -> Split:
        """The same parts without whoever is not present."""

        def left(ids: Sequence[str]) -> tuple[str, ...]:
            return tuple(name for name in ids if name in present)

        return Split(left(self.train), left(self.validation), left(self.test))


_STORED: Final = TypeAdapter(Split)


def split_patients(
    patients: Sequence[Patient], rule: SplitPlan, site: str, *, one_by_one: bool = False
) -> Split:
    """The split of one site's patients; it does not depend on their order.

    With `one_by_one`, which differential privacy needs, each person's part follows from this
    person's hash alone: whether somebody else is in the cohort moves nobody. Parts then have their
    shares on average only, and may be empty. Otherwise:

    Persons (`Patient.subject`) are ordered by a keyed hash of their name and cut at whole
    numbers, by largest remainder. Cohorts of at least 5 persons have at least 2 validation
    persons and 1 test person where their shares are above 0; training is never empty.

    With `rule.held_out` the named patients are the test patients (with all volumes of the same
    person) and nobody else is; the rest is divided between training and validation, which is
    empty when fewer than 6 persons remain.
    """
    prefix = f"{site}/"
    if one_by_one:
        return _split_one_by_one(patients, rule, prefix)
    if rule.held_out:
        held = {name.removeprefix(prefix) for name in rule.held_out if name.startswith(prefix)}
        tested = {patient.subject for patient in patients if patient.id in held}
        rest = _ordered(patients, rule.key, without=tested)
        share = rule.validation / (rule.train + rule.validation)
        count = 0
        if len(rest) >= _FEWEST_BESIDE_HELD_OUT and rule.validation > 0:
            count = max(round(len(rest) * share), FEWEST_VALIDATION)
        return _split(patients, set(rest[:count]), tested, set(rest[count:][: rule.most_training]))
    order = _ordered(patients, rule.key, without=set())
    n = len(order)
    test_share = max(0.0, 1.0 - rule.train - rule.validation)
    # 1 - 0.85 - 0.15 is not 0 in floating point
    test_share = test_share if test_share > 1e-9 else 0.0
    _, tests, validations = _largest_remainder(n, (rule.train, test_share, rule.validation))
    if n >= _FEWEST_FOR_ALL_PARTS:
        tests = max(tests, 1 if test_share else 0)
        validations = max(validations, FEWEST_VALIDATION if rule.validation > 0 else 0)
    # training is never empty
    tests = min(tests, max(n - 1, 0))
    validations = min(validations, max(n - 1 - tests, 0))
    rest = order[tests + validations :]
    return _split(
        patients,
        set(order[tests : tests + validations]),
        set(order[:tests]),
        set(rest[: rule.most_training]),
    )


def _split_one_by_one(patients: Sequence[Patient], rule: SplitPlan, prefix: str) -> Split:
    held = {name.removeprefix(prefix) for name in rule.held_out if name.startswith(prefix)}
    tested = {patient.subject for patient in patients if patient.id in held}
    tests = 0.0 if held else max(0.0, 1.0 - rule.train - rule.validation)
    validations = rule.validation / (rule.train + rule.validation) if held else rule.validation
    validated = set()
    for subject in {patient.subject for patient in patients} - tested:
        place = int.from_bytes(_rank(subject, rule.key)[:6], "big") / 2**48
        if place < tests:
            tested.add(subject)
        elif place < tests + validations:
            validated.add(subject)
    everyone = {patient.subject for patient in patients}
    return _split(patients, validated, tested, everyone - validated - tested)


def folds_of(sites: Mapping[str, Sequence[Patient]], key: str, count: int) -> list[tuple[str, ...]]:
    """SITE/PATIENT names of `count` test sets that share all patients out, each patient once.

    Persons (with all their volumes) are taken site by site in the order of their keyed hash, and
    dealt out in turn: sizes differ by one person at most, in all and at each site. A fold of a site
    with fewer persons than folds may be empty.
    """
    dealt: list[list[str]] = [[] for _ in range(count)]
    place = 0
    for site, patients in sorted(sites.items()):
        for subject in _ordered(patients, key, without=set()):
            names = sorted(patient.id for patient in patients if patient.subject == subject)
            dealt[place % count] += [f"{site}/{name}" for name in names]
            place += 1
    return [tuple(names) for names in dealt]


def parts_of(split: Split, patients: Mapping[str, Patient]) -> dict[Part, list[Patient]]:
    """The patients of each part."""
    return {part: [patients[name] for name in getattr(split, part)] for part in get_args(Part)}


def write_split(path: Path, split: Split) -> None:
    """Store the split at the site."""
    write_json(path, asdict(split))


def read_split(path: Path) -> Split:
    """The stored split.

    Raises:
        DataError: the file is missing or damaged, or lists a patient twice.
    """
    try:
        split: Split = parse_typed(_STORED, path.read_bytes())
        listed = [*split.train, *split.validation, *split.test]
        if len(set(listed)) != len(listed):
            raise ValueError("a patient is listed twice")
    except (OSError, ValueError):
        raise DataError(
            "cannot read the stored split",
            where=path.name,
            seen="it is missing or damaged",
            remedy="Run the command again: the split is computed anew, and is the same.",
        ) from None
    return split


def _largest_remainder(n: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to n, each within 1 of n * share; of equals the first gains."""
    quotas = [n * share for share in shares]
    # 27 * 0.15 must not win or lose by its last bit
    counts = [math.floor(quota + 1e-9) for quota in quotas]
    by_remainder = sorted(
        range(len(shares)), key=lambda part: -round(quotas[part] - counts[part], 9)
    )
    for part in by_remainder[: n - sum(counts)]:
        counts[part] += 1
    return counts


def _ordered(patients: Sequence[Patient], key: str, *, without: set[str]) -> list[str]:
    subjects = {patient.subject for patient in patients} - without
    return sorted(subjects, key=lambda subject: (_rank(subject, key), subject))


def _rank(subject: str, key: str) -> bytes:
    return hmac.new(key.encode(), subject.encode(), hashlib.sha256).digest()


def _split(
    patients: Sequence[Patient], validation: set[str], test: set[str], train: set[str]
) -> Split:
    def of(subjects: set[str]) -> tuple[str, ...]:
        return tuple(sorted(patient.id for patient in patients if patient.subject in subjects))

    return Split(of(train), of(validation), of(test))
