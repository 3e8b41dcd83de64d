"""Who was clipped, and where the run went back to an earlier mixer."""

from __future__ import annotations

from lift.markup import Markup, foreign, join, number, pointer, table, tag
from lift.records.rounds import ROUNDS_FILE
from lift.report.read import Run


def clips_content(run: Run) -> list[Markup]:
    """The falls as sentences, then the table of norms; empty where the record has neither."""
    falls = [
        tag("p", f"Round {record.round}: ", foreign(record.fall.sentence), ".", class_="finding")
        for record in run.rounds
        if record.fall is not None
    ]
    norms = [(index, r) for index, r in enumerate(run.rounds) if r.norm_ratios]
    if not norms:
        return falls
    named = {site for _, record in norms for site in record.norm_ratios}
    rows = []
    for site in [site for site in run.sites if site in named] + sorted(named - set(run.sites)):
        told = [(index, record) for index, record in norms if site in record.norm_ratios]
        clipped = [(index, record) for index, record in told if site in record.clipped]
        index, largest = max(told, key=lambda pair: pair[1].norm_ratios[site])
        place = pointer(ROUNDS_FILE, index, "norm_ratios", site)
        cells: list[str] = [
            foreign(site),
            number(largest.norm_ratios[site], place, 2),
            number(largest.round, pointer(ROUNDS_FILE, index, "round"), 0),
            tag(
                "td",
                f"{len(clipped)} of {len(told)} rounds" if clipped else "never",
                class_="word worse" if clipped else "word",
            ),
        ]
        if clipped:
            index, least = min(clipped, key=lambda pair: pair[1].clipped[site])
            cells.append(
                number(least.clipped[site], pointer(ROUNDS_FILE, index, "clipped", site), 4)
            )
        else:
            cells.append(number(None, "", 0))
        rows.append(cells)
    return [
        *falls,
        table(
            join(
                [
                    "Norm of each site's updates, as a multiple of the round's median norm, and "
                    "who was clipped (",
                    tag("code", "aggregation.largest_norm_ratio"),
                    "). An update far above the others, round after round, is a question to its "
                    "site: other data, a fault, or an attack.",
                ]
            ),
            [
                "site",
                "largest norm (x median)",
                "in round",
                tag("th", "clipped", scope="col", class_="word"),
                "smallest factor",
            ],
            rows,
        ),
    ]
