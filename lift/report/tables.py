"""The report's tables of figures: means by method, paired differences, costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from lift.markup import Markup, foreign, join, number, pointer, table, tag
from lift.records.metrics import METRICS_FILE, Costs, Measure, Table
from lift.records.rows import MIXER_ROWS
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
