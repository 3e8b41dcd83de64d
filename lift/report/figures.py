"""The report's drawn figures, as SVG with the same bytes for the same run."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lift.records.metrics import Measure, Table
from lift.report.read import Run
from lift.report.terms import METHODS, METRICS, TARGET_COLOUR, in_known_order, method_term

FONT: Final = "DejaVu Sans"
LONGEST_NAME: Final = 28
_INK: Final = "#222222"
_WIDTH_INCHES: Final = 11.6
_TITLE_INCHES: Final = 0.35
_STYLE: Final = {
    "font.family": FONT,
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.0,
    # names are shown as they are: a dollar sign starts no formula
    "text.parse_math": False,
    # element ids of an SVG are random without it
    "svg.hashsalt": "lift-report",
}


@dataclass(frozen=True)
class Picture:
    """One figure: its bytes, their kind, a text alternative, and a caption."""

    content: bytes
    kind: Literal["svg+xml", "png"]
    alt: str
    caption: str


@dataclass(frozen=True)
class Profile:
    """Mean inside the mask of each slice of one patient's volumes, along depth.

    Attributes:
        site: the patient's site.
        patient: the patient.
        depth_mm: distance of each slice from the mask's first one.
        target: mean of the real volume, NaN where the mask is (nearly) empty.
        methods: METHOD -> the same of its prediction.
    """

    site: str
    patient: str
    depth_mm: NDArray[np.float64]
    target: NDArray[np.float64]
    methods: dict[str, NDArray[np.float64]]


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults with the report's own settings, whatever the user's are."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def drawable(text: str) -> str:
    """The text as the figure font can draw it, at most 28 characters; "?" for the rest."""
    known = _characters()
    shown = "".join(char if ord(char) in known else "?" for char in text)
    return shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"


def titled(run: Run, title: str) -> str:
    """The title of a figure; a phantom's says so."""
    return f"PHANTOM · {title}" if run.record.phantom else title


def differences_figure(run: Run) -> Picture | None:
    """Paired PSNR differences of the federated mixer to every other row, pooled and by site."""
    if run.metrics is None:
        return None
    compared = run.metrics.comparisons
    groups = [("all sites", compared.pooled)]
    groups += [(site, compared.sites[site]) for site in run.sites if site in compared.sites]
    panels = []
    for name, tables in groups:
        rows = _psnr_rows(tables, run.metrics.main)
        if rows:
            panels.append((name, rows))
    if not panels:
        return None
    references = in_known_order({ref for _, rows in panels for ref in rows}, METHODS)[::-1]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = grid(lines, columns, 0.8 + 0.3 * len(references), share_x=True, share_y=True)
    for place, (name, rows) in zip(axes, panels, strict=False):
        place.axvline(0, color=_INK, linewidth=1)
        for height, reference in enumerate(references):
            if reference in rows:
                _draw_interval(place, rows[reference], height, reference)
        place.set_yticks(range(len(references)), [method_term(ref).label for ref in references])
        place.set_ylim(-0.6, len(references) - 0.4)
        place.set_title(drawable(name))
        place.set_xlabel("PSNR difference (dB)")
    for place in axes[len(panels) :]:
        place.remove()
    figure.suptitle(titled(run, "federated minus each other method"), x=0.01, ha="left")
    return svg(
        figure,
        "Paired PSNR differences, federated minus each other method, with 95% intervals.",
        "Right of the line: federated is better. Bars: 95% paired bootstrap interval over test "
        "patients; a mark without a bar is a single patient.",
    )


def curves_figure(run: Run) -> Picture | None:
    """Training loss and validation PSNR of the federated mixer by round, a row for each site."""
    sites = [
        site
        for site in run.sites
        if any(
            record.loss.get(site) is not None or record.validation_psnr_db.get(site) is not None
            for record in run.rounds
        )
    ]
    if not sites:
        return None
    # new volumes have no target: such a run has a loss alone
    columns = 2 if run.has_targets else 1
    figure, axes = grid(len(sites), columns, 1.9)
    term = METHODS["federated"]
    for row, site in enumerate(sites):
        series = (
            ("training loss", [(record.round, record.loss.get(site)) for record in run.rounds]),
            (
                "validation PSNR (dB)",
                [(record.round, record.validation_psnr_db.get(site)) for record in run.rounds],
            ),
        )
        for column, (label, points) in enumerate(series[:columns]):
            place = axes[columns * row + column]
            held = {index: value for index, value in points if value is not None}
            if held:
                place.plot(
                    list(held),
                    list(held.values()),
                    color=term.colour,
                    marker=term.marker,
                    clip_on=False,
                )
            else:
                # an empty line would lie in the figure's corner, and the layout make room for it
                place.text(0.5, 0.5, "not recorded", ha="center", transform=place.transAxes)
            place.set_title(drawable(site))
            place.set_ylabel(label)
            place.set_xlabel("round")
            place.set_xlim(-0.2, max(record.round for record in run.rounds) + 0.2)
            place.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(titled(run, "federated mixer by round"), x=0.01, ha="left")
    if columns == 1:
        caption = (
            "Each site has its own scales. The drift's part is about constant by construction."
        )
        return svg(figure, "Training loss by round for each site.", caption)
    return svg(
        figure,
        "Training loss and validation PSNR by round for each site.",
        "Each site has its own scales. PSNR is of the site's own validation patients.",
    )


