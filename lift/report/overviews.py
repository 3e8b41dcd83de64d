"""Figures that stay readable with fifty sites and five hundred rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lift.records.extract import PublicRound
from lift.records.metrics import Measure, Table
from lift.records.rounds import WORDS, Outcome, RoundRecord, mean_of, outcome
from lift.records.rows import MIXER_ROWS
from lift.report.figures import Picture, drawable, grid, svg, titled
from lift.report.read import Run
from lift.report.terms import METHODS

MOST_PANELS: Final = 8
"""Sites that get a panel of their own; more of them share one."""
_INK: Final = "#222222"
_ROW_INCHES: Final = 0.2
_MOST_HATCHED: Final = 80
# a hatch beside each colour: the figure is read without colour too
_LOOK: Final = {
    Outcome.COUNTED: ("#2f7f5f", ""),
    Outcome.LATE: ("#e8b64c", "///"),
    Outcome.REFUSED: ("#b03a2e", "xxx"),
    Outcome.UNCOUNTED: ("#b9b9b9", "..."),
}
_GAINS: Final = ("no_mixer", "z_filter", "local_only")


def timeline_figure(run: Run) -> Picture | None:
    """Draw which site counted in which round: one row per site, one bar per stretch of rounds."""
    if not run.rounds:
        return None
    sites = taking_part(run)
    if not sites:
        return None
    figure, (place,) = grid(1, 1, 1.0 + _ROW_INCHES * max(len(sites), 3))
    # where a round is a hair's breadth, an edge or a hatch would be all that is seen of it
    wide = len(run.rounds) <= _MOST_HATCHED
    for height, site in enumerate(reversed(sites)):
        for became, first, last in stretches(run.rounds, site):
            if became is Outcome.NOT_ASKED:
                continue
            colour, hatch = _LOOK[became]
            place.broken_barh(
                [(first - 0.5, last - first + 1)],
                (height - 0.36, 0.72),
                facecolor=colour,
                edgecolor="white" if wide else colour,
                hatch=hatch if wide else None,
                linewidth=0.4 if wide else 0,
            )
    resumed = [record.round for record in run.rounds if record.resumed]
    for index in resumed:
        place.axvline(index - 0.5, color=_INK, linestyle="--", linewidth=1)
    place.set_yticks(range(len(sites)), [drawable(site) for site in reversed(sites)])
    place.set_ylim(-0.6, len(sites) - 0.4)
    place.set_xlim(-0.6, max(record.round for record in run.rounds) + 0.6)
    place.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    place.grid(visible=False)
    place.set_xlabel("round (0: statistics)")
    place.set_title(titled(run, "who counted in which round"))
    handles = [
        Patch(
            facecolor=colour,
            hatch=hatch if wide else None,
            edgecolor="white",
            label=WORDS[became],
        )
        for became, (colour, hatch) in _LOOK.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    caption = "No bar: the site was not asked."
    if resumed:
        caption += " Dashed line: the run was resumed before this round."
    return svg(figure, "Which site counted, was late or was refused in which round.", caption)


def stretches(rounds: tuple[RoundRecord, ...], site: str) -> Iterator[tuple[Outcome, int, int]]:
    """Yield the outcome of the site, with the first and last round of each stretch."""
    for became, records in groupby(rounds, key=lambda record: outcome(record, site)):
        indices = [record.round for record in records]
        yield became, indices[0], indices[-1]


def taking_part(run: Run) -> list[str]:
    """Return the sites named in any round, those of `run.json` first, in its order."""
    named = {
        site
        for record in run.rounds
        for site in (*record.asked, *record.answered, *record.counted, *record.refused)
    }
    return [site for site in run.sites if site in named] + sorted(named - set(run.sites))


def shared_curves_figure(run: Run, sites: list[str]) -> Picture | None:
    """Draw loss and validation PSNR of many sites: a thin line for each, the mean in bold."""
    panels: list[tuple[str, list[Mapping[str, float | None]]]] = [
        ("training loss", [record.loss for record in run.rounds]),
        ("validation PSNR (dB)", [record.validation_psnr_db for record in run.rounds]),
    ]
    panels = [panel for panel in panels if any(mean_of(dict(values)) for values in panel[1])]
    if not panels:
        return None
    figure, axes = grid(1, len(panels), 2.8)
    rounds = [record.round for record in run.rounds]
    for place, (label, values) in zip(axes, panels, strict=True):
        for site in sites:
            _line(place, rounds, [told.get(site) for told in values], "#9a9a9a", 0.5)
        means = [mean_of(dict(told)) for told in values]
        _line(place, rounds, means, METHODS["federated"].colour, 2.2)
        place.set_ylabel(label)
        place.set_xlabel("round")
        place.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(titled(run, f"federated mixer by round, {len(sites)} sites"), x=0.01, ha="left")
    return svg(
        figure,
        "Training loss and validation PSNR by round, all sites together.",
        "Thin: each site. Bold: mean over the sites that reported a value in that round. PSNR is "
        "of the sites' own validation patients.",
    )


def mean_loss_figure(extract: Sequence[PublicRound], run: Run) -> Picture | None:
    """Draw the mean training loss by round, for a release."""
    told = [line for line in extract if line.loss is not None]
    if not told:
        return None
    figure, (place,) = grid(1, 1, 2.8)
    rounds = [line.round for line in told]
    _line(place, rounds, [line.loss for line in told], METHODS["federated"].colour, 2.2)
    place.set_ylabel("training loss")
    place.set_xlabel("round")
    place.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(titled(run, "mean loss by round"), x=0.01, ha="left")
    return svg(figure, "Mean training loss by round.", "Mean over the sites that reported a loss.")


def gains_figure(run: Run, by_site: Mapping[str, Mapping[str, Table]]) -> Picture | None:
    """What the federated mixer gains at each site: a row by site, a panel by reference."""
    main = MIXER_ROWS[0] if run.metrics is None else run.metrics.main
    panels = [
        (reference, rows)
        for reference in _GAINS
        if (rows := _gains(by_site, f"{main} - {reference}"))
    ]
    if not panels:
        return None
    sites = [site for site in run.sites if any(site in rows for _, rows in panels)][::-1]
    height = 0.9 + _ROW_INCHES * max(len(sites), 3)
    figure, axes = grid(1, len(panels), height, share_y=True)
    for place, (reference, rows) in zip(axes, panels, strict=True):
        term = METHODS[reference]
        place.axvline(0, color=_INK, linewidth=1)
        for row, site in enumerate(sites):
            measure = rows.get(site)
            if measure is None or measure.value is None:
                continue
            if measure.low is not None and measure.high is not None:
                place.plot([measure.low, measure.high], [row, row], color=term.colour, linewidth=2)
            place.plot([measure.value], [row], color=term.colour, marker=term.marker)
        place.set_yticks(range(len(sites)), [drawable(site) for site in sites])
        place.set_ylim(-0.6, len(sites) - 0.4)
        place.set_title(f"federated minus {term.label}")
        place.set_xlabel("PSNR difference (dB)")
    figure.suptitle(titled(run, "gain by site"), x=0.01, ha="left")
    return svg(
        figure,
        "Paired PSNR differences at each site, federated minus other methods.",
        "Right of the line: federated is better at this site. Bars: 95% paired bootstrap interval "
        "over the site's test patients; a mark without a bar is a single patient.",
    )


def _gains(by_site: Mapping[str, Mapping[str, Table]], comparison: str) -> dict[str, Measure]:
    return {
        site: tables[comparison]["psnr_db"]
        for site, tables in by_site.items()
        if "psnr_db" in tables.get(comparison, {})
    }


def _line(
    place: Axes, rounds: list[int], values: list[float | None], colour: str, width: float
) -> None:
    held = [
        (index, value) for index, value in zip(rounds, values, strict=True) if value is not None
    ]
    if held:
        place.plot(*zip(*held, strict=True), color=colour, linewidth=width)
