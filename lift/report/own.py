"""What a hospital's own report has that no other has: who may see it, and what left."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import quote

from lift.markup import Markup, escape, foreign, join, number, pointer, table, tag
from lift.records.rows import MIXER_ROWS
from lift.records.run import RUN_FILE
from lift.report.privacy import figure
from lift.report.read import SYNTHESIS_FOLDER, Run
from lift.report.sections import Section, lacking
from lift.report.terms import method_term

_NIFTI: Final = ".nii.gz"
_WRITTEN: Final = "Synthetic volumes"

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


def handed_on(methods: Collection[str]) -> str:
    """Which of a patient's synthetic volumes is handed on: what the site chose, else the mixer."""
    return next(name for name in ("chosen", *MIXER_ROWS) if name in methods)


def series_folder(method: str) -> str:
    """The folder of the derived series beside the file of the same volume."""
    return f"{method}-dicom"


def volumes_section(run: Run) -> Section:
    """Return links to the synthetic volumes that lie in the report's folder."""
    rows: list[list[Markup]] = []
    for folder in run.patients:
        if folder.missing:
            continue
        files = {path.name for path in folder.path.iterdir()}
        method = handed_on({name.removesuffix(_NIFTI) for name in files})
        place = f"{SYNTHESIS_FOLDER}/{folder.site}/{folder.patient}"
        series = series_folder(method)
        none = tag("span", "none: the source is not DICOM, or the log says why", class_="none")
        rows.append(
            [
                foreign(folder.patient),
                escape(method_term(method).label),
                _link(f"{place}/{method}{_NIFTI}"),
                _link(f"{place}/{method}.json") if f"{method}.json" in files else none,
                _link(f"{place}/{series}/") if series in files else none,
            ]
        )
    if not rows:
        return Section("written", _WRITTEN, (lacking("There are no volumes in this folder."),))
    caption = "Written by this report, for its held-out patients. What lift translate writes is "
    caption += "where you asked for it."
    heading = ["patient", "method", "NIfTI", "what made it", "DICOM series"]
    note = tag(
        "p",
        "The links work on this machine. A series carries the patient's name, and says in each "
        "file that it is synthetic.",
        class_="note",
    )
    return Section("written", _WRITTEN, (table(caption, heading, rows), note))


def _link(place: str) -> Markup:
    return tag("a", foreign(place.rstrip("/").rpartition("/")[2]), href=quote(place))


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
