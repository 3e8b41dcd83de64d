"""The federation as a table on a terminal: sites and last rounds, as `status` shows them too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lift.config.card import DataCard
from lift.inspection.card_view import show_card
from lift.records.rounds import Outcome, RoundRecord, clips_told, mean_of, outcome, reason
from lift_server.sites.certificates import Notice
from lift_server.watch.status_view import span, time_of

_LAST_ROUNDS: Final = 6
_LONGEST: Final = 60
_UNKNOWN: Final = "-"


def board(shown: Mapping[str, Any], rounds: Sequence[RoundRecord], now: datetime) -> RenderableType:
    """Sites and the last rounds.

    Args:
        shown: what `describe` gave, or its `rounds_done`, `epsilon` and `sites` alone.
        rounds: the lines of the run so far.
        now: the present time.
    """
    done = shown["rounds_done"]
    found: Mapping[str, Mapping[str, Any]] = shown["sites"]
    # a simulation, and a server that does not run, have no connections to show
    connected = any(site["online"] is not None for site in found.values())
    noisy = shown["epsilon"] is not None
    sites = Table(box=None, pad_edge=False, header_style="bold")
    for heading, right, there in (
        ("site", False, True),
        ("connection", False, connected),
        ("doing", False, True),
        ("last seen", True, connected),
        ("counted", True, True),
        ("loss", True, True),
        ("validation", True, True),
        ("epsilon", True, noisy),
        ("last refusal", False, True),
    ):
        if there:
            sites.add_column(heading, justify="right" if right else "left", overflow="fold")
    for name, site in found.items():
        sites.add_row(
            Text(name),
            *([_connection(site["online"])] if connected else []),
            Text(site["doing"]),
            *([_ago(site["last_contact"], now)] if connected else []),
            f"{site['counted']} of {done}",
            _figure(site["loss"], 4),
            _figure(site["validation_psnr_db"], 2, " dB"),
            *([_figure(site["epsilon"], 3)] if noisy else []),
            Text(_short(site["last_refusal"] or "")),
        )
    return Group(sites, *((Text(""), last_rounds(rounds)) if rounds else ()))


def last_rounds(rounds: Sequence[RoundRecord]) -> RenderableType:
    """The last six rounds: who counted, was clipped or not, and why, loss, seconds, bytes."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    with_epsilon = any(line.epsilon is not None for line in rounds)
    notes = any(line.clipped or line.fall for line in rounds[-_LAST_ROUNDS:])
    for heading in ("round", "counted", "loss", "validation", "seconds", "bytes a site"):
        table.add_column(heading, justify="right")
    if with_epsilon:
        table.add_column("epsilon", justify="right")
    table.add_column("not counted", overflow="fold")
    if notes:
        table.add_column("clipped, or gone back", overflow="fold")
    for line in rounds[-_LAST_ROUNDS:]:
        table.add_row(
            str(line.round) if line.kind == "train" else f"{line.round} ({line.kind})",
            f"{len(line.counted)} of {len(line.asked)}",
            _figure(mean_of(line.loss), 4),
            _figure(mean_of(line.validation_psnr_db), 2, " dB"),
            _figure(line.seconds, 1),
            f"{max(line.bytes.values()):,}" if line.bytes else _UNKNOWN,
            *((_figure(line.epsilon, 3),) if with_epsilon else ()),
            Text(_absent(line)),
            *(
                (Text(clips_told(line) if line.fall is None else line.fall.sentence),)
                if notes
                else ()
            ),
        )
    return table


def show(
    console: Console,
    name: str,
    shown: Mapping[str, Any],
    now: datetime,
    rounds: Sequence[RoundRecord] = (),
) -> None:
    """Print the result of `describe` as a table.

    Args:
        console: where to.
        name: of the federation.
        shown: what `describe` gave.
        now: the present time.
        rounds: the lines of the run so far.
    """
    console.print(f"{name}: {shown['summary']}", soft_wrap=True, markup=False, highlight=False)
    console.print(board(shown, rounds, now))
    for card in shown["data_cards"].values():
        show_card(DataCard.model_validate_json(json.dumps(card)), console)
    for notice in shown["certificates"]:
        console.print(f"{notice['level']}: {Notice(**notice)}", soft_wrap=True, markup=False)


@contextmanager
def live_board(
    console: Console, look: Callable[[datetime], tuple[str, RenderableType]]
) -> Iterator[None]:
    """Show a board that updates itself inside the block, on a terminal only.

    Args:
        console: where to; lines that it prints meanwhile stand above the board.
        look: gives one line and the board at a moment.
    """
    if not console.is_terminal:
        yield
        return

    def render() -> RenderableType:
        now = datetime.now(UTC)
        try:
            line, shown = look(now)
        except Exception as error:  # noqa: BLE001 RUF100  # a display must never end what it shows
            return Text(f"no board: {type(error).__name__}")
        return Group(Text(""), Text(line, style="bold"), shown)

    with Live(console=console, get_renderable=render, refresh_per_second=2, transient=True):
        yield


def _absent(line: RoundRecord) -> str:
    absent = [
        f"{site} ({reason(line, site)})"
        for site in line.asked
        if outcome(line, site) is not Outcome.COUNTED
    ]
    return _short("; ".join(absent), 2 * _LONGEST)


def _connection(online: bool | None) -> Text:
    """A word with a sign, so that colour is not needed."""
    if online is None:
        return Text(_UNKNOWN)
    return Text("● online", style="green") if online else Text("○ offline", style="red")


def _figure(value: float | None, decimals: int, unit: str = "") -> str:
    return _UNKNOWN if value is None else f"{value:.{decimals}f}{unit}"


def _short(text: str, longest: int = _LONGEST) -> str:
    """One line of a site's words: whatever stands in them."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _ago(text: str | None, now: datetime) -> str:
    time = time_of(text)
    return _UNKNOWN if time is None else f"{span((now - time).total_seconds())} ago"
