"""The table of rounds in a release: how many sites were asked and counted, never which."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lift.markup import Markup, join, number, pointer, table, tag
from lift.records.extract import PUBLIC_ROUNDS_FILE, PublicRound


def public_rounds_table(extract: Sequence[PublicRound]) -> Markup:
    """Rounds in order, those with equal numbers in one line."""
    with_epsilon = any(line.epsilon is not None for line in extract)
    rows = []
    for _, group in groupby(enumerate(extract), key=lambda pair: _outcome(pair[1])):
        held = list(group)
        (first, opening), (last, closing) = held[0], held[-1]
        span: list[Markup | str] = [_number(opening.round, first, "round")]
        if last > first:
            span += [" to ", _number(closing.round, last, "round")]
        cells: list[str] = [
            join(span),
            tag("td", closing.kind, class_="word"),
            join(
                [
                    _number(closing.counted, last, "counted"),
                    " of ",
                    _number(closing.asked, last, "asked"),
                    " sites",
                ]
            ),
        ]
        if with_epsilon:
            place = pointer(PUBLIC_ROUNDS_FILE, last, "epsilon")
            cells.append(number(closing.epsilon, place, 3))
        rows.append(cells)
    return table(
        "Rounds in order, those with the same numbers in one line. Which site counted in which "
        "round, and why another did not, is the coordinator's to know.",
        [
            "rounds",
            tag("th", "kind", scope="col", class_="word"),
            "counted",
            *(["epsilon so far"] if with_epsilon else []),
        ],
        rows,
        kind="rounds",
    )


def _outcome(line: PublicRound) -> tuple[str, int, int]:
    return line.kind, line.counted, line.asked


def _number(value: int, line: int, key: str) -> Markup:
    return number(value, pointer(PUBLIC_ROUNDS_FILE, line, key), 0)
