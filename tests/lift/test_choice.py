"""What a site uses: never more than its own patients speak for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift.tasks.paired.choice import Choice, choose
from lift.tasks.paired.methods import blended, no_mixer
from tests.lift.small_world import features_of, small_generator, small_prepared

PSNR = st.floats(10, 40)


def method(figures: dict[str, list[float]]) -> str:
    return choose(figures, otherwise="mixer").method


def test_the_mixer_is_taken_where_nothing_speaks_against_it() -> None:
    figures = {"no_mixer": [20.0, 21.0, 19.0], "mixer": [22.0, 23.1, 20.9]}
    found = choose(figures, otherwise="mixer")
    assert found == Choice("mixer", {"no_mixer": 20.0, "mixer": 22.0}, 3)


@pytest.mark.parametrize("worse", [0.02, 0.5, 3.0])
def test_what_harms_in_the_mean_is_left_for_what_is_simpler(worse: float) -> None:
    # one of the two patients gains: that does not save it
    figures = {"no_mixer": [20.0, 21.0], "mixer": [20.5, 20.5 - 2 * worse]}
    assert method(figures) == "no_mixer"


def test_what_costs_as_much_is_taken_only_beyond_its_standard_error() -> None:
    # mean gain .5, standard error 2.5
    uncertain = {"mixer": [20.0, 20.0], "local": [23.0, 18.0]}
    assert method(uncertain) == "mixer"
    certain = {"mixer": [20.0, 20.0], "local": [20.6, 20.4]}
    assert method(certain) == "local"


def test_of_those_that_are_better_the_best_is_taken() -> None:
    figures = {
        "no_mixer": [18.3, 18.4, 18.3],
        "curves": [22.0, 22.9, 21.9],
        "mixer": [18.1, 18.2, 18.0],
        "local": [20.0, 20.1, 20.0],
    }
    assert method(figures) == "curves"


@pytest.mark.parametrize("patients", [0, 1])
def test_without_patients_to_compare_it_is_what_is_said(patients: int) -> None:
    figures = {"no_mixer": [20.0] * patients, "mixer": [30.0] * patients}
    assert choose(figures, otherwise="c") == Choice("c", {}, patients)
    assert choose({}, otherwise="c") == Choice("c", {}, 0)


@given(st.lists(st.tuples(PSNR, PSNR, PSNR), min_size=2, max_size=6))
def test_nothing_simpler_is_better_and_nothing_else_clearly_so(
    rows: list[tuple[float, float, float]],
) -> None:
    table = np.array(rows).T
    names = ("simple", "mixer", "costly")
    figures = {name: list(row) for name, row in zip(names, table, strict=True)}
    found = np.array(figures[method(figures)])
    # never worse than the mixer itself on these patients, nor than what is simpler
    assert found.mean() >= max(table[0].mean(), table[1].mean()) - 1e-9
    gain = table[2] - found
    if method(figures) == "mixer":
        assert gain.mean() <= gain.std(ddof=1) / np.sqrt(len(rows)) + 1e-9


def regret(true_gain: float, patients: int, spread: float = 0.5) -> float:
    """Mean true PSNR that is missed, over many sites whose mixer gains or loses so much."""
    rng = np.random.default_rng(5)
    missed = []
    for _ in range(400):
        gains = rng.normal(true_gain, spread, patients)
        taken = method({"no_mixer": [20.0] * patients, "mixer": list(20.0 + gains)})
        missed.append(max(true_gain, 0.0) - (true_gain if taken == "mixer" else 0.0))
    return float(np.mean(missed))


@pytest.mark.parametrize("patients", [2, 3, 5])
def test_a_mixer_that_harms_costs_a_site_little_of_it(patients: int) -> None:
    # without a choice each would lose all of it
    assert regret(-0.5, patients) < 0.5 * 0.15
    assert regret(0.5, patients) < 0.5 * 0.15


@pytest.mark.parametrize(
    "figures",
    [{"a": [1.0, 2.0], "b": [1.0]}, {"a": [1.0, float("nan")]}],
)
def test_figures_that_cannot_be_compared_are_refused(figures: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"method|figure|inhomogeneous"):
        choose(figures, otherwise="a")


def test_a_blend_is_a_part_of_the_correction() -> None:
    features = features_of(small_prepared(), small_generator(), "zrefine")
    one_more = lambda f: no_mixer(f) + np.float32(1)  # noqa: E731  # a method of one line
    assert np.allclose(blended(one_more, 0.25)(features), features.pred + 0.25)
    assert np.array_equal(blended(one_more, 0.0)(features), features.pred)
    assert blended(one_more, 1) is one_more
