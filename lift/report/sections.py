"""Shared parts of all report pages: the shell, and the sections of every task."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from pydantic import JsonValue

from lift.markup import Markup, foreign, join, table, tag
from lift.records.extract import FEWEST_TOLD, PUBLIC_ROUNDS_FILE
from lift.records.metrics import METRICS_FILE
from lift.records.rounds import ROUNDS_FILE
from lift.records.run import RUN_FILE
from lift.report.clips import clips_content
from lift.report.figures import Picture, curves_figure, seconds_figure
from lift.report.overviews import (
    MOST_PANELS,
    mean_loss_figure,
    shared_curves_figure,
    taking_part,
    timeline_figure,
)
from lift.report.public_rounds import public_rounds_table
from lift.report.read import Run
from lift.report.record_tables import rounds_table, seconds_table, stretches_table

# the page may show its own pictures and styles; no script runs and nothing is fetched
_CONTENT_POLICY: Final = "img-src data:; style-src 'unsafe-inline'"


_MOST_COLUMNS: Final = 12
_MOST_ROWS: Final = 120


@dataclass(frozen=True)
class Section:
    """One section of a page."""

    anchor: str
    title: str
    content: tuple[str, ...]


def shell(
    run: Run,
    opening: Iterable[Markup],
    sections: Sequence[Section],
    *,
    policy: str = _CONTENT_POLICY,
    more_style: str = "",
) -> Markup:
    """Return the whole page: head, opening with links, sections.

    Args:
        run: the run.
        opening: the content above the sections.
        sections: in order.
        policy: what the page may do, as a content security policy; all else is forbidden.
        more_style: additional style sheet for the sections.
    """
    links = (tag("a", section.title, href=f"#{section.anchor}") for section in sections)
    style = (files("lift.report") / "report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=f"default-src 'none'; {policy}"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{run.record.name} · LiFT run report"),
        tag("style", Markup(style + more_style)),
    )
    body = tag(
        "body",
        tag("header", *opening, tag("nav", *links, aria_label="Sections")),
        tag("main", *(section_markup(section) for section in sections)),
    )
    return join(["", Markup("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n"])


def section_markup(section: Section) -> Markup:
    """One section with its heading."""
    return tag("section", tag("h2", section.title), *section.content, id=section.anchor)


def data_banner(run: Run) -> Markup:
    """Return the description of the data. Phantom data are marked in large letters."""
    record = run.record
    if record.phantom:
        return tag(
            "div",
            tag("b", "PHANTOM"),
            tag(
                "p",
                "Every image and every number on this page comes from volumes made by a "
                "program. They show how the method behaves on such volumes, and say nothing "
                "about patients. ",
                foreign(record.data_statement),
            ),
            class_="banner",
            role="note",
        )
    return tag("p", tag("b", "Data: "), foreign(record.data_statement or "not stated"))


def privacy_markup(run: Run) -> Markup:
    """Return who adds which noise."""
    mode = run.setting("privacy", "mode")
    if mode == "none":
        return Markup("none: no noise was added to what the sites sent")
    told = run.record.privacy
    text = f"{mode}: {told.get('statement', 'not stated')}"
    if "epsilon" in told:
        text += (
            f"; epsilon {told['epsilon']} at delta {told['delta']}, unit {told['unit']}, add or "
            f"remove one, by {str(told['accountant']).upper()}"
        )
    if "epsilon_of_a_patient_in_two_hospitals" in told:
        text += (
            f"; for a patient in two hospitals {told['epsilon_of_a_patient_in_two_hospitals']}. "
            "The rows local_only, local_curves, local_steps and centralised, and plain networks "
            "that are not named private, are trained without noise, for comparison"
        )
    return foreign(text)


def curves_section(run: Run) -> Section:
    """Return loss and validation figures by round; for a release, only the mean loss."""
    if run.extract is not None:
        content = figure_markup(mean_loss_figure(run.extract, run))
        told = f"{PUBLIC_ROUNDS_FILE} holds no loss: fewer than {FEWEST_TOLD} sites reported one."
        return Section("curves", "Loss by round", tuple(content or [lacking(told)]))
    sites = taking_part(run)
    picture = curves_figure(run) if len(sites) <= MOST_PANELS else shared_curves_figure(run, sites)
    content = figure_markup(picture) or [
        lacking(
            f"{ROUNDS_FILE} holds neither loss nor validation PSNR. Under differential privacy, no "
            "site sends them."
        )
    ]
    return Section("curves", "Loss and validation by round", tuple(content))


def rounds_section(run: Run) -> Section:
    """Return who was asked, answered and counted, as a picture and table; numbers for a release."""
    if run.extract is not None:
        return Section("rounds", "Rounds", (public_rounds_table(run.extract),))
    content = figure_markup(timeline_figure(run))
    if not run.rounds:
        content.append(lacking(f"There is no {ROUNDS_FILE}."))
    elif len(taking_part(run)) > _MOST_COLUMNS or len(run.rounds) > _MOST_ROWS:
        content.append(stretches_table(run))
    else:
        content.append(rounds_table(run))
    content += clips_content(run)
    if run.last_line_lost:
        content.append(lacking(f"The last line of {ROUNDS_FILE} is cut off and was ignored."))
    return Section("rounds", "Rounds", tuple(content))


def seconds_section(run: Run) -> Section:
    """Return the time that each stage took."""
    figure = figure_markup(seconds_figure(run))
    content = [*figure, seconds_table(run)] if figure else [lacking("No times were recorded.")]
    return Section("seconds", "Seconds against the budget", tuple(content))


def reproducibility_section(run: Run) -> Section:
    """Command, digests, versions, plan."""
    record = run.record
    network = record.generator.get("network")
    digests = [
        ["plan, SHA-256", tag("td", tag("code", foreign(record.plan_digest or "not recorded")))],
        [
            "generator, SHA-256",
            tag("td", tag("code", foreign(json_text(record.generator.get("fingerprint"))))),
        ],
        ["network", tag("td", tag("code", foreign(json_text(network))))],
    ]
    if record.mixer_digest:
        mixer = tag("td", tag("code", foreign(record.mixer_digest)))
        digests.insert(1, ["mixer, SHA-256", mixer])
    versions = [
        [foreign(package), tag("td", tag("code", foreign(version)))]
        for package, version in sorted(record.versions.items())
    ]
    plan = json.dumps(record.plan, indent=2, sort_keys=True, ensure_ascii=False)
    rounds = ROUNDS_FILE if run.extract is None else PUBLIC_ROUNDS_FILE
    volumes = " and synthesis/" if run.extract is None else ""
    sources = f"Written from {RUN_FILE}, {rounds}, {METRICS_FILE}{volumes}."
    return Section(
        "reproducibility",
        "How to reproduce this run",
        (
            *_command(run),
            table("What determines the result.", ["what", "value"], digests, kind="words"),
            table("Package versions.", ["package", "version"], versions, kind="words")
            if versions
            else lacking("No package versions were recorded."),
            tag("details", tag("summary", "The whole plan"), tag("pre", foreign(plan))),
            tag("p", sources, class_="note"),
        ),
    )


def _command(run: Run) -> tuple[Markup, ...]:
    if run.extract is not None:
        return ()
    command = foreign(run.record.command or "not recorded")
    return tag("p", "The command:"), tag("pre", command, class_="command")


def figure_markup(picture: Picture | None) -> list[Markup]:
    """The picture on a white card with its caption, or nothing."""
    if picture is None:
        return []
    data = base64.b64encode(picture.content).decode()
    image = tag("img", src=f"data:image/{picture.kind};base64,{data}", alt=picture.alt)
    card = tag("div", image, class_="card", tabindex="0")
    return [tag("figure", card, tag("figcaption", picture.caption))]


def lacking(sentence: str) -> Markup:
    """Return a note on what the run lacks."""
    return tag("p", sentence, class_="note")


def plain_setting(run: Run, section: str, key: str) -> Markup:
    """One setting of the plan."""
    return foreign(json_text(run.setting(section, key)))


def listing(value: JsonValue) -> Markup:
    """A list in one line."""
    return foreign(
        " + ".join(map(json_text, value)) if isinstance(value, list) else json_text(value)
    )


def json_text(value: JsonValue) -> str:
    """A JSON value for reading: text as it is, anything else as JSON."""
    if value is None or value == "":
        return "not recorded"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
