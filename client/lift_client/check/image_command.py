"""`lift-client check --images` and `--share-card`: look, show, ask, share."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import click
from rich.console import Console

from lift.config.card import DataCard
from lift.config.site import SiteConfig
from lift.errors import LiftError
from lift.inspection.card_view import show_card
from lift_client.check import data_card, image_view
from lift_client.check.image_view import PIPE_WIDTH
from lift_client.check.verdict import Verdict, problem
from lift_client.enrolment import read_kit


@dataclass(frozen=True)
class Looked:
    """The result of the image checks.

    Attributes:
        verdict: one line on all volumes.
        patients: each patient's report as JSON.
        card: what they come to; None when nothing could be looked at.
    """

    verdict: Verdict
    patients: list[object]
    card: DataCard | None


def look(config: SiteConfig, *, as_json: bool) -> Looked:
    """Read and check every patient. Print results and progress unless JSON is requested.

    Args:
        config: the site's settings.
        as_json: write nothing on stdout.
    """
    try:
        kit = read_kit(config.kit, site=config.name)
        task = kit.task
        channels = [*task.source, task.target]
        report = image_view.look(config, channels, kit.grid)
    except LiftError as error:
        return Looked(problem("images", error), [], None)
    if not as_json:
        image_view.show(report)
    patients: list[object] = [
        {"verdict": patient.verdict, **patient.model_dump(mode="json")}
        for patient in report.patients
    ]
    card = data_card.make_card(
        report.patients,
        channels,
        site=config.name,
        floor=config.card.floor,
        day=data_card.today(),
    )
    return Looked(image_view.verdict(report), patients, card)


def offer(config: SiteConfig, card: DataCard, *, share_it: bool, yes: bool, as_json: bool) -> None:
    """Show the card and, when the operator agrees, share it.

    Args:
        config: the site's settings.
        card: all that would leave.
        share_it: whether it was asked for.
        yes: the agreement, given beforehand.
        as_json: write nothing on stdout.

    Raises:
        RecordError: the journal is damaged; nothing is shared.
    """
    if not as_json:
        show_card(card, Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False))
    if not share_it:
        sys.stderr.write("the data card stays here; --share-card shares it with the coordinator\n")
        return
    if not yes and not click.confirm("Share exactly this?", default=False, err=True):
        sys.stderr.write("not shared\n")
        return
    kept = data_card.share(card, config, read_kit(config.kit, site=config.name).address)
    sys.stderr.write(
        f"shared: the first answer of a run carries it, and {kept} may be handed to the "
        "coordinator before. The journal records it. Remove the file to stop sharing.\n"
    )
