"""The run report: one self-contained HTML file, made from a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from lift.files import write_atomically
from lift.markup import Markup, foreign, join, number, pointer, tag
from lift.records.metrics import Metrics
from lift.records.run import FEDERATION, RUN_FILE, SITE_REPORT
from lift.report.figures import (
    differences_figure,
    flicker_figure,
    house_style,
    smoothing_figure,
)
from lift.report.findings import headline, smoothing
from lift.report.generated import generated_page
from lift.report.overviews import MOST_PANELS, gains_figure
from lift.report.own import left_section, own_banner, volumes_section
from lift.report.patients import Pictures, held_out_pictures
from lift.report.privacy import privacy_section
from lift.report.published import published_section
from lift.report.read import SYNTHESIS_FOLDER, Run, read_run
from lift.report.record_tables import guard_table, left_out_table, sites_table, verdicts_markup
from lift.report.sections import (
    Section,
    curves_section,
    data_banner,
    figure_markup,
    json_text,
    lacking,
    listing,
    plain_setting,
    privacy_markup,
    reproducibility_section,
    rounds_section,
    seconds_section,
    shell,
)
from lift.report.tables import (
    costs_table,
    cross_site_table,
    differences_table,
    interval,
    methods_table,
    smoothing_table,
)
from lift.report.terms import MAIN_METRICS, METHODS, METRICS
from lift.report.volumes import viewer_section
from lift.viewer.embedded import content_policy, style

REPORT_FILE: Final = "report.html"


def write_report(run: Path) -> Path:
    """Write `run/report.html` atomically and return its path. See :func:`render_report`."""
    path = run / REPORT_FILE
    write_atomically(path, render_report(run))
    return path


def render_report(run: Path, audits: Mapping[str, Any] | None = None) -> bytes:
    """Return the content of a run folder as one HTML file.

    Args:
        run: the run's folder, or a release's, which holds public extracts instead of the records.
        audits: `audits` of the release to which the report belongs.

    Guarantee: reads only files of `run`. The same files and package versions give the same bytes.
    The page is at most 10 MB with a dozen sites; tables of more sites add to it. It runs only the
    script of its viewer and fetches nothing. Every number carries its file, its place in that file
    and all its digits. The page states what the folder lacks.

    Raises:
        DataError: `run.json` is missing, or a record is damaged.
        VolumeError: a volume under `synthesis/` is damaged or does not fit its neighbours.
    """
    record = read_run(run)
    page = _PAGES[str(record.setting("task", "kind") or "paired")]
    with house_style():
        return page(record, run / SYNTHESIS_FOLDER, audits).encode()


def _paired_page(run: Run, synthesis: Path, audits: Mapping[str, Any] | None) -> str:
    del synthesis  # `held_out_pictures` knows where its volumes are
    if run.record.kind == SITE_REPORT:
        return _page(run, held_out_pictures(run), audits, own=True)
    if run.record.kind == FEDERATION:
        return shell(run, _opening(run), _of_a_server(run, audits))
    return _page(run, held_out_pictures(run), audits)


_PAGES: Final[Mapping[str, Callable[[Run, Path, Mapping[str, Any] | None], str]]] = {
    "paired": _paired_page,
    "unconditional": generated_page,
}
"""The page of a run by the kind of its task."""


def _of_a_server(run: Run, audits: Mapping[str, Any] | None) -> tuple[Section, ...]:
    """Return the sections of a server's report, which has no patients."""
    nowhere = tag(
        "p",
        "A server has no patients. Tables of all methods, pictures and flicker profiles exist in "
        "a simulation, and in the report of each site (",
        tag("code", "lift-client report"),
        "), which stays at the site.",
        class_="note",
    )
    guard = _guard(run)
    return (
        _trained(run),
        Section(guard.anchor, guard.title, (*guard.content, nowhere)),
        rounds_section(run),
        curves_section(run),
        privacy_section(run, audits),
        reproducibility_section(run),
    )


def _page(
    run: Run, pictures: Pictures, audits: Mapping[str, Any] | None, *, own: bool = False
) -> Markup:
    """Return a page with patients, for a simulation or for a hospital."""
    shown = viewer_section(run)
    # a hospital is one site, and knows of the rounds only what is in its journal
    by_site = () if own else (_by_site(run),)
    of_the_run = (
        () if own else (curves_section(run), rounds_section(run), privacy_section(run, audits))
    )
    sections = (
        _trained(run),
        _pooled(run),
        *(() if run.published is None else (published_section(run.published),)),
        *by_site,
        _guard(run),
        *of_the_run,
        _flicker(run, pictures),
        _mosaics(pictures),
        shown.section,
        *((volumes_section(run),) if own else ()),
        _smoothing(run),
        left_section(run) if own else seconds_section(run),
        reproducibility_section(run),
    )
    if not shown.has_script:
        return shell(run, _opening(run), sections)
    return shell(run, _opening(run), sections, policy=content_policy(), more_style=style())


