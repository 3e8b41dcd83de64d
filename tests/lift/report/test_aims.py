"""Aims of a run that makes new volumes: what meets one, what misses it, what only looks good."""

from __future__ import annotations

import pytest

from lift.records.metrics import Measure, Metrics, Table
from lift.records.run import RunRecord
from lift.report.aims import FRECHET, WARNING, Aim, aims_of, headline, warnings
from lift.report.read import Run
from lift.report.tables import methods_table
from lift.report.terms import (
    BETTER,
    GENERATED_METHODS,
    GENERATED_METRICS,
    better_side,
    distance_to_ideal,
)

GOOD = {
    "auc_content": 0.6,
    "auc_texture": 0.8,
    **dict.fromkeys(FRECHET, 1.2),
    "order_correlation": 0.97,
    "nearest_distance": 0.1,
}


def measures(values: dict[str, float]) -> Table:
    return {
        name: Measure(value=value, low=value - 0.01, high=value + 0.01)
        for name, value in values.items()
    }


def pooled(row: str = "federated", /, **changes: float) -> dict[str, Table]:
    return {
        "reconstruction": measures(dict.fromkeys(FRECHET, 1.0)),
        "held_out": {"nearest_distance": Measure(value=0.11, low=0.1, high=0.12)},
        "real_train": measures(dict.fromkeys(FRECHET, 0.1)),
        "shuffled_subjects": measures(dict.fromkeys(FRECHET, 0.2)),
        row: measures(GOOD | changes),
    }


def outcomes(tables: dict[str, Table]) -> dict[str, str]:
    return {aim.metric: aim.outcome for aim in aims_of(tables)}


@pytest.mark.parametrize("row", ["federated", "gaussian"])
def test_a_shipped_row_has_seven_aims_and_good_figures_meet_them(row: str) -> None:
    assert outcomes(pooled(row)) == dict.fromkeys(GOOD, "met")


@pytest.mark.parametrize(
    ("metric", "edge", "beyond"),
    [
        ("auc_content", 0.75, 0.76),
        ("auc_content", 0.25, 0.24),
        ("auc_texture", 0.85, 0.86),
        ("frechet_axial", 1.3, 1.31),
        ("frechet_coronal", 0.9, 1.31),
        ("order_correlation", 0.95, 0.94),
        ("nearest_distance", 0.1, 0.099),
    ],
)
def test_an_aim_is_met_up_to_its_bound(metric: str, edge: float, beyond: float) -> None:
    assert outcomes(pooled(**{metric: edge}))[metric] == "met"
    changed = outcomes(pooled(**{metric: beyond}))
    assert changed.pop(metric) == "missed"
    assert set(changed.values()) == {"met"}


def test_a_figure_better_than_the_decoder_can_draw_is_a_warning_and_no_win() -> None:
    tables = pooled(frechet_sagittal=0.89)
    assert outcomes(tables)["frechet_sagittal"] == "warning"
    assert warnings(tables) == {("federated", "frechet_sagittal"): WARNING}
    # real volumes need no decoder, and the reconstruction is the bound itself
    assert not warnings(pooled())


def test_a_mapper_that_is_kept_back_has_no_aims() -> None:
    tables = pooled("gaussian") | {"federated": measures(GOOD)}
    assert {aim.row for aim in aims_of(tables)} == {"gaussian", "federated"}
    assert {aim.row for aim in aims_of(tables, "mapper")} == {"gaussian", "federated"}
    assert {aim.row for aim in aims_of(tables, "gaussian")} == {"gaussian"}


def test_rows_that_are_not_shipped_are_warned_of_as_well() -> None:
    tables = pooled("untrained", frechet_axial=0.5)
    assert aims_of(tables) == []
    assert warnings(tables) == {("untrained", "frechet_axial"): WARNING}


def test_figures_that_are_missing_are_no_aims() -> None:
    tables = pooled()
    for name in ("auc_content", "auc_texture"):
        del tables["federated"][name]
    del tables["held_out"]
    assert set(outcomes(tables)) == {*FRECHET, "order_correlation"}
    del tables["reconstruction"]
    assert set(outcomes(tables)) == {"order_correlation"}


def run(tables: dict[str, Table] | None) -> Run:
    record = RunRecord(name="r", phantom=True, plan={})
    metrics = None if tables is None else Metrics(pooled=tables)
    return Run(record, (), last_line_lost=False, metrics=metrics, patients=())


def test_the_headline_counts_wins_alone_and_names_warnings() -> None:
    line = headline(run(pooled(frechet_axial=0.5, auc_content=0.9)))
    assert "5 of 7 aims met, 1 warning" in line
    both = headline(run(pooled() | {"gaussian": measures(GOOD | {"auc_texture": 1.0})}))
    assert both.index("Gaussian of trajectories: 6 of 7") < both.index("federated: 7 of 7")
    assert "no figures yet" in headline(run(None))


def test_a_warned_cell_is_red_and_never_the_best() -> None:
    tables = {
        "federated": measures({"frechet_axial": 0.1}),
        "untrained": measures({"frechet_axial": 9}),
    }
    arguments = (tables, ("pooled",), "Caption.")
    assert 'class="best"' in methods_table(*arguments)
    warned = methods_table(*arguments, warnings={("federated", "frechet_axial"): WARNING})
    assert 'class="best"' not in warned
    assert WARNING in warned
    assert '<td class="worse">' in warned


def test_rows_stand_in_the_given_order_without_those_that_have_no_figure() -> None:
    tables = {name: measures({"frechet_axial": 1.0}) for name in GENERATED_METHODS}
    tables["held_out"] = measures({"nearest_distance": 1.0})
    shown = methods_table(
        tables, ("pooled",), "Caption.", only=["frechet_axial"], known=GENERATED_METHODS
    )
    names = [name for name in GENERATED_METHODS if name != "held_out"]
    assert names[:4] == ["real_train", "reconstruction", "shuffled_subjects", "gaussian"]
    places = [shown.index(f"/pooled/{name}/") for name in names]
    assert places == sorted(places)
    assert "/pooled/held_out/" not in shown


def test_every_metric_has_a_side_and_what_is_to_be_as_real_has_no_best() -> None:
    assert set(GENERATED_METRICS) <= set(BETTER)
    assert better_side("auc_content") == "→ .5"
    assert better_side("precision") == "→ real"
    assert distance_to_ideal("auc_texture", 0.4) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="real volumes"):
        distance_to_ideal("precision", 0.4)
    tables = {"federated": measures({"recall": 0.9}), "untrained": measures({"recall": 0.1})}
    assert 'class="best"' not in methods_table(tables, ("pooled",), "Caption.")


def test_an_aim_keeps_its_figure_and_its_bound_in_words() -> None:
    (first, *_) = aims_of(pooled())
    assert first == Aim("federated", "auc_content", 0.6, "0.25 to 0.75", "met")