def smoothing_figure(run: Run) -> Picture | None:
    """HF error, HF coherence, HF ratio and slice gain of every method beside the ideal."""
    if run.metrics is None:
        return None
    pooled = run.metrics.pooled
    metrics = [
        name
        for name in ("hf_error", "hf_coherence", "hf_ratio", "slice_gain")
        if any(name in table for table in pooled.values())
    ]
    if not metrics:
        return None
    methods = in_known_order(set(pooled), METHODS)[::-1]
    figure, axes = grid(1, len(metrics), 1.1 + 0.28 * len(methods), share_y=True)
    for place, metric in zip(axes, metrics, strict=True):
        ideal = METRICS[metric].ideal
        if ideal is not None:
            place.axvline(ideal, color=TARGET_COLOUR, linewidth=1.2)
        if metric == "hf_error":
            place.axvline(1.0, color="#888888", linestyle="--", linewidth=1.2)
        for height, method in enumerate(methods):
            if metric in pooled[method]:
                _draw_interval(place, pooled[method][metric], height, method)
        place.set_yticks(range(len(methods)), [method_term(method).label for method in methods])
        place.set_ylim(-0.6, len(methods) - 0.4)
        if metric == "hf_coherence":
            place.set_xlim(0, 1.03)
        else:
            place.set_xlim(left=min(0.0, place.get_xlim()[0]))
        place.set_title(METRICS[metric].label)
        place.set_xlabel("no unit" if metric == "hf_coherence" else "relative to the target")
    figure.suptitle(titled(run, "does it only smooth?"), x=0.01, ha="left")
    return svg(
        figure,
        "High-frequency error, coherence and ratio and slice gain of every method.",
        "Black line: the target itself. Dashed: the HF error of a volume that holds nothing above "
        "0.25 cycles per slice. Smoothing moves HF ratio towards 0 and HF error towards the "
        "dashed line. Bars: 95% bootstrap interval over patients.",
    )


def seconds_figure(run: Run) -> Picture | None:
    """What each stage took as a bar, its budget as a tick."""
    seconds, budget = run.record.seconds, run.record.budget_s
    stages = list(dict.fromkeys([*seconds, *budget]))[::-1]
    if not stages:
        return None
    figure, (place,) = grid(1, 1, 0.9 + 0.3 * len(stages))
    for height, stage in enumerate(stages):
        took, may = seconds.get(stage), budget.get(stage)
        if took is not None:
            over = may is not None and took > may
            place.barh(height, took, height=0.55, color="#b03a2e" if over else "#7f9fb8")
        if may is not None:
            place.plot([may, may], [height - 0.38, height + 0.38], color=_INK, linewidth=2.5)
    place.set_yticks(range(len(stages)), [drawable(stage) for stage in stages])
    place.set_ylim(-0.6, len(stages) - 0.4)
    place.grid(visible=False, axis="y")
    place.set_xlim(left=0)
    place.set_xlabel("wall time (s)")
    place.set_title(titled(run, "seconds by stage"))
    return svg(
        figure,
        "Wall time of each stage against its budget.",
        "Bar: what the stage took, red where it took more than its budget. Black tick: budget.",
    )


def flicker_figure(run: Run, profiles: Sequence[Profile]) -> Picture | None:
    """Mean of every slice along depth, and its error, for each patient shown."""
    if not profiles:
        return None
    figure, axes = grid(len(profiles), 2, 2.0)
    for row, profile in enumerate(profiles):
        means, errors = axes[2 * row], axes[2 * row + 1]
        means.plot(profile.depth_mm, profile.target, color=TARGET_COLOUR, linewidth=2.2)
        errors.axhline(0, color=TARGET_COLOUR, linewidth=2.2)
        for method, values in profile.methods.items():
            term = method_term(method)
            means.plot(profile.depth_mm, values, color=term.colour)
            errors.plot(profile.depth_mm, values - profile.target, color=term.colour)
        for place in (means, errors):
            place.set_title(f"{drawable(profile.site)} · {drawable(profile.patient)}")
            place.set_xlabel("depth (mm)")
        means.set_ylabel("slice mean (normalised)")
        errors.set_ylabel("minus target")
    handles = [Line2D([], [], color=TARGET_COLOUR, linewidth=2.2, label="target")]
    handles += [
        Line2D([], [], color=method_term(method).colour, label=method_term(method).label)
        for method in profiles[0].methods
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    figure.suptitle(titled(run, "slice means along depth"), x=0.01, ha="left")
    return svg(
        figure,
        "Mean of every slice along depth for target, no mixer and federated.",
        "Left: mean inside the mask of every slice. Right: the same minus the target's. A jagged "
        "line is flicker between slices; a smooth line off zero is a wrong contrast, not flicker.",
    )


@cache
def _characters() -> frozenset[int]:
    """The code points that the figure font has."""
    return frozenset(FT2Font(findfont(FontProperties(family=FONT))).get_charmap())


def _psnr_rows(tables: dict[str, Table], main: str) -> dict[str, Measure]:
    """REFERENCE -> PSNR difference, of the comparisons `MAIN - REFERENCE`."""
    start = f"{main} - "
    return {
        name.removeprefix(start): table["psnr_db"]
        for name, table in tables.items()
        if name.startswith(start) and "psnr_db" in table
    }


def _draw_interval(place: Axes, measure: Measure, height: float, method: str) -> None:
    if measure.value is None:
        return
    term = method_term(method)
    if measure.low is not None and measure.high is not None:
        place.plot([measure.low, measure.high], [height, height], color=term.colour, linewidth=2)
    place.plot([measure.value], [height], color=term.colour, marker=term.marker, markeredgewidth=0)


def grid(
    rows: int,
    columns: int,
    panel_height_inches: float,
    *,
    share_x: bool = False,
    share_y: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels, in reading order; all figures of the page have one width."""
    height = panel_height_inches * rows + _TITLE_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
    return figure, list(axes.ravel())


def svg(figure: Figure, alt: str, caption: str) -> Picture:
    """The figure as SVG: its bytes depend on what is drawn alone."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(stream.getvalue(), "svg+xml", alt, caption)
