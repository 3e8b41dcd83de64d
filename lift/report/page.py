"""The run report: one HTML file that needs nothing else, from what a run folder holds."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from lift.files import write_atomically
from lift.report.figures import (
    Picture,
    curves_figure,
    differences_figure,
    flicker_figure,
    house_style,
    seconds_figure,
    smoothing_figure,
)
from lift.report.findings import headline, smoothing
from lift.report.markup import Markup, foreign, join, number, pointer, table, tag
from lift.report.patients import Pictures, held_out_pictures
from lift.report.read import (
    METRICS_FILE,
    ROUNDS_FILE,
    RUN_FILE,
    Run,
    read_run,
)
from lift.report.tables import (
    cross_site_table,
    differences_table,
    guard_table,
    methods_table,
    rounds_table,
    seconds_table,
    sites_table,
    smoothing_table,
)
from lift.report.terms import METHODS, METRICS

REPORT_FILE: Final = "report.html"
_MAIN_METRICS: Final = (
    "psnr_db",
    "ssim",
    "mae",
    "dz_mae",
    "dz_corr",
    "hf_error",
    "hf_coherence",
    "hf_ratio",
    "slice_gain",
)
# the page may show its own pictures and styles; no script runs and nothing is fetched
_CONTENT_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class _Section:
    anchor: str
    title: str
    content: tuple[str, ...]


def write_report(run: Path) -> Path:
    """`run/report.html`: everything that the run folder knows, in one file, written atomically.

    Guarantee: reads files of `run` only; the same files (and package versions) give the same
    bytes; the page is at most 10 MB, runs no script and fetches nothing; every number in it
    carries its file, its place in it and all its digits. What the folder lacks is said.

    Raises:
        DataError: `run.json` is missing, or a record is damaged.
        VolumeError: a volume under `synthesis/` is damaged or does not fit its neighbours.
    """
    record = read_run(run)
    with house_style():
        page = _page(record, held_out_pictures(record))
    path = run / REPORT_FILE
    write_atomically(path, page.encode())
    return path


def _page(run: Run, pictures: Pictures) -> Markup:
    sections = (
        _trained(run),
        _pooled(run),
        _by_site(run),
        _guard(run),
        _curves(run),
        _rounds(run),
        _flicker(run, pictures),
        _mosaics(pictures),
        _smoothing(run),
        _seconds(run),
        _reproducibility(run),
    )
    links = (tag("a", section.title, href=f"#{section.anchor}") for section in sections)
    style = (files("lift.report") / "report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_CONTENT_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{run.record.name} · LiFT run report"),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("header", *_opening(run), tag("nav", *links, aria_label="Sections")),
        tag("main", *(_section(section) for section in sections)),
    )
    return join(["", Markup("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n"])


def _opening(run: Run) -> Iterable[Markup]:
    record = run.record
    first, *others = headline(run)
    yield tag("p", "LiFT run report · ", foreign(record.kind or "run"), class_="kicker")
    yield tag("h1", foreign(record.name))
    yield tag("p", first, class_="headline")
    for paragraph in others:
        yield tag("p", paragraph, class_="finding")
    if record.phantom:
        yield tag(
            "div",
            tag("b", "PHANTOM"),
            tag(
                "p",
                "Every image and every number on this page comes from volumes made by a "
                "program. They show how the method behaves on such volumes; they say nothing "
                "about patients. ",
                foreign(record.data_statement),
            ),
            class_="banner",
            role="note",
        )
    else:
        yield tag("p", tag("b", "Data: "), foreign(record.data_statement or "not stated"))


def _section(section: _Section) -> Markup:
    return tag("section", tag("h2", section.title), *section.content, id=section.anchor)


def _trained(run: Run) -> _Section:
    record = run.record
    training = record.generator.get("training_data")
    licence = record.generator.get("licence")
    facts: list[tuple[str, Markup]] = [
        (
            "task",
            join([_listing(run.setting("task", "source")), " → ", _plain(run, "task", "target")]),
        ),
        ("slice plane", join([run.plane, "; depth runs across it"])),
    ]
    if record.mixer is not None:
        count = number(record.mixer.parameters, pointer(RUN_FILE, "mixer", "parameters"), 0)
        facts.append(("mixer", join([foreign(record.mixer.kind), ", ", count, " trained numbers"])))
    if record.update_bytes is not None:
        size = number(record.update_bytes, pointer(RUN_FILE, "update_bytes"), 0)
        facts.append(("one update", join([size, " bytes"])))
    facts += [
        (
            "training",
            join(
                [
                    _plain(run, "federation", "rounds"),
                    " rounds of ",
                    _plain(run, "training", "steps"),
                    " local steps",
                ]
            ),
        ),
        ("privacy", _privacy(run)),
        (
            "generator",
            join(
                [
                    "frozen, never trained here; made from: ",
                    foreign(_text(training)),
                    "; licence: ",
                    foreign(_text(licence)),
                ]
            ),
        ),
        (
            "time",
            join(
                [
                    "started ",
                    foreign(record.started or "not recorded"),
                    ", finished " if record.finished else ", not finished",
                    foreign(record.finished or ""),
                ]
            ),
        ),
    ]
    listed = [join([tag("dt", name), tag("dd", value)]) for name, value in facts]
    return _Section(
        "trained", "What was trained, and by whom", (tag("dl", *listed), sites_table(run))
    )


def _privacy(run: Run) -> Markup:
    mode = run.setting("privacy", "mode")
    if mode == "none":
        return Markup("none: no noise was added to what the sites sent")
    return foreign(_text(mode))


def _pooled(run: Run) -> _Section:
    title = "All sites together"
    if run.metrics is None or not run.metrics.pooled:
        return _Section("pooled", title, (_lacking("metrics.json holds no pooled figures."),))
    metrics = run.metrics
    caption = "Test patients of all sites, each counting once."
    content = [methods_table(metrics.pooled, ("pooled",), caption, only=_MAIN_METRICS)]
    if metrics.comparisons.pooled:
        content.append(
            differences_table(
                metrics.comparisons.pooled,
                ("comparisons", "pooled"),
                "Paired differences, all sites.",
            )
        )
    content += _figure(differences_figure(run))
    present = {metric for figures in metrics.pooled.values() for metric in figures}
    if further := present - set(_MAIN_METRICS):
        content.append(
            methods_table(metrics.pooled, ("pooled",), "Further figures.", only=tuple(further))
        )
    content.append(_meanings())
    if metrics.second_phantom:
        content.append(tag("h3", "On a phantom without slice corruption"))
        caption = "A second phantom, whose slices were not corrupted."
        content.append(
            methods_table(metrics.second_phantom, ("second_phantom",), caption, only=_MAIN_METRICS)
        )
    elif run.record.phantom:
        content.append(_lacking("This run has no second phantom without slice corruption."))
    return _Section("pooled", title, tuple(content))


def _meanings() -> Markup:
    terms = [(term.label, term.meaning) for term in METHODS.values()]
    terms += [(term.label, term.meaning) for term in METRICS.values()]
    listed = [join([tag("dt", label), tag("dd", meaning)]) for label, meaning in terms]
    return tag(
        "details",
        tag("summary", "What the rows and columns mean"),
        tag("p", "↑: higher is better; ↓: lower is better; → 1: the target's own value is 1."),
        tag("dl", *listed),
    )


def _by_site(run: Run) -> _Section:
    title = "Site by site"
    if run.metrics is None or not run.metrics.sites:
        return _Section("sites", title, (_lacking("metrics.json holds no figures by site."),))
    metrics = run.metrics
    content: list[Markup] = []
    for site in run.sites:
        content.append(tag("h3", foreign(site)))
        if site not in metrics.sites:
            content.append(_lacking("No test patient of this site was measured."))
            continue
        figures = metrics.sites[site].methods
        content.append(
            methods_table(
                figures,
                ("sites", site, "methods"),
                "This site's test patients.",
                only=_MAIN_METRICS,
            )
        )
        if differences := metrics.comparisons.sites.get(site):
            path = ("comparisons", "sites", site)
            content.append(differences_table(differences, path, "Paired differences at this site."))
    if metrics.cross_site:
        content.append(tag("h3", "One site's mixer at another site"))
        content.append(cross_site_table(run, metrics.cross_site))
    return _Section("sites", title, tuple(content))


def _guard(run: Run) -> _Section:
    guard = run.record.guard
    content = guard_table(guard) if guard else _lacking("No site has given a verdict.")
    return _Section("guard", "Helped or harmed", (content,))


def _curves(run: Run) -> _Section:
    content = _figure(curves_figure(run)) or [
        _lacking(f"{ROUNDS_FILE} holds neither loss nor validation PSNR.")
    ]
    return _Section("curves", "Loss and validation by round", tuple(content))


def _rounds(run: Run) -> _Section:
    content = [rounds_table(run) if run.rounds else _lacking(f"There is no {ROUNDS_FILE}.")]
    if run.last_line_lost:
        content.append(_lacking(f"The last line of {ROUNDS_FILE} is cut off and was passed over."))
    return _Section("rounds", "Rounds", tuple(content))


def _flicker(run: Run, pictures: Pictures) -> _Section:
    content = _figure(flicker_figure(run, pictures.profiles)) or [
        _lacking("There are no volumes to take slice means from.")
    ]
    return _Section("flicker", "Flicker along depth", tuple(content))


def _mosaics(pictures: Pictures) -> _Section:
    content = [shown for picture in pictures.mosaics for shown in _figure(picture)]
    content += [tag("p", note, class_="note") for note in pictures.notes]
    return _Section("mosaics", "Held-out patients in three planes", tuple(content))


def _smoothing(run: Run) -> _Section:
    title = "Does it only smooth?"
    figure = _figure(smoothing_figure(run))
    if run.metrics is None or not figure:
        return _Section("smoothing", title, (_lacking("The band figures were not measured."),))
    sentences = (tag("p", sentence, class_="finding") for sentence in smoothing(run.metrics))
    return _Section("smoothing", title, (*sentences, *figure, smoothing_table(run.metrics.pooled)))


def _seconds(run: Run) -> _Section:
    figure = _figure(seconds_figure(run))
    content = [*figure, seconds_table(run)] if figure else [_lacking("No times were recorded.")]
    return _Section("seconds", "Seconds against the budget", tuple(content))


def _reproducibility(run: Run) -> _Section:
    record = run.record
    network = record.generator.get("network")
    digests = [
        ["plan, SHA-256", tag("td", tag("code", foreign(record.plan_digest or "not recorded")))],
        [
            "generator, SHA-256",
            tag("td", tag("code", foreign(_text(record.generator.get("fingerprint"))))),
        ],
        ["network", tag("td", tag("code", foreign(_text(network))))],
    ]
    versions = [
        [foreign(package), tag("td", tag("code", foreign(version)))]
        for package, version in sorted(record.versions.items())
    ]
    plan = json.dumps(record.plan, indent=2, sort_keys=True, ensure_ascii=False)
    sources = f"Written from {RUN_FILE}, {ROUNDS_FILE}, {METRICS_FILE} and synthesis/."
    return _Section(
        "reproducibility",
        "To do it again",
        (
            tag("p", "The command:"),
            tag("pre", foreign(record.command or "not recorded"), class_="command"),
            table("What decides the result.", ["what", "value"], digests, kind="words"),
            table("Package versions.", ["package", "version"], versions, kind="words")
            if versions
            else _lacking("No package versions were recorded."),
            tag("details", tag("summary", "The whole plan"), tag("pre", foreign(plan))),
            tag("p", sources, class_="note"),
        ),
    )


def _figure(picture: Picture | None) -> list[Markup]:
    """The picture on a white card with its caption, or nothing."""
    if picture is None:
        return []
    data = base64.b64encode(picture.content).decode()
    image = tag("img", src=f"data:image/{picture.kind};base64,{data}", alt=picture.alt)
    card = tag("div", image, class_="card", tabindex="0")
    return [tag("figure", card, tag("figcaption", picture.caption))]


def _lacking(sentence: str) -> Markup:
    return tag("p", sentence, class_="note")


def _plain(run: Run, section: str, key: str) -> Markup:
    return foreign(_text(run.setting(section, key)))


def _listing(value: JsonValue) -> Markup:
    return foreign(" + ".join(map(_text, value)) if isinstance(value, list) else _text(value))


def _text(value: JsonValue) -> str:
    """A JSON value for reading: text as it is, anything else as JSON."""
    if value is None or value == "":
        return "not recorded"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
