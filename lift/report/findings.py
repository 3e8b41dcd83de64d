"""The findings in sentences, for readers to see before any picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lift.markup import Markup, escape, foreign, join, number, pointer, tag
from lift.records.metrics import METRICS_FILE, Comparisons, Measure, Metrics, Table
from lift.records.run import FEDERATION, RUN_FILE, LossRecord
from lift.report.read import Run
from lift.report.record_tables import verdicts_markup
from lift.report.tables import interval, outcome
from lift.report.terms import METHODS

ALONE: Final = (
    "no_mixer",
    "z_filter_local",
    "curves",
    "curves_z_filter",
    "local_only",
    "local_curves",
    "local_longer",
)
"""Rows that a site can have without any other site."""
_FEW_PATIENTS = 10
_MOST_NAMED = 12


def headline(run: Run) -> tuple[Markup, ...]:
    """Return one paragraph per finding, the most critical first.

    The first paragraph states that the run is incomplete, if so, and whether joining is better
    than staying out. The others compare with the fitted linear z-filter and with no mixer, give
    the verdicts of the sites, and state whether training was too short.
    """
    paragraphs: list[Markup] = []
    if run.record.kind != FEDERATION:
        paragraphs = [_no_figures()] if run.metrics is None else _gains(run.metrics.comparisons)
    elif run.extract is not None:
        paragraphs = [verdicts_markup(run)]
    elif not run.record.guard:
        paragraphs = [Markup("<b>No site has given a verdict</b> on the mixer so far.")]
    if run.record.guard:
        paragraphs.append(_guard(run))
    paragraphs += _training(run.record.loss_trend)
    if run.record.complete:
        return tuple(paragraphs)
    incomplete = Markup(
        "This run is <b>not complete</b>. No figure here is final, and some may be missing. "
    )
    return (join([incomplete, paragraphs[0]]), *paragraphs[1:])


def smoothing(metrics: Metrics) -> tuple[Markup, ...]:
    """Return whether the mixer does more than smooth along depth, from the band figures.

    The reference is the fitted z-filter, the best linear smoother of its reach. A filter alone
    can bring HF error below 1 and raise HF coherence, so neither is proof on its own.
    """
    main = metrics.main
    federated = metrics.pooled.get(main, {})
    error, ratio = federated.get("hf_error", Measure()), federated.get("hf_ratio", Measure())
    if error.value is None:
        return ()
    below = error.high is not None and error.high < 1
    sentences = [
        _band_comparison(metrics.comparisons.pooled.get(f"{main} - z_filter", {}), main),
        join(
            [
                "Its HF error is ",
                interval(error, ("pooled", main, "hf_error"), 3),
                ", below" if below else ", not shown to be below",
                " the value 1 of a volume with nothing in this band. ",
                _beside("hf_coherence", "HF coherence", metrics.pooled, main),
            ]
        ),
    ]
    if ratio.value is not None:
        shown = interval(ratio, ("pooled", main, "hf_ratio"), 3)
        meaning = " (1: as much fast variation as the target; towards 0: smoothed away)."
        sentences.append(join(["Its HF ratio is ", shown, meaning]))
    return tuple(sentences)


def _band_comparison(differences: Table, main: str) -> Markup:
    """HF error and HF coherence of the federated mixer against the fitted z-filter."""
    error = differences.get("hf_error", Measure())
    coherence = differences.get("hf_coherence", Measure())
    if error.value is None or coherence.value is None:
        return Markup(
            "The federated mixer was <b>not compared with the fitted z-filter</b> in this band. "
            "It is not known whether it does more than smooth."
        )
    better = (
        outcome("hf_error", error) == "better" and outcome("hf_coherence", coherence) != "worse"
    )
    opening = (
        "<b>It does more than smooth:</b> above 0.25 cycles per slice the federated mixer is "
        "closer to the target than the fitted z-filter, the best linear smoother of its reach: "
        if better
        else "<b>It is not shown to do more than smooth</b> above 0.25 cycles per slice, compared "
        "with the fitted z-filter, the best linear smoother of its reach: "
    )
    path = ("comparisons", "pooled", f"{main} - z_filter")
    return join(
        [
            Markup(opening),
            "HF error ",
            interval(error, (*path, "hf_error"), 3, signed=True),
            ", HF coherence ",
            interval(coherence, (*path, "hf_coherence"), 3, signed=True),
            " (federated minus z-filter, 95% paired bootstrap intervals over patients).",
        ]
    )


def _no_figures() -> Markup:
    return Markup(
        "There are <b>no figures</b>: metrics.json is not in the run folder, so the effect of the "
        "mixer is not known."
    )


def _gains(comparisons: Comparisons) -> list[Markup]:
    """The federated mixer against staying out, the fitted z-filter, and no mixer."""
    against_filter = comparisons.pooled.get(f"{comparisons.main} - z_filter", {}).get("psnr_db")
    against_none = comparisons.pooled.get(f"{comparisons.main} - no_mixer", {}).get("psnr_db")
    paragraphs = _staying_out(comparisons)
    if against_filter is None or against_filter.value is None:
        paragraphs.append(
            Markup(
                "The federated mixer was <b>not compared with the fitted linear z-filter</b>. "
                "It is not known whether it does more than such a filter."
            )
        )
    else:
        opening = {
            "better": "The federated mixer is <b>better than the fitted linear z-filter</b>: ",
            "worse": "The federated mixer is <b>worse than the fitted linear z-filter</b>: ",
            None: "The federated mixer is <b>not shown to be better than the fitted linear "
            "z-filter</b>: ",
        }[outcome("psnr_db", against_filter)]
        sentence: list[str] = [
            Markup(opening),
            _gain(against_filter, f"{comparisons.main} - z_filter"),
        ]
        if outcome("psnr_db", against_filter) != "better":
            sentence.append(
                " Its gain may be no larger than that of a linear filter along depth, which has "
                "six parameters."
            )
        paragraphs.append(join(sentence))
    if against_none is not None and against_none.value is not None:
        opening = {
            "better": "It is <b>better than the frozen generator alone</b> (no mixer): ",
            "worse": "It is <b>worse than the frozen generator alone</b> (no mixer): ",
            None: "It is <b>not shown to be better than the frozen generator alone</b> "
            "(no mixer): ",
        }[outcome("psnr_db", against_none)]
        paragraphs.append(
            join([Markup(opening), _gain(against_none, f"{comparisons.main} - no_mixer")])
        )
    paragraphs += _through_plane(comparisons)
    n = max((measure.n or 0 for measure in (against_filter, against_none) if measure), default=0)
    if 1 < n < _FEW_PATIENTS:
        paragraphs.append(
            Markup(
                "With fewer than ten test patients, intervals tend to be too narrow. "
                "Read them as an indication."
            )
        )
    return paragraphs


def _staying_out(comparisons: Comparisons) -> list[Markup]:
    """The federated mixer against the best that a site could have had alone, by mean PSNR."""
    found = {
        method: table["psnr_db"]
        for method in ALONE
        if "psnr_db" in (table := comparisons.pooled.get(f"{comparisons.main} - {method}", {}))
    }
    known = {m: gain for m, gain in found.items() if gain.value is not None}
    if not known:
        return []
    best = min(known, key=lambda method: known[method].value or 0.0)
    opening = {
        "better": "Joining is <b>better than staying out</b>. ",
        "worse": "Joining is <b>worse than staying out</b>. ",
        None: "Joining is <b>not shown to be better than staying out</b>. ",
    }[outcome("psnr_db", known[best])]
    compared = ", ".join(METHODS[method].label for method in known)
    paragraphs = [
        join(
            [
                Markup(opening),
                "Of the methods that a site could use alone, the best over all patients is ",
                tag("b", METHODS[best].label),
                f" (of {compared}). Over this, the federated mixer gains ",
                _gain(known[best], f"{comparisons.main} - {best}"),
            ]
        )
    ]
    chosen = comparisons.pooled.get(f"chosen - {best}", {}).get("psnr_db")
    if chosen is not None and chosen.value is not None:
        opening = {
            "better": "With each site's <b>choice on its own patients</b>, joining is better: ",
            "worse": "With each site's <b>choice on its own patients</b>, joining is worse: ",
            None: "With each site's <b>choice on its own patients</b>, joining is not shown to be "
            "better: ",
        }[outcome("psnr_db", chosen)]
        label = METHODS[best].label
        gain = _gain(chosen, f"chosen - {best}")
        paragraphs.append(join([Markup(opening), gain, " Against ", tag("b", label), "."]))
    return paragraphs


def _through_plane(comparisons: Comparisons) -> list[Markup]:
    """Return how much of the gain a network without reach along depth also has."""
    alone = comparisons.pooled.get("control_2d - no_mixer", {}).get("psnr_db")
    above = comparisons.pooled.get(f"{comparisons.main} - control_2d", {}).get("psnr_db")
    if alone is None or alone.value is None or above is None or above.value is None:
        return []
    opening = {
        "better": "On top of that, <b>context along depth adds</b> to the federated mixer ",
        "worse": "The federated mixer is <b>worse than that</b>: ",
        None: "On top of that, context along depth is <b>not shown to add</b> anything: ",
    }[outcome("psnr_db", above)]
    return [
        join(
            [
                "A network of at least the same size without reach along depth (2D control) gains ",
                _gain(alone, "control_2d - no_mixer"),
                " ",
                Markup(opening),
                _gain(above, f"{comparisons.main} - control_2d"),
            ]
        )
    ]


def _gain(measure: Measure, comparison: str) -> Markup:
    """A difference in words: `+0.50 dB PSNR [0.39, 0.61], better in 15 of 16 test patients`."""
    path = ("comparisons", "pooled", comparison, "psnr_db")
    value = number(measure.value, pointer(METRICS_FILE, *path, "value"), 2, signed=True)
    parts = [value, " dB PSNR"]
    if measure.low is not None and measure.high is not None:
        low = number(measure.low, pointer(METRICS_FILE, *path, "low"), 2, signed=True)
        high = number(measure.high, pointer(METRICS_FILE, *path, "high"), 2, signed=True)
        parts += [" [", low, ", ", high, "] (mean, 95% paired bootstrap interval over patients)"]
    else:
        parts.append(" (one patient: no interval, so nothing is shown)")
    if measure.wins is not None and measure.n is not None:
        wins = number(measure.wins, pointer(METRICS_FILE, *path, "wins"), 0)
        n = number(measure.n, pointer(METRICS_FILE, *path, "n"), 0)
        parts += [", better in ", wins, " of ", n, " test patients" if measure.n > 1 else ""]
    return join([*parts, "."])


def _guard(run: Run) -> Markup:
    """Return which sites the mixer harmed or helped on their own patients."""
    groups = []
    for verdict in ("harmed", "helped", "undecided"):
        sites = [site for site, record in run.record.guard.items() if record.verdict == verdict]
        if sites:
            # sites that were harmed are always named; a long list of others would hide them
            long = verdict != "harmed" and len(sites) > _MOST_NAMED
            named = escape(f"{len(sites)} sites") if long else _listing(sites)
            groups.append(join([tag("b", f"{verdict} at "), named]))
    also = [s for s, record in run.record.guard.items() if record.judged_on != "validation"]
    training = join([" Sites that also used training patients: ", _listing(also), "."])
    return join(
        [
            "Verdicts of the sites on their own validation patients, against no mixer: ",
            join(groups, "; "),
            ".",
            training if also else "",
        ]
    )


def _training(trend: LossRecord | None) -> list[Markup]:
    """Return a warning if the loss still fell at the end, else nothing."""
    if trend is None or not trend.still_falling:
        return []
    fall = number(trend.fall_percent, pointer(RUN_FILE, "loss_trend", "fall_percent"), 0)
    return [
        join(
            [
                Markup("<b>Training may have been too short:</b> "),
                "the training loss was still falling at the end. In the last third of the rounds, "
                "it was ",
                fall,
                "% below that of the middle third. More rounds may give a better mixer.",
            ]
        )
    ]


def _listing(names: Sequence[str]) -> Markup:
    return join((foreign(name) for name in names), ", ")


def _beside(metric: str, label: str, pooled: dict[str, Table], main: str) -> Markup:
    """One metric of three methods: `HF coherence: federated 0.27, z-filter 0.27, no mixer 0.10`."""
    names = {main: "federated", "z_filter": "z-filter", "no_mixer": "no mixer"}
    found = {
        name: pooled[method][metric].value
        for method, name in names.items()
        if metric in pooled.get(method, {})
    }
    keys = {name: method for method, name in names.items()}
    values = [
        join(
            [
                f"{name} ",
                number(value, pointer(METRICS_FILE, "pooled", keys[name], metric, "value"), 3),
            ]
        )
        for name, value in found.items()
    ]
    return join([f"{label}: ", join(values, ", "), "."]) if values else Markup("")
