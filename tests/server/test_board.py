"""The terminal's table of rounds, and the plain lines, tell who was clipped and left out."""

from __future__ import annotations

import io

from rich.console import Console

from lift.records.rounds import Fall, RoundRecord, clips_told, reason
from lift_server.watch.board import last_rounds
from lift_server.watch.rounds_file import Rounds
from lift_simulation.progress import Reporter

SITES = ("east", "north", "west")
CLIPPED = RoundRecord(
    round=1,
    asked=SITES,
    answered=SITES,
    counted=dict.fromkeys(SITES, 1 / 3),
    norm_ratios={"east": 1.0, "north": 12.5, "west": 0.9},
    clipped={"north": 0.16},
)
FELL = RoundRecord(
    round=2,
    asked=SITES,
    answered=SITES,
    fall=Fall(by_db=3.5, best_round=1, action="go-back", farthest="north", left_out="north"),
)
CALM = CLIPPED.model_copy(update={"clipped": {}})


def shown(*lines: RoundRecord) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(last_rounds(lines))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_table_names_who_was_clipped_and_who_was_left_out() -> None:
    text = shown(CLIPPED, FELL)
    assert "north (12.5 x the median norm)" in text
    assert "left out from now on: north" in text
    assert "clipped" not in shown(CALM)


def test_a_site_whose_round_was_given_up_reads_why() -> None:
    assert reason(FELL, "east") == "the run went back to an earlier mixer"
    assert reason(CALM, "east") == ""
    told = Rounds((FELL,)).tallies["east"].last_refusal
    assert told == "round 2: the run went back to an earlier mixer"


def test_a_simulation_says_both_in_plain_lines() -> None:
    console = Console(file=io.StringIO(), width=300)
    reporter = Reporter(console, {})
    for record in (CALM, CLIPPED, FELL):
        reporter.round_done(record)
    calm, clipped, *fell = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "clipped" not in calm
    assert clipped.endswith(f"clipped: {clips_told(CLIPPED)}")
    assert fell[-1].endswith(FELL.fall.sentence if FELL.fall else "-")
