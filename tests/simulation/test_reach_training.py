"""When a training counts as flat, what its average forgets, and how a round is put together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch

from lift_benchmarks.reach.config import ReachConfig
from lift_simulation.plain.curve import Point, Values, averaged, is_plateau, train

GAIN_DB, FEWEST = 0.05, 300


def _curve(psnr_db: Callable[[int], float], steps: int = 1200) -> list[Point]:
    return [Point(step, psnr_db(step)) for step in range(100, steps + 1, 100)]


def _stops_at(curve: Sequence[Point]) -> int | None:
    for count in range(1, len(curve) + 1):
        if is_plateau(curve[:count], GAIN_DB, FEWEST):
            return curve[count - 1].steps
    return None


def test_a_curve_that_bends_is_a_plateau_once_it_is_flat() -> None:
    stopped = _stops_at(_curve(lambda step: 20 - 2 * math.exp(-step / 100)))
    assert stopped is not None
    assert 400 <= stopped <= 600
    # what is given up by stopping there is small
    assert 2 * math.exp(-stopped / 100) < GAIN_DB


def test_a_curve_that_rises_never_is() -> None:
    # negative control: between two checkpoints less than the gain, over a third more
    assert _stops_at(_curve(lambda step: 18 + 0.04 * step / 100 + 0.01 * step / 100)) is None
    assert _stops_at(_curve(lambda step: 15 + math.log2(step))) is None


def test_a_curve_that_falls_is_a_plateau() -> None:
    assert _stops_at(_curve(lambda step: 20 - step / 1000)) == FEWEST


def test_few_steps_or_points_say_nothing() -> None:
    assert not is_plateau([], GAIN_DB, FEWEST)
    assert not is_plateau([Point(900, 20.0)], GAIN_DB, FEWEST)
    flat = [Point(100, 20.0), Point(200, 20.0)]
    assert not is_plateau(flat, GAIN_DB, FEWEST)
    assert is_plateau(flat, GAIN_DB, 200)


def test_the_average_is_of_late_states_at_any_length() -> None:
    for states in (5, 50, 500):
        average: Values | None = None
        weights = torch.eye(states, dtype=torch.float64)
        for index in range(1, states + 1):
            average = averaged(average, {"w": weights[index - 1]}, index, 7.0)
        assert average is not None
        found = average["w"]
        assert float(found.sum()) == pytest.approx(1.0)
        assert (found[1:] >= found[:-1]).all()
        middle = float((found * torch.arange(1, states + 1)).sum()) / states
        assert 0.85 < middle < 0.95 + 0.2 / states


def _settings(**changes: object) -> ReachConfig:
    data: dict[str, object] = {
        "threads": 1,
        "window": [6, 32, 32],
        "patients_per_step": 1,
        "pooled_steps": 10,
        "local_steps": 5,
        "checkpoint_steps": 20,
        "fewest_share": 0.25,
        "plateau_db": GAIN_DB,
        "sharpness": 7.0,
        "models": [{"kind": "unet", "width": 2, "learning_rate": 0.01, "most_steps": 10}],
    }
    return ReachConfig.from_data(data | changes, "test")


def _trained(psnr_db: Callable[[float], float], *, keep_best: bool, most: int) -> tuple[int, str]:
    """Kept steps and reason, where the numbers are the steps taken."""
    found = train(
        lambda index, values: ({"w": values["w"] + 10}, 10),
        {"w": torch.zeros(1)},
        lambda values: psnr_db(float(values["w"])),
        _settings(),
        most_steps=most,
        keep_best=keep_best,
    )
    assert all(b.steps > a.steps for a, b in itertools.pairwise(found.curve))
    return found.kept, found.stopped


def test_training_stops_by_plateau_or_budget_and_keeps_the_best() -> None:
    assert _trained(lambda at: at / 100, keep_best=True, most=130) == (130, "budget")
    assert _trained(lambda _: 20.0, keep_best=False, most=160) == (40, "plateau")
    # without validation patients nothing says that an earlier state is better
    kept, stopped = _trained(lambda at: -abs(at - 20), keep_best=True, most=160)
    assert stopped == "plateau"
    assert kept == 20
    kept, stopped = _trained(lambda at: -abs(at - 20), keep_best=False, most=160)
    assert (kept, stopped) == (40, "plateau")
