"""The report's tables of figures: means by method, paired differences, guard, sites, rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final, Literal

from lift.guard import OPTIMISM_DB
from lift.markup import Markup, escape, foreign, join, number, pointer, table, tag
from lift.records.extract import FEWEST_TOLD
from lift.records.metrics import METRICS_FILE, Costs, Measure, Table
from lift.records.rounds import ROUNDS_FILE, WORDS, Outcome, RoundRecord, reason
from lift.records.rounds import outcome as became
from lift.records.rows import MIXER_ROWS
from lift.records.run import FEDERATION, RUN_FILE, AllSites, GuardRecord
from lift.report.read import Run
from lift.report.terms import (
    ALL_METRICS,
    BETTER,
    METHODS,
    MethodTerm,
    better_side,
    distance_to_ideal,
    in_known_order,
    method_term,
    metric_decimals,
)

PERSONS: Final = "A patient is a person. Several examinations of one person count once."
INTERVALS: Final = "Brackets: 95% bootstrap interval over patients"
_COMPARED: Final = (
    "psnr_db",
    "psnr_invariant_db",
    "ssim",
    "mae",
    "mae_bone",
    "mae_soft",
    "dz_corr",
    "hf_error",
    "hf_coherence",
    "perceptual",
    "dice",
)
_VERDICTS: Final = {"helped": "▲ helped", "harmed": "▼ harmed", "undecided": "◆ undecided"}


def methods_table(
    methods: Mapping[str, Table],
    path: tuple[str, ...],
    caption: str,
    *,
    only: Sequence[str] = (),
    counted: str = "patients",
    warnings: Mapping[tuple[str, str], str] | None = None,
    known: Mapping[str, MethodTerm] = METHODS,
    intervals: str = INTERVALS,
) -> Markup:
    """Methods by metrics, each mean with its interval.

    A mean is marked as the best of its column only where its interval lies apart from the
    interval of every other method, and never where it has a warning.

    Args:
        methods: METHOD -> METRIC -> measure.
        path: where these lie in `metrics.json`.
        caption: what the patients are; how to read the cells is added.
        only: metrics to show; all that there are when left out. A method without any of them has no
            row.
        counted: what n counts.
        warnings: (METHOD, METRIC) -> what is suspicious about that figure: shown in red.
        known: methods in the order of their rows; others follow.
        intervals: what the brackets are.
    """
    warned = warnings or {}
    if only:
        methods = {name: own for name, own in methods.items() if not own.keys().isdisjoint(only)}
    present = {metric for figures in methods.values() for metric in figures}
    metrics = [name for name in in_known_order(present, ALL_METRICS) if not only or name in only]
    n = _largest_n(methods)
    winners = {metric: _clear_best(methods, metric) for metric in metrics}
    units = {metric: _unit(methods.values(), metric) for metric in metrics}
    rows = []
    for method in in_known_order(set(methods), dict(known)):
        cells: list[str] = [_method_heading(method)]
        for metric in metrics:
            measure = methods[method].get(metric, Measure())
            decimals = metric_decimals(metric, units[metric])
            content = interval(measure, (*path, method, metric), decimals)
            if measure.n is not None and measure.n != n:
                key = pointer(METRICS_FILE, *path, method, metric, "n")
                content = join([content, tag("small", "n = ", number(measure.n, key, 0))])
            if warning := warned.get((method, metric)):
                content = join([content, tag("small", f"▼ {warning}")])
                cells.append(tag("td", content, class_="worse"))
                continue
            cells.append(tag("td", content, class_="best" if winners[metric] == method else None))
        rows.append(cells)
    reading = (
        f"{caption} Mean over n = {n} {counted}."
        if n != 1
        else f"{caption} One patient (n = 1): there are no intervals."
    )
    if n != 1:
        reading += (
            f" {intervals}. Green and bold: better than every other row, intervals apart; "
            "no cell is marked where intervals overlap."
        )
    headings = [_metric_heading(metric, units[metric]) for metric in metrics]
    return table(reading, ["method", *headings], rows, kind="figures")


def differences_table(
    comparisons: Mapping[str, Table], path: tuple[str, ...], caption: str
) -> Markup:
    """Paired differences, method minus reference, with intervals and counts of patients."""
    present = {metric for figures in comparisons.values() for metric in figures}
    units = {metric: _unit(comparisons.values(), metric) for metric in present}
    # without a unit it says what PSNR says
    metrics = [m for m in _COMPARED if m in present and (m != "mae" or units[m] == "HU")]
    rows = []
    for name, figures in comparisons.items():
        cells: list[str] = [_comparison_heading(name)]
        for metric in metrics:
            measure = figures.get(metric, Measure())
            place = (*path, name, metric)
            decimals = metric_decimals(metric, units[metric])
            content = [interval(measure, place, decimals, signed=True)]
            if measure.wins is not None:
                wins = number(measure.wins, pointer(METRICS_FILE, *place, "wins"), 0)
                of = number(measure.n, pointer(METRICS_FILE, *place, "n"), 0)
                content.append(tag("small", "better in ", wins, " of ", of))
            cells.append(tag("td", *content, class_=outcome(metric, measure)))
        rows.append(cells)
    headings = [_metric_heading(metric, units[metric]) for metric in metrics]
    return table(
        f"{caption} Mean difference over patients, first minus second. Brackets: 95% paired "
        "bootstrap interval over patients. Green: the first is better. Red: it is worse. "
        "No colour: the interval contains 0, or there is none.",
        ["difference", *headings],
        rows,
        kind="figures",
    )


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
        f"All sites together, from numbers that each reported. {PERSONS}",
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
        f"Patients by site, as reported by each site, rounded. {PERSONS}"
        if run.record.kind == FEDERATION
        else "Patients by site. All figures below are of test patients unless stated otherwise. "
        f"{PERSONS}",
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


def costs_table(costs: Costs) -> Markup:
    """Parameters, bytes, seconds and memory of the rows."""
    columns = (
        ("parameters", "trained parameters", 0),
        ("sent_bytes", "bytes a site a round", 0),
        ("training_cpu_s", "training (CPU s)", 1),
        ("steps", "steps", 0),
        ("inference_s", "a volume (s)", 2),
        ("inference_flops", "a volume (FLOPs)", 0),
        ("one_pass_flops", "in one pass (FLOPs)", 0),
        ("peak_mb", "peak memory (MB)", 0),
    )
    rows = []
    for method in in_known_order(set(costs.rows), METHODS):
        cost = costs.rows[method]
        cells: list[str] = [_method_heading(method)]
        cells += [
            number(
                getattr(cost, key), pointer(METRICS_FILE, "costs", "rows", method, key), decimals
            )
            for key, _, decimals in columns
        ]
        cells.append(tag("td", foreign(cost.stopped or ""), class_="word"))
        rows.append(cells)
    threads = number(costs.threads, pointer(METRICS_FILE, "costs", "threads"), 0)
    reading = join(
        [
            "Training: processor seconds at one site; of what is centralised, in the one place; of "
            "the mixer, the frozen features and one round times the rounds. Steps: of all sites. A "
            "volume: the largest test volume on the CPU, on ",
            threads,
            " threads; memory is what a process needs beyond network and volume. A network that "
            "predicts in windows counts each; one pass is what it would need without. Stopped: the "
            "curve of validation patients was flat (plateau), or the steps ended (budget). A dash: "
            "none, or not measured.",
        ]
    )
    return table(
        reading,
        ["method", *(heading for _, heading, _ in columns), "stopped"],
        rows,
        kind="figures",
    )


def cross_site_table(run: Run, cross_site: Mapping[str, Mapping[str, Table]]) -> Markup:
    """PSNR of a mixer trained at one site (rows) on the test patients of another (columns)."""
    tested = {site for row in cross_site.values() for site in row}
    columns = [site for site in run.sites if site in tested] + sorted(tested - set(run.sites))
    rows = []
    for trained_at, row in cross_site.items():
        cells: list[str] = [foreign(trained_at)]
        for site in columns:
            measure = row.get(site, {}).get("psnr_db", Measure())
            place = ("cross_site", trained_at, site, "psnr_db")
            n = number(measure.n, pointer(METRICS_FILE, *place, "n"), 0)
            cells.append(join([interval(measure, place, 2), tag("small", "n = ", n)]))
        rows.append(cells)
    return table(
        f"PSNR in dB of each site's own mixer (rows) on each site's test patients. {INTERVALS}.",
        ["trained at", *(join(["tested at ", foreign(site), " (dB)"]) for site in columns)],
        rows,
        kind="figures",
    )


def smoothing_table(methods: Mapping[str, Table]) -> Markup:
    """The four figures that tell detail from smoothing, under the target's own values."""
    metrics = ("hf_error", "hf_coherence", "hf_ratio", "slice_gain")
    ideal: list[str] = ["target (ideal)"]
    ideal += [tag("td", f"{ALL_METRICS[metric].ideal:g}", class_="ideal") for metric in metrics]
    rows = [ideal]
    for method in in_known_order(set(methods), METHODS):
        cells: list[str] = [_method_heading(method)]
        for metric in metrics:
            measure = methods[method].get(metric, Measure())
            place = ("pooled", method, metric)
            cells.append(interval(measure, place, ALL_METRICS[metric].decimals))
        rows.append(cells)
    return table(
        f"All sites' test patients. Mean over n = {_largest_n(methods)} patients. {INTERVALS}.",
        ["method", *(_metric_heading(metric, "") for metric in metrics)],
        rows,
        kind="figures",
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


def interval(
    measure: Measure,
    path: tuple[str, ...],
    decimals: int,
    *,
    signed: bool = False,
    file: str = METRICS_FILE,
) -> Markup:
    """`20.44 [20.01, 20.80]`, each number with its place in the run's files."""
    value = number(measure.value, pointer(file, *path, "value"), decimals, signed=signed)
    if measure.value is None or measure.low is None or measure.high is None:
        return value
    low = number(measure.low, pointer(file, *path, "low"), decimals, signed=signed)
    high = number(measure.high, pointer(file, *path, "high"), decimals, signed=signed)
    return join([value, " ", tag("span", "[", low, ", ", high, "]", class_="interval")])


def outcome(metric: str, difference: Measure) -> Literal["better", "worse"] | None:
    """What the 95% interval of a paired difference shows; None where it holds 0 or is not known."""
    low, high = difference.low, difference.high
    if low is None or high is None or low <= 0 <= high:
        return None
    return "better" if (low > 0) == (BETTER[metric] == "higher") else "worse"


def _largest_n(methods: Mapping[str, Table]) -> int | None:
    """Patients behind a table; a figure that fewer of them have says so in its own cell."""
    counts = [measure.n for figures in methods.values() for measure in figures.values()]
    return max((count for count in counts if count is not None), default=None)


def _method_heading(method: str) -> Markup:
    """A method's name; the run's own mixer's row stands out."""
    own = "own" if method in MIXER_ROWS else None
    return tag("th", _method_name(method), scope="row", class_=own)


def _method_name(method: str) -> Markup:
    return foreign(method_term(method).label)


def _metric_heading(metric: str, unit: str) -> Markup:
    """Label over unit and an arrow to the better side."""
    return join([ALL_METRICS[metric].label, tag("small", f"{unit} {better_side(metric)}".strip())])


def _comparison_heading(name: str) -> Markup:
    """`federated − z-filter` for the key `federated - z_filter`."""
    return join((_method_name(part) for part in name.split(" - ")), " \N{MINUS SIGN} ")


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


def _unit(tables: Iterable[Table], metric: str) -> str:
    return next((table[metric].unit for table in tables if metric in table), "")


def _clear_best(methods: Mapping[str, Table], metric: str) -> str | None:
    """The method whose interval is apart from all others' and on the better side."""
    measures = {name: figures[metric] for name, figures in methods.items() if metric in figures}
    known = {name: found for name, found in measures.items() if found.value is not None}
    if len(known) < 2 or BETTER[metric] == "as_real":
        return None
    best = min(known, key=lambda name: distance_to_ideal(metric, known[name].value or 0.0))
    others = [found for name, found in known.items() if name != best]
    return best if all(_apart(known[best], other) for other in others) else None


def _apart(one: Measure, other: Measure) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or one.high < other.low
