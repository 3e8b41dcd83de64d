"""The site's data card, made from the reports of the image checks, reviewed, then shared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from lift.cohort.examination import CT, ChannelFacts, PatientReport
from lift.cohort.patients import Patient
from lift.cohort.split import split_patients
from lift.config.card import (
    MOST_VALUES,
    ChannelCard,
    DataCard,
    Persons,
    ValueCount,
    VendorCount,
)
from lift.config.plan import SplitPlan
from lift.config.site import SiteConfig
from lift.errors import ConfigError
from lift.files import write_json
from lift.strict_json import parse_model
from lift_client.gate.journal import JOURNAL_FILE, Entry, Journal

CARD_FILE: Final = "data-card.json"
_FIELD_STRENGTH_T: Final = 0.5
_SLICE_SPACING_MM: Final = 0.5
_PIXEL_SPACING_MM: Final = 0.25
_SLICES: Final = 16.0
_MATRIX: Final = 32.0
Value = TypeVar("Value")
Facts = Sequence[tuple[str, ChannelFacts]]
"""(person, what one volume of this person is like)."""


def make_card(
    reports: Sequence[PatientReport], channels: Sequence[str], *, site: str, floor: int, day: str
) -> DataCard:
    """Return the card of a cohort. It depends only on rounded counts.

    Args:
        reports: of all patients.
        channels: names of the task, in its order.
        site: the site's name.
        floor: every count is rounded down to a multiple of it, and nothing smaller appears.
        day: UTC, `2026-11-23`.
    """
    usable = [report for report in reports if report.verdict != "veto"]
    persons = {report.subject for report in reports}
    good = {report.subject for report in usable}
    parts = {"train": 0, "validation": 0, "test": 0}
    if usable:
        patients = [Patient(report.patient, report.subject, {}, None) for report in usable]
        subjects = {patient.id: patient.subject for patient in patients}
        split = split_patients(patients, SplitPlan(), site)
        parts = {part: len({subjects[i] for i in getattr(split, part)}) for part in parts}

    def rounded(count: int) -> Persons:
        return count // floor * floor

    return DataCard(
        site=site,
        made=day,
        floor=floor,
        persons=rounded(len(persons)),
        usable=rounded(len(good)),
        warned=rounded(len({r.subject for r in usable if r.verdict == "warn"})),
        vetoed=rounded(len(persons - good)),
        train=rounded(parts["train"]),
        validation=rounded(parts["validation"]),
        test=rounded(parts["test"]),
        channels=tuple(_channel_card(name, usable, floor) for name in channels),
    )


def _channel_card(name: str, reports: Sequence[PatientReport], floor: int) -> ChannelCard:
    facts = [(r.subject, r.channels[name]) for r in reports if name in r.channels]
    vendors = _counted(((who, one.vendor) for who, one in facts if one.vendor), floor)

    def histogram(
        step: float, value: Callable[[ChannelFacts], float | None]
    ) -> tuple[ValueCount, ...]:
        return _histogram(facts, step, value, floor)

    return ChannelCard(
        channel=name,
        modality="CT" if name == CT else "MR",
        persons=len({who for who, _ in facts}) // floor * floor,
        vendors=tuple(VendorCount(vendor=v, persons=n) for v, n in sorted(vendors.items())),
        field_strengths_t=histogram(_FIELD_STRENGTH_T, lambda one: one.field_strength_t),
        slice_spacings_mm=histogram(_SLICE_SPACING_MM, lambda one: one.spacing_mm[one.depth_axis]),
        acquired_spacings_mm=histogram(_SLICE_SPACING_MM, lambda one: one.acquired_spacing_mm),
        pixel_spacings_mm=histogram(_PIXEL_SPACING_MM, lambda one: min(one.spacing_mm)),
        slices=histogram(_SLICES, lambda one: one.shape[one.depth_axis]),
        matrix=histogram(
            _MATRIX, lambda one: max(n for i, n in enumerate(one.shape) if i != one.depth_axis)
        ),
    )


def _histogram(
    facts: Facts, step: float, value: Callable[[ChannelFacts], float | None], floor: int
) -> tuple[ValueCount, ...]:
    """Persons by value rounded to a step, at least one step; the most frequent where too many."""
    found = (
        (who, max(1, round(number / step)) * step)
        for who, one in facts
        if (number := value(one)) is not None
    )
    counts = _counted(found, floor)
    most = sorted(counts, key=lambda number: (-counts[number], number))[:MOST_VALUES]
    return tuple(ValueCount(value=number, persons=counts[number]) for number in sorted(most))


def _counted(found: Iterable[tuple[str, Value]], floor: int) -> dict[Value, int]:
    """Value -> persons, rounded down to a multiple of the floor; without those below it."""
    owners: defaultdict[Value, set[str]] = defaultdict(set)
    for who, value in found:
        owners[value].add(who)
    return {
        value: len(people) // floor * floor
        for value, people in owners.items()
        if len(people) >= floor
    }


def share(card: DataCard, config: SiteConfig, receiver: str) -> Path:
    """Store the card that the operator reviewed. The first answer of the next run includes it.

    A line of the journal holds the whole card first.

    Args:
        card: as it was shown.
        config: the site's settings.
        receiver: the server's address.

    Returns:
        The card's file, which may also be handed over before a run starts.

    Raises:
        RecordError: the journal is damaged; nothing is shared.
    """
    text = card.canonical_json()
    Journal(config.folder / JOURNAL_FILE).append(
        Entry(
            run="",
            round=0,
            kind="card",
            tensors=(),
            bytes=len(text),
            sha256=card.digest(),
            receiver=receiver,
            purpose="The operator reviewed the data card and shares it: with the first answer of "
            f"a run, or as the file {CARD_FILE}.",
            card=card,
        )
    )
    path = config.folder / CARD_FILE
    write_json(path, card.model_dump(mode="json"))
    return path


def shared_card(work: Path) -> DataCard | None:
    """Return the shared card, or None. Removing the file stops the sharing.

    Raises:
        ConfigError: the file is damaged or was changed into something else.
    """
    path = work / CARD_FILE
    try:
        return parse_model(DataCard, path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise ConfigError(
            "cannot use the shared data card",
            where=str(path),
            seen="the file cannot be read, or is not a data card",
            remedy="Nothing was sent. Remove it, or share a new one: "
            "lift-client check --share-card.",
        ) from None


def today() -> str:
    """The day, UTC."""
    return datetime.now(UTC).date().isoformat()
