"""A simulation repeats who took part in a recorded run, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.tiny_run import Outcome, TinyRun, check_refusal

ROUNDS = 3
AWAY = 2


@pytest.fixture(scope="module")
def whole(tiny: TinyRun) -> Path:
    """A run in which everybody counted, always."""
    done = _simulate(tiny, "whole")
    assert done.code == 0, done
    return tiny.folder / "participation-whole"


@pytest.fixture(scope="module")
def repeated(whole: Path, tiny: TinyRun) -> Path:
    """The same run, but for one site that stayed away from one round."""
    record = _record(tiny, whole, "away", away=AWAY)
    done = _simulate(tiny, "repeated", participation=str(record))
    assert done.code == 0, done
    return tiny.folder / "participation-repeated"


def test_a_record_without_absences_gives_the_same_mixer(whole: Path, tiny: TinyRun) -> None:
    done = _simulate(tiny, "same", participation=str(whole / "rounds.jsonl"))

    assert done.code == 0, done
    same = (tiny.folder / "participation-same" / "mixer.safetensors").read_bytes()
    assert same == (whole / "mixer.safetensors").read_bytes()


def test_who_was_away_is_away_again(repeated: Path) -> None:
    records = _read(repeated / "rounds.jsonl")

    for record in records:
        missing = {"west": "no_answer"} if record["round"] == AWAY else {}
        assert record["refused"] == missing
        assert set(record["counted"]) == {"east", "west"} - set(missing)


def test_the_rounds_before_are_untouched_and_those_after_are_not(
    whole: Path, repeated: Path
) -> None:
    for number in range(ROUNDS + 1):
        name = f"checkpoints/round-{number:04d}.safetensors"
        equal = (repeated / name).read_bytes() == (whole / name).read_bytes()
        assert equal == (number < AWAY)


def test_a_changed_record_does_not_resume_the_run_of_another(whole: Path, tiny: TinyRun) -> None:
    record = _record(tiny, whole, "changing", away=1)
    assert _simulate(tiny, "changing", participation=str(record)).code == 0
    _record(tiny, whole, "changing", away=3)

    refused = _simulate(tiny, "changing", participation=str(record))

    check_refusal(refused, 3, names=["other settings"])


def test_a_record_of_other_rounds_or_sites_is_refused(whole: Path, tiny: TinyRun) -> None:
    lines = (whole / "rounds.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    short = tiny.folder / "short.jsonl"
    short.write_text("".join(lines[:-1]), encoding="utf-8")
    foreign = tiny.folder / "foreign.jsonl"
    foreign.write_text("".join(lines).replace("west", "south"), encoding="utf-8")

    check_refusal(_simulate(tiny, "short", participation=str(short)), 2, names=["0 to 3"])
    check_refusal(_simulate(tiny, "foreign", participation=str(foreign)), 2, names=["south"])
    check_refusal(
        _simulate(tiny, "folds", participation=str(short), leave_one_out=True),
        2,
        names=["leave_one_out"],
    )


def _simulate(tiny: TinyRun, out: str, **changes: object) -> Outcome:
    """Into a folder of this module's own: the tiny run is shared by all tests."""
    federation = {"rounds": ROUNDS, "quorum_sites": 1, "quorum_patients": 0.0}
    return tiny.simulate(
        f"participation-{out}", plan__federation=federation, synthesis_patients=0, **changes
    )


def _record(tiny: TinyRun, whole: Path, name: str, *, away: int) -> Path:
    """A copy of a record in which west did not answer in one round."""
    records = _read(whole / "rounds.jsonl")
    del records[away]["counted"]["west"]
    records[away]["refused"]["west"] = "no_answer"
    path = tiny.folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
