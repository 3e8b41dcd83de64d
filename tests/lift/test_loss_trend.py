"""Was the loss still falling: a falling curve is seen, a flat one and noise are not."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest

from lift.records.loss_trend import FEWEST_ROUNDS, Losses, loss_trend, of_records
from lift.records.rounds import RoundRecord
from lift.report.findings import headline
from lift.report.read import read_run
from tests.lift.report.example_run import example_record, write_example_run, write_json


def curve(rounds: int, fall: float, noise: float = 0.0, seed: int = 0) -> list[Losses]:
    """Two sites whose loss falls by the same share each round, with some scatter."""
    draw = random.Random(seed)
    return [
        {
            site: level * math.exp(draw.gauss(-fall * index, noise))
            for site, level in (("a", 0.05), ("b", 0.4))
        }
        for index in range(rounds)
    ]


@pytest.mark.parametrize("rounds", [5, 6, 9, 40])
def test_a_falling_loss_is_seen_and_measured(rounds: int) -> None:
    found = loss_trend([curve(rounds, 0.05)])
    assert found is not None
    assert found["still_falling"]
    third = math.ceil(rounds / 3)
    assert found["fall_percent"] == pytest.approx(100 * (1 - math.exp(-0.05 * third)), abs=0.01)


@pytest.mark.parametrize("fall", [0.0, 0.001, -0.05])
def test_a_flat_or_rising_loss_is_not_called_falling(fall: float) -> None:
    found = loss_trend([curve(6, fall)])
    assert found is not None
    assert not found["still_falling"]


def test_scatter_is_seldom_taken_for_a_fall() -> None:
    found = [loss_trend([curve(9, 0.0, noise=0.1, seed=seed)]) for seed in range(400)]
    assert sum(one is not None and one["still_falling"] for one in found) < 40


def test_rounds_that_fell_early_and_then_stood_still_are_over() -> None:
    early = curve(3, 0.5)
    flat: list[Losses] = [dict(early[-1]) for _ in range(6)]
    found = loss_trend([[*early, *flat]])
    assert found == {"fall_percent": 0.0, "still_falling": False}


def test_nothing_is_said_of_few_rounds_or_of_losses_that_nobody_told() -> None:
    assert loss_trend([]) is None
    assert loss_trend([curve(FEWEST_ROUNDS - 1, 0.1)]) is None
    assert loss_trend([[{"a": None}] * 9]) is None
    # a site that came late has nothing to compare with
    assert loss_trend([[{}] * 6 + [{"a": 0.1}] * 3]) is None


def test_a_site_that_is_seldom_there_moves_nothing_by_its_level() -> None:
    rounds: list[Losses] = [dict(losses) for losses in curve(9, 0.0)]
    rounds[3] = {**rounds[3], "late": 9.0}
    rounds[8] = {**rounds[8], "late": 9.0}
    found = loss_trend([rounds])
    assert found is not None
    assert not found["still_falling"]


def test_folds_are_taken_together_and_statistics_are_no_round_of_training() -> None:
    records = [RoundRecord(round=0, kind="statistics")]
    records += [
        RoundRecord(round=index, kind="train", loss=dict(losses))
        for index, losses in enumerate(curve(6, 0.05), 1)
    ]
    assert of_records([records, records]) == of_records([records])
    assert of_records([records]) == loss_trend([curve(6, 0.05)])


@pytest.mark.parametrize("falling", [True, False])
def test_the_report_says_it_in_one_sentence_or_not_at_all(tmp_path: Path, falling: bool) -> None:
    folder = write_example_run(tmp_path / "run", patients=0)
    trend = {"fall_percent": 12.4, "still_falling": falling}
    write_json(folder / "run.json", {**example_record(), "loss_trend": trend})
    said = [re.sub(r"<[^>]+>", "", str(part)) for part in headline(read_run(folder))]
    found = [part for part in said if "still falling" in part]
    assert len(found) == falling
    assert all("12% below that of the middle third" in part for part in found)
    plain = write_example_run(tmp_path / "older", patients=0)
    assert not any("still falling" in str(part) for part in headline(read_run(plain)))
