"""The report's tables of the record: sites, guard, rounds, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Final

from lift.guard import OPTIMISM_DB
from lift.markup import Markup, escape, foreign, join, number, pointer, table, tag
from lift.records.extract import FEWEST_TOLD
from lift.records.metrics import Measure
from lift.records.rounds import ROUNDS_FILE, WORDS, Outcome, RoundRecord, reason
from lift.records.rounds import outcome as became
from lift.records.run import FEDERATION, RUN_FILE, AllSites, GuardRecord
from lift.report.read import Run
from lift.report.tables import interval, outcome

_PERSONS: Final = "A patient is a person. Several examinations of one person count once."
_VERDICTS: Final = {"helped": "▲ helped", "harmed": "▼ harmed", "undecided": "◆ undecided"}
_SPLITS: Final = ("train", "validation", "test")
_WITH_TRAINING: Final = (
    " A site with fewer than two validation patients also uses its training patients, each with "
    "curves that were fitted without it. The mixer was trained on these patients, so it helped "
    f"only if the interval is above {OPTIMISM_DB:g} dB, the largest measured effect of training."
)


def guard_table(guard: Mapping[str, GuardRecord]) -> Markup:
    """Return the verdict of each site, and its PSNR differences."""
    rows = []
    for site, record in guard.items():
        place = ("guard", site)
        cells: list[str] = [foreign(site), tag("td", _verdict(record.verdict), class_="word")]
        n = number(record.n, pointer(RUN_FILE, *place, "n"), 0)
        with_training = record.judged_on == "validation_and_training"
        cells.append(join([n, tag("small", " with training")]) if with_training else n)
        for key, measure in (
            ("difference_db", record.difference_db),
            ("against_z_filter_db", record.against_z_filter_db),
            ("against_local_only_db", record.against_local_only_db),
        ):
            shown = measure or Measure()
            content = interval(shown, (*place, key), 2, signed=True, file=RUN_FILE)
            cells.append(tag("td", content, class_=outcome("psnr_db", shown)))
        rows.append(cells)
    return table(
        "PSNR difference in dB on each site's own validation patients (n), federated minus the "
        "other. Brackets: 95% paired bootstrap interval over patients. The verdict is against "
        "no mixer: helped if the interval is above 0, harmed if it is below."
        + (_WITH_TRAINING if any(r.judged_on != "validation" for r in guard.values()) else ""),
        [
            "site",
            tag("th", "verdict", scope="col", class_="word"),
            "n",
            "against no mixer (dB)",
            "against z-filter (dB)",
            "against local only (dB)",
        ],
        rows,
        kind="figures",
    )


def verdicts_markup(run: Run) -> Markup:
    """How many sites the mixer helped and harmed: the sentence of a release."""
    together = run.record.all_sites
    verdicts = None if together is None else together.verdicts
    if verdicts is None:
        return escape(f"No verdict is told here: fewer than {FEWEST_TOLD} sites gave one.")
    place = ("all_sites", "verdicts")
    counts = [
        join([f"{verdict} at ", number(count, pointer(RUN_FILE, *place, verdict), 0)])
        for verdict, count in verdicts.items()
    ]
    told = "Sites by their verdicts on their own patients, against no mixer: "
    return join([told, join(counts, ", "), "."])


def _sites_together(together: AllSites) -> Markup:
    """The sites of a release: how many, and their patients together."""
    cells: list[str] = [number(together.number, pointer(RUN_FILE, "all_sites", "number"), 0)]
    cells += [
        number(together.patients.get(split), pointer(RUN_FILE, "all_sites", "patients", split), 0)
        for split in _SPLITS
    ]
    return table(
        f"All sites together, from numbers that each reported. {_PERSONS}",
        ["sites", *(f"{name} (patients)" for name in ("training", *_SPLITS[1:]))],
        [cells],
    )


def sites_table(run: Run) -> Markup:
    """Who took part: patients by split, slice spacing, what was refused; sums for a release."""
    if run.record.all_sites is not None:
        return _sites_together(run.record.all_sites)
    rows = []
    for index, site in enumerate(run.record.sites):
        cells: list[str] = [foreign(site.name)]
        cells += [
            number(
                site.patients.get(split), pointer(RUN_FILE, "sites", index, "patients", split), 0
            )
            for split in _SPLITS
        ]
        cells.append(number(site.refused, pointer(RUN_FILE, "sites", index, "refused"), 0))
        low, high = site.slice_spacing_mm or (None, None)
        place = pointer(RUN_FILE, "sites", index, "slice_spacing_mm")
        cells.append(
            join([number(low, f"{place}/0", 2), " to ", number(high, f"{place}/1", 2)])
            if low != high
            else number(low, f"{place}/0", 2)
        )
        late = ""
        if site.calibration_patients is not None:
            late = (
                f"joined after the training, with curves from {site.calibration_patients} of its "
                "patients. "
            )
        cells.append(tag("td", late, foreign(site.description), class_="word"))
        rows.append(cells)
    return table(
        f"Patients by site, as reported by each site, rounded. {_PERSONS}"
        if run.record.kind == FEDERATION
        else "Patients by site. All figures below are of test patients unless stated otherwise. "
        f"{_PERSONS}",
        [
            "site",
            "training (patients)",
            "validation (patients)",
            "test (patients)",
            "refused (volumes)",
            "slice spacing (mm)",
            tag("th", "what it is", scope="col", class_="word"),
        ],
        rows,
    )


def left_out_table(run: Run) -> Markup | None:
    """Who was refused, by name and reason; None where nobody was, or the record names nobody."""
    rows = [
        [foreign(site.name), tag("td", foreign(patient), class_="word"), tag("td", foreign(why))]
        for site in run.record.sites
        for patient, why in sorted(site.left_out.items())
    ]
    if not rows:
        return None
    return table(
        "Patients who were left out. The site's settings can accept whom the image checks veto.",
        ["site", "patient", tag("th", "why", scope="col", class_="word")],
        rows,
    )


def rounds_table(run: Run) -> Markup:
    """Each round: who was asked, who counted with which weight, who was refused and why."""
    with_epsilon = any(record.epsilon is not None for record in run.rounds)
    # neither is on record where the plan protects patients
    with_seconds = any(record.seconds is not None for record in run.rounds)
    with_bytes = any(record.bytes for record in run.rounds)
    named = {
        site
        for record in run.rounds
        for site in (*record.asked, *record.answered, *record.counted, *record.refused)
    }
    sites = [site for site in run.sites if site in named] + sorted(named - set(run.sites))
    rows = []
    for index, record in enumerate(run.rounds):
        cells: list[str] = [number(record.round, pointer(ROUNDS_FILE, index, "round"), 0)]
        cells.append(tag("td", record.kind, class_="word"))
        if with_seconds:
            cells.append(number(record.seconds, pointer(ROUNDS_FILE, index, "seconds"), 1))
        if with_epsilon:
            cells.append(number(record.epsilon, pointer(ROUNDS_FILE, index, "epsilon"), 3))
        cells += [_participation(record, index, site) for site in sites]
        rows.append(cells)
    return table(
        "Rounds in order. For each site: its weight in the sum (for verdicts: 1)"
        + (", and the bytes that it sent." if with_bytes else "."),
        [
            "round",
            tag("th", "kind", scope="col", class_="word"),
            *(["time (s)"] if with_seconds else []),
            *(["epsilon so far"] if with_epsilon else []),
            *(foreign(site) for site in sites),
        ],
        rows,
        kind="rounds",
    )


def stretches_table(run: Run) -> Markup:
    """Many rounds in few lines: stretches in which the same sites counted.

    Who did not count is named with the reason; everything else is in the file of rounds.
    """
    with_epsilon = any(record.epsilon is not None for record in run.rounds)
    rows = []
    for _, group in groupby(enumerate(run.rounds), key=lambda pair: _absences(pair[1])):
        held = list(group)
        (first, opening), (last, closing) = held[0], held[-1]
        cells: list[str] = [
            join(
                [
                    number(opening.round, pointer(ROUNDS_FILE, first, "round"), 0),
                    *(
                        [" to ", number(closing.round, pointer(ROUNDS_FILE, last, "round"), 0)]
                        if last > first
                        else []
                    ),
                ]
            ),
            tag("td", closing.kind, class_="word"),
            f"{len(closing.counted)} of {len(closing.asked)} sites",
        ]
        if with_epsilon:
            cells.append(number(closing.epsilon, pointer(ROUNDS_FILE, last, "epsilon"), 3))
        absent = [
            join([foreign(site), " (", foreign(told or WORDS[became(closing, site)]), ")"])
            for site, told in _absences(closing)[1]
        ]
        cells.append(tag("td", join(absent, "; "), class_="word worse" if absent else "word"))
        rows.append(cells)
    return table(
        f"Rounds in order. Rounds with the same outcome share a line. More about each round is in "
        f"{ROUNDS_FILE}.",
        [
            "rounds",
            tag("th", "kind", scope="col", class_="word"),
            "counted",
            *(["epsilon so far"] if with_epsilon else []),
            tag("th", "who did not count, and why", scope="col", class_="word"),
        ],
        rows,
        kind="rounds",
    )


def _absences(record: RoundRecord) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The kind of the exchange, and each asked site that did not count, with the reason."""
    return record.kind, tuple(
        (site, reason(record, site))
        for site in sorted({*record.asked, *record.refused})
        if became(record, site) is not Outcome.COUNTED
    )


