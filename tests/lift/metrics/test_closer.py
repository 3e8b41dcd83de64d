"""A verdict on a second set of generated volumes: chance gives none, a planted difference does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from lift.metrics.classifier import classifier_auc
from lift.metrics.closer import FEWEST_JUDGED, LEAST_DIFFERENCE, closer_verdict
from lift.metrics.synthrad import Floats

Sets = tuple[Floats, Floats, Floats]
COLUMNS = 30
DRAWS = 15


def source(rng: np.random.Generator, rows: int) -> Floats:
    spread = np.linspace(0.05, 0.015, COLUMNS)
    drawn: Floats = rng.normal(size=(rows, COLUMNS))
    return 0.5 + spread * drawn


def stripes(amount: float) -> Floats:
    """Up and down along the columns."""
    signs: Floats = np.where(np.arange(COLUMNS) % 2, -1.0, 1.0)
    return amount * signs


def same(rng: np.random.Generator, rows: int) -> Sets:
    return source(rng, rows), source(rng, rows), source(rng, rows)


def striped(rng: np.random.Generator, rows: int) -> Sets:
    real, first, _ = same(rng, rows)
    return real, first, first + stripes(0.1)


def both_wrong(rng: np.random.Generator, rows: int) -> Sets:
    """Each told from real ones, and as well as the other."""
    real, first, second = same(rng, rows)
    return real, first + stripes(0.01), second + stripes(0.01)


@pytest.mark.parametrize(("rows", "draw"), [(FEWEST_JUDGED, 1), (18, 2)])
def test_a_planted_difference_is_seen_and_the_roles_decide_the_verdict(
    rows: int, draw: int
) -> None:
    real, first, second = striped(np.random.default_rng([9, draw]), rows)
    assert closer_verdict(real, first, second, seed=1) == "harmed"
    assert closer_verdict(real, second, first, seed=1) == "helped"


@pytest.mark.parametrize("make", [same, both_wrong])
def test_sets_of_one_source_are_told_apart_by_chance_alone(
    make: Callable[[np.random.Generator, int], Sets],
) -> None:
    """Most of them differ by more than the least difference; it is the swaps that hold back."""
    verdicts: Counter[str] = Counter()
    apart = 0
    for draw in range(DRAWS):
        real, first, second = make(np.random.default_rng([5, draw]), FEWEST_JUDGED)
        verdicts[closer_verdict(real, first, second, seed=draw)] += 1
        one, other = (
            classifier_auc(real, made, seed=draw, fewest=FEWEST_JUDGED) for made in (first, second)
        )
        assert one is not None
        assert other is not None
        apart += abs(one.value - other.value) >= LEAST_DIFFERENCE
    # four or more of 15 have a chance of less than one in three hundred at 4%
    assert verdicts["helped"] + verdicts["harmed"] <= 3
    assert apart > DRAWS / 2


def test_nine_patients_and_equal_sets_are_undecided() -> None:
    real, first, second = striped(np.random.default_rng(3), FEWEST_JUDGED - 1)
    assert closer_verdict(real, first, second, seed=1) == "undecided"
    real, first, _ = striped(np.random.default_rng(3), FEWEST_JUDGED)
    assert closer_verdict(real, first, first, seed=1) == "undecided"


def test_sets_that_are_both_always_told_are_undecided() -> None:
    real, first, second = same(np.random.default_rng(3), 20)
    assert closer_verdict(real, first + 1, second + 2, seed=1) == "undecided"


def test_one_seed_gives_one_verdict_and_sizes_must_agree() -> None:
    real, first, second = both_wrong(np.random.default_rng(8), 14)
    found = {closer_verdict(real, first, second, seed=4) for _ in range(2)}
    assert len(found) == 1
    with pytest.raises(ValueError, match="13"):
        closer_verdict(real, first[:13], second, seed=4)


def test_folds_of_ten_rows_always_hold_both_sides() -> None:
    """Rows that are each other's nearest go together, and ten are few."""
    for draw in range(200):
        rng = np.random.default_rng([6, draw])
        rows = rng.normal(size=(2 * FEWEST_JUDGED, 2))
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
        found = classifier_auc(
            rows[:FEWEST_JUDGED],
            rows[FEWEST_JUDGED:],
            seed=draw,
            distances=distances,
            repeats=1,
            fewest=FEWEST_JUDGED,
        )
        assert found is not None
        assert np.isfinite(found.value)
