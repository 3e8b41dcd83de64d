"""Figures of other people's publications, each with its source and what is not comparable."""

from __future__ import annotations

from lift.markup import Markup, foreign, join, number, pointer, table, tag
from lift.records.published import PUBLISHED_FILE, Published, PublishedRow
from lift.report.sections import Section


def published_section(published: Published) -> Section:
    """The table of published figures; the sentence above it says how far they compare."""
    rows = [
        [
            foreign(row.method),
            tag("td", foreign(row.metric), class_="word"),
            _figure(row, index),
            tag("td", foreign(row.source), class_="word"),
            tag("td", foreign(row.differs), class_="word"),
        ]
        for index, row in enumerate(published.rows)
    ]
    headings = [
        "method",
        tag("th", "measured", scope="col", class_="word"),
        "published",
        tag("th", "source", scope="col", class_="word"),
        tag("th", "what is not comparable", scope="col", class_="word"),
    ]
    content = table(
        f"{published.title}. Figures of others, as they were published.", headings, rows
    )
    statement = tag("p", foreign(published.statement), class_="finding")
    return Section("published", "Beside published figures", (statement, content))


def _figure(row: PublishedRow, index: int) -> Markup:
    low = number(row.low, pointer(PUBLISHED_FILE, "rows", index, "low"), 1)
    if row.high is None:
        return low
    return join([low, " to ", number(row.high, pointer(PUBLISHED_FILE, "rows", index, "high"), 1)])