def seconds_table(run: Run) -> Markup:
    """Seconds that each stage took beside its budget."""
    seconds, budget = run.record.seconds, run.record.budget_s
    rows = []
    for stage in dict.fromkeys([*seconds, *budget]):
        took, may = seconds.get(stage), budget.get(stage)
        over = took is not None and may is not None and took > may
        rows.append(
            [
                foreign(stage),
                number(took, pointer(RUN_FILE, "seconds", stage), 1),
                number(may, pointer(RUN_FILE, "budget_s", stage), 1),
                tag("td", "▼ over" if over else "", class_="word worse"),
            ]
        )
    return table(
        "Wall time by stage. A dash: no budget was set, or the stage did not run.",
        [
            "stage",
            "took (s)",
            "budget (s)",
            tag("th", "against the budget", scope="col", class_="word"),
        ],
        rows,
    )


def _verdict(verdict: str) -> Markup:
    """The verdict as a word with a sign of its own, so that colour is not needed."""
    return tag("span", _VERDICTS[verdict], class_=f"verdict {verdict}")


def _participation(record: RoundRecord, index: int, site: str) -> Markup:
    found = became(record, site)
    if found is Outcome.COUNTED:
        weight = number(record.counted[site], pointer(ROUNDS_FILE, index, "counted", site), 3)
        sent = record.bytes.get(site)
        if sent is None:
            return tag("td", "weight ", weight)
        size = number(sent, pointer(ROUNDS_FILE, index, "bytes", site), 0)
        return tag("td", "weight ", weight, tag("small", size, " bytes"))
    if found is Outcome.REFUSED:
        return tag("td", "▼ refused: ", foreign(reason(record, site)), class_="word worse")
    if found is Outcome.NOT_ASKED:
        return tag("td", WORDS[found], class_="word none")
    return tag("td", f"◆ {WORDS[found]}", class_="word")
