"""What a hospital's own report has that no other has: who may see it, and what left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lift.markup import Markup, foreign, join, number, pointer, table, tag
from lift.records.run import RUN_FILE
from lift.report.privacy import figure
from lift.report.read import Run
from lift.report.sections import Section, lacking

_KINDS: Final = {
    "statistics": "statistics",
    "train": "mixer updates",
    "guard": "verdicts",
    "failure": "failure notices",
    "card": "data card",
    "note": "notes",
}


def own_banner() -> Markup:
    """Return the banner at the top: this file stays at the hospital."""
    return tag(
        "div",
        tag("b", "STAYS HERE"),
        tag(
            "p",
            "This file holds images of this hospital's patients. It was made on the hospital's "
            "own machine and was not sent anywhere. It must not leave the hospital.",
        ),
        class_="banner",
        role="note",
    )


def left_section(run: Run) -> Section:
    """Return what left this hospital so far, from its journal and its ledger."""
    content: list[Markup] = []
    journal = run.record.journal
    if journal is None:
        content.append(lacking("There is no journal: nothing has left this site yet."))
    else:
        content += _journal(journal)
    ledger = run.record.ledger
    if ledger is not None:
        facts = [
            (name, number(figure(ledger[key]), pointer(RUN_FILE, "ledger", key), decimals))
            for key, name, decimals in (
                ("epsilon", "epsilon spent, all runs together", 4),
                ("cap", "the hospital's cap", 4),
                ("delta", "at delta", 6),
            )
        ]
        facts.append(("head of the ledger (SHA-256)", tag("code", foreign(str(ledger["head"])))))
        content.append(tag("h3", "Privacy ledger"))
        content.append(
            tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in facts))
        )
    return Section("left", "What left this hospital", tuple(content))


def _journal(journal: Mapping[str, Any]) -> list[Markup]:
    rows = [
        [
            foreign(_KINDS.get(kind, kind)),
            number(told["lines"], pointer(RUN_FILE, "journal", "kinds", kind, "lines"), 0),
            number(told["bytes"], pointer(RUN_FILE, "journal", "kinds", kind, "bytes"), 0),
        ]
        for kind, told in journal["kinds"].items()
    ]
    state = (
        "The journal is complete: no line was changed or is missing."
        if journal["whole"]
        else "The journal is NOT complete: run lift-client journal --verify."
    )
    return [
        table("From the journal, over all runs.", ["what", "times", "bytes of tensors"], rows),
        tag(
            "p",
            f"{state} Hash of its last line: ",
            tag("code", foreign(str(journal["head"]))),
            class_="note",
        ),
    ]