def _opening(run: Run) -> Iterable[Markup]:
    record = run.record
    first, *others = headline(run)
    yield tag("p", "LiFT run report · ", foreign(record.kind or "run"), class_="kicker")
    yield tag("h1", foreign(record.name))
    if record.kind == SITE_REPORT:
        yield own_banner()
    yield tag("p", first, class_="headline")
    for paragraph in others:
        yield tag("p", paragraph, class_="finding")
    yield data_banner(run)


def _trained(run: Run) -> Section:
    record = run.record
    training = record.generator.get("training_data")
    licence = record.generator.get("licence")
    facts: list[tuple[str, Markup]] = [
        (
            "task",
            join(
                [
                    listing(run.setting("task", "source")),
                    " → ",
                    plain_setting(run, "task", "target"),
                ]
            ),
        ),
        ("slice plane", join([run.plane, "; depth is perpendicular to it"])),
    ]
    if record.mixer is not None:
        count = number(record.mixer.parameters, pointer(RUN_FILE, "mixer", "parameters"), 0)
        facts.append(
            ("mixer", join([foreign(record.mixer.kind), ", ", count, " trained parameters"]))
        )
    if record.update_bytes is not None:
        size = number(record.update_bytes, pointer(RUN_FILE, "update_bytes"), 0)
        facts.append(("one update", join([size, " bytes"])))
    facts += [
        (
            "training",
            join(
                [
                    plain_setting(run, "federation", "rounds"),
                    " rounds of ",
                    plain_setting(run, "training", "steps"),
                    " local steps",
                ]
            ),
        ),
        ("privacy", _privacy_fact(run)),
        (
            "generator",
            join(
                [
                    "frozen, not trained in this run; made from: ",
                    foreign(json_text(training)),
                    "; licence: ",
                    foreign(json_text(licence)),
                ]
            ),
        ),
    ]
    if run.extract is None:
        started = ["started ", foreign(record.started or "not recorded")]
        ended = [", finished " if record.finished else ", not finished"]
        facts.append(("time", join([*started, *ended, foreign(record.finished or "")])))
    listed = [join([tag("dt", name), tag("dd", value)]) for name, value in facts]
    tables = [one for one in (sites_table(run), left_out_table(run)) if one is not None]
    return Section("trained", "Training and sites", (tag("dl", *listed), *tables))


def _privacy_fact(run: Run) -> Markup:
    told = privacy_markup(run)
    return told if run.record.kind == SITE_REPORT else tag("a", told, href="#privacy")


def _pooled(run: Run) -> Section:
    title = "This site" if run.record.kind == SITE_REPORT else "All sites together"
    if run.metrics is None or not run.metrics.pooled:
        return Section("pooled", title, (lacking("metrics.json holds no pooled figures."),))
    metrics = run.metrics
    caption = "Test patients of all sites, each counted once."
    told = [site for site in metrics.sites.values() if site.examinations is not None]
    if more := sum((site.examinations or 0) - site.patients for site in told):
        caption = f"{caption} They have {more} further examinations, included in their means."
    if any(site.calibration_patients is not None for site in run.record.sites):
        caption = f"{caption} Sites that joined after the training are not included."
    content = [methods_table(metrics.pooled, ("pooled",), caption, only=MAIN_METRICS)]
    if metrics.comparisons.pooled:
        content.append(
            differences_table(
                metrics.comparisons.pooled,
                ("comparisons", "pooled"),
                "Paired differences, all sites.",
            )
        )
    content += figure_markup(
        differences_figure(run)
        if len(run.sites) <= MOST_PANELS
        else gains_figure(run, metrics.comparisons.sites)
    )
    present = {metric for figures in metrics.pooled.values() for metric in figures}
    if further := present - set(MAIN_METRICS):
        content.append(
            methods_table(metrics.pooled, ("pooled",), "Further figures.", only=tuple(further))
        )
    content.append(_meanings())
    if metrics.costs is not None:
        content += [tag("h3", "What the rows cost"), costs_table(metrics.costs)]
    if metrics.second_phantom:
        content.append(tag("h3", "On a phantom without slice corruption"))
        caption = "A second phantom, whose slices were not corrupted."
        content.append(
            methods_table(metrics.second_phantom, ("second_phantom",), caption, only=MAIN_METRICS)
        )
    elif run.record.phantom:
        content.append(lacking("This run has no second phantom without slice corruption."))
    return Section("pooled", title, tuple(content))


