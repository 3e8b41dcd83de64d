"""What a site uses: never more than its own patients speak for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift.choice import Choice, choose
from lift.held_out import blended, no_mixer
from tests.lift.small_world import features_of, small_generator, small_prepared

PSNR = st.floats(10, 40)


def test_what_is_clearly_better_is_taken() -> None:
    figures = {"no_mixer": [20.0, 21.0, 19.0], "mixer": [22.0, 23.1, 20.9]}
    assert choose(figures, otherwise="c") == Choice("mixer", {"no_mixer": 20.0, "mixer": 22.0}, 3)


def test_what_harms_is_left_out() -> None:
    assert (
        choose({"no_mixer": [20.0, 21.0], "mixer": [19.0, 20.5]}, otherwise="c").method
        == "no_mixer"
    )


def test_a_gain_within_one_standard_error_is_no_reason() -> None:
    # mean gain .5, standard error 2.5 / 1.41...
    assert (
        choose({"no_mixer": [20.0, 20.0], "mixer": [23.0, 18.0]}, otherwise="c").method
        == "no_mixer"
    )


def test_of_those_as_good_as_the_best_the_simplest_is_taken() -> None:
    figures = {
        "no_mixer": [18.0, 18.1, 18.0],
        "curves": [22.0, 22.9, 21.9],
        "mixer": [22.1, 22.8, 22.0],
    }
    assert choose(figures, otherwise="c").method == "curves"


@pytest.mark.parametrize("patients", [0, 1])
def test_without_patients_to_compare_it_is_what_is_said(patients: int) -> None:
    figures = {"no_mixer": [20.0] * patients, "mixer": [30.0] * patients}
    assert choose(figures, otherwise="c") == Choice("c", {}, patients)
    assert choose({}, otherwise="c") == Choice("c", {}, 0)


@given(st.lists(st.tuples(PSNR, PSNR, PSNR), min_size=2, max_size=6))
def test_the_chosen_one_is_within_one_standard_error_of_the_best(
    rows: list[tuple[float, float, float]],
) -> None:
    table = np.array(rows).T
    figures = {name: list(row) for name, row in zip("abc", table, strict=True)}
    found = choose(figures, otherwise="c")
    best = table[table.mean(1).argmax()]
    lost = best - np.array(figures[found.method])
    assert lost.mean() <= lost.std(ddof=1) / np.sqrt(len(rows))
    # and none that is simpler is
    for name in "abc"[: "abc".index(found.method)]:
        missed = best - np.array(figures[name])
        assert missed.mean() > missed.std(ddof=1) / np.sqrt(len(rows))


@pytest.mark.parametrize(
    "figures",
    [{"a": [1.0, 2.0], "b": [1.0]}, {"a": [1.0, float("nan")]}],
)
def test_figures_that_cannot_be_compared_are_refused(figures: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"method|figure|inhomogeneous"):
        choose(figures, otherwise="c")


def test_a_blend_is_a_part_of_the_correction() -> None:
    features = features_of(small_prepared(), small_generator(), "zrefine")
    one_more = lambda f: no_mixer(f) + np.float32(1)  # noqa: E731  # a method of one line
    assert np.allclose(blended(one_more, 0.25)(features), features.pred + 0.25)
    assert np.array_equal(blended(one_more, 0.0)(features), features.pred)
    assert blended(one_more, 1) is one_more
