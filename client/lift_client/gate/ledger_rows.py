"""The reservations of a privacy ledger as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from lift.privacy.book import Book


@dataclass(frozen=True)
class Row:
    """One reservation, for a table."""

    line: int
    time: str
    run: str
    round: int
    purpose: str
    mechanism: str
    noise_multiplier: float
    q: float
    steps: int
    state: str


def rows_of(book: Book) -> list[Row]:
    """All reservations of a book, oldest first."""
    return [
        Row(
            line=seq,
            time=book.lines[seq - 1].time,
            run=item.run,
            round=item.round,
            purpose=item.purpose,
            mechanism=item.mechanism,
            noise_multiplier=item.noise_multiplier,
            q=item.q,
            steps=item.count,
            state=book.state(seq),
        )
        for seq, item in book.reservations.items()
    ]