def _meanings() -> Markup:
    terms = [(term.label, term.meaning) for term in METHODS.values()]
    terms += [(term.label, term.meaning) for term in METRICS.values()]
    listed = [join([tag("dt", label), tag("dd", meaning)]) for label, meaning in terms]
    return tag(
        "details",
        tag("summary", "What the rows and columns mean"),
        tag("p", "↑: higher is better; ↓: lower is better; → 1: the value of the target is 1."),
        tag("dl", *listed),
    )


def _by_site(run: Run) -> Section:
    title = "Site by site"
    if run.metrics is None or not run.metrics.sites:
        return Section("sites", title, (lacking("metrics.json holds no figures by site."),))
    metrics = run.metrics
    # a long list of sites is folded: one line each, with the most important figure
    folded = len(run.sites) > MOST_PANELS
    content: list[Markup] = []
    for site in run.sites:
        tables = _site_tables(metrics, site)
        if folded:
            line = tag("summary", *_site_line(metrics, site))
            content.append(tag("details", line, *tables, class_="fold"))
        else:
            content += [tag("h3", foreign(site)), *tables]
    if metrics.cross_site:
        content.append(tag("h3", "Mixer of one site at another site"))
        content.append(cross_site_table(run, metrics.cross_site))
    return Section("sites", title, tuple(content))


def _site_line(metrics: Metrics, site: str) -> list[Markup]:
    """Return a site's name and its gain over no mixer."""
    comparison = f"{metrics.main} - no_mixer"
    measure = metrics.comparisons.sites.get(site, {}).get(comparison, {}).get("psnr_db")
    if measure is None:
        return [foreign(site)]
    path = ("comparisons", "sites", site, comparison, "psnr_db")
    gain = interval(measure, path, 2, signed=True)
    return [foreign(site), join([" · federated against no mixer: ", gain, " dB"])]


_POOLED_ALONE: Final = (" - z_median", " - z_filter_local", " - control_2d_z_filter")
"""Differences that only the table of all sites shows."""


def _site_tables(metrics: Metrics, site: str) -> list[Markup]:
    if site not in metrics.sites:
        return [lacking("No test patient of this site was measured.")]
    path = ("sites", site, "methods")
    caption = "Test patients of this site."
    found = metrics.sites[site]
    if found.examinations is not None and found.examinations > found.patients:
        caption = (
            f"Test patients of this site: {found.patients} persons with {found.examinations} "
            "examinations, each person counted once."
        )
    tables = [methods_table(metrics.sites[site].methods, path, caption, only=MAIN_METRICS)]
    # only what the site would use; other pairs are in the table of all sites
    own = (f"{metrics.main} - ", "chosen - ")
    differences = {
        name: figures
        for name, figures in metrics.comparisons.sites.get(site, {}).items()
        if name.startswith(own) and not name.endswith(_POOLED_ALONE)
    }
    if differences:
        place = ("comparisons", "sites", site)
        tables.append(differences_table(differences, place, "Paired differences at this site."))
    return tables


def _guard(run: Run) -> Section:
    guard = run.record.guard
    content = guard_table(guard) if guard else lacking("No site has given a verdict.")
    if run.extract is not None:
        content = tag("p", verdicts_markup(run))
    return Section("guard", "Helped or harmed", (content,))


def _flicker(run: Run, pictures: Pictures) -> Section:
    content = figure_markup(flicker_figure(run, pictures.profiles)) or [
        lacking("There are no volumes to compute slice means from.")
    ]
    return Section("flicker", "Flicker along depth", tuple(content))


def _mosaics(pictures: Pictures) -> Section:
    content = [shown for picture in pictures.mosaics for shown in figure_markup(picture)]
    content += [tag("p", note, class_="note") for note in pictures.notes]
    return Section("mosaics", "Held-out patients in three planes", tuple(content))


def _smoothing(run: Run) -> Section:
    title = "Does it only smooth?"
    figure = figure_markup(smoothing_figure(run))
    if run.metrics is None or not figure:
        return Section("smoothing", title, (lacking("The band figures were not measured."),))
    sentences = (tag("p", sentence, class_="finding") for sentence in smoothing(run.metrics))
    return Section("smoothing", title, (*sentences, *figure, smoothing_table(run.metrics.pooled)))
