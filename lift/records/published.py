"""`published.json`: figures of other people's publications, shown beside a run's own table."""

from __future__ import annotations

from typing import Final

from lift.records.metrics import Record

PUBLISHED_FILE: Final = "published.json"


class PublishedRow(Record):
    """One published figure."""

    method: str
    """What it is of."""
    metric: str
    """What was measured, with its unit."""
    low: float
    """The figure, or the lower end of its range."""
    high: float | None = None
    """The upper end, where a range was published."""
    source: str
    """Where it was published."""
    differs: str
    """One sentence: what is not comparable with this run."""


class Published(Record):
    """The content of `published.json`."""

    title: str
    """What is compared."""
    statement: str
    """How far the figures can be compared at all."""
    rows: tuple[PublishedRow, ...]
    """The published figures."""
