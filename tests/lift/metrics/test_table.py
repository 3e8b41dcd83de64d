"""The content of `metrics.json`, the guard's verdict, and one patient's figures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from lift.metrics.brats import psnr_crop_db, ssim_crop
from lift.metrics.contrast import psnr_invariant_db
from lift.metrics.hounsfield import tissue_figures
from lift.metrics.perceptual import perceptual_distance
from lift.metrics.synthrad import CT_RANGE, MR_RANGE, Floats, Mask, mae_hu, psnr_db, ssim
from lift.metrics.synthrad_2025 import ms_ssim_ct
from lift.metrics.table import (
    BETTER,
    COMPARISONS,
    UNITS,
    Methods,
    by_person,
    guard_verdict,
    metric_table,
    patient_metrics,
    summarise,
    unit_of,
)
from lift.metrics.through_plane import (
    dz_corr,
    dz_mae,
    hf_coherence,
    hf_error,
    hf_ratio,
    slice_gain,
    tpr,
)
from lift.records.metrics import as_json
from tests.steps import counted

SPACING = (2.0, 1.0, 1.0)
MR_ONLY = {"psnr_crop_db", "ssim_crop", "psnr_invariant_db"}
CT_ONLY = {"mae_bone", "mae_soft", "bone_dice", "ms_ssim_ct"}
OF_A_SEGMENTER = {"dice"}


def table_of(*sites: Any, **settings: Any) -> Any:
    """`metrics.json` of these sites."""
    return as_json(summarise(*sites, **settings))


def head(shape: tuple[int, int, int], seed: int = 0) -> tuple[Floats, Floats, Mask]:
    """A prediction, its target and the mask: an ellipsoid of smooth tissue."""
    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1.05, 1.05, n) for n in shape), indexing="ij")
    mask = z**2 + y**2 + x**2 < 1
    target = np.where(mask, 0.5 + gaussian_filter(random.standard_normal(shape), 1), 0)
    target = np.clip(target, 0, 1)
    return np.where(mask, target + random.normal(0, 0.05, shape), 0), target, mask


def cohort() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Two sites; `federated` is 1 dB above `no_mixer` for every patient; one figure is missing."""
    random = np.random.default_rng(7)
    sites: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for site, count in (("north", 4), ("south", 2)):
        base = {f"secret-{site}-{k}": float(random.normal(20, 3)) for k in range(count)}
        sites[site] = {
            method: {
                name: {"psnr_db": psnr + gain, "mae": 0.1 - gain / 100, "hf_ratio": 1 + gain}
                for name, psnr in base.items()
            }
            for method, gain in (("no_mixer", 0.0), ("federated", 1.0))
        }
    del sites["north"]["federated"]["secret-north-0"]["hf_ratio"]
    sites["north"]["local_only"] = {"secret-north-1": {"psnr_db": 25.0}}
    return sites


def test_a_patients_figures_are_those_of_each_metric() -> None:
    p, t, m = head((20, 24, 22))
    found = patient_metrics(p, t, m, range=MR_RANGE, spacing_mm=SPACING, protocol="mr")
    assert found == {
        "psnr_db": psnr_db(p, t, m, MR_RANGE),
        "psnr_invariant_db": psnr_invariant_db(p, t, m, MR_RANGE),
        "ssim": ssim(p, t, m, MR_RANGE),
        "mae": mae_hu(p, t, m),
        "dz_mae": dz_mae(p, t, m),
        "dz_corr": dz_corr(p, t, m),
        "hf_error": hf_error(p, t, m),
        "hf_coherence": hf_coherence(p, t, m),
        "hf_ratio": hf_ratio(p, t, m),
        "slice_gain": slice_gain(p, t, m),
        "tpr": tpr(p, t, m),
        "perceptual": perceptual_distance(p, t, m, MR_RANGE),
        "psnr_crop_db": psnr_crop_db(p, t, m),
        "ssim_crop": ssim_crop(p, t, m),
    }
    assert set(found) | CT_ONLY | OF_A_SEGMENTER == set(UNITS) == set(BETTER)
    p_hu, t_hu = p * 4024 - 1024, t * 4024 - 1024
    hu = patient_metrics(p_hu, t_hu, m, range=CT_RANGE, spacing_mm=SPACING, protocol="ct")
    assert set(hu) == set(UNITS) - MR_ONLY - OF_A_SEGMENTER
    tissues = tissue_figures(p_hu, t_hu, m)
    assert hu["mae_bone"] == tissues.bone_mae
    assert hu["mae_soft"] == tissues.soft_mae
    assert hu["bone_dice"] == tissues.bone_dice
    assert hu["ms_ssim_ct"] == ms_ssim_ct(p_hu, t_hu, m)
    assert hu["mae"] == pytest.approx(4024 * found["mae"])
    assert hu["hf_error"] == pytest.approx(found["hf_error"])


def test_a_thin_volume_leaves_out_what_it_has_not_got() -> None:
    p, t, m = head((6, 24, 22))
    found = patient_metrics(p, t, m, range=MR_RANGE, spacing_mm=SPACING, protocol="mr")
    missing = {"ssim", "ssim_crop", "hf_error", "hf_coherence", "hf_ratio"}
    assert set(found) == set(UNITS) - missing - CT_ONLY - OF_A_SEGMENTER


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_an_impossible_spacing_is_refused(spacing: tuple[float, float, float]) -> None:
    p, t, m = head((8, 9, 10))
    with pytest.raises(ValueError, match="three positive numbers"):
        patient_metrics(p, t, m, range=MR_RANGE, spacing_mm=spacing, protocol="mr")


def test_a_patients_figures_are_computed_on_whole_arrays() -> None:
    # a loop over voxels or lines would take more steps on larger slices; `make bench` has seconds
    small, large = (_steps_of_figures((45, side, side)) for side in (48, 160))
    # a few steps are the garbage collector's, and some go into sides that are odd
    assert abs(large - small) < 160 - 48


def _steps_of_figures(shape: tuple[int, int, int]) -> int:
    p, t, m = head(shape)

    def figures() -> dict[str, float]:
        return patient_metrics(p, t, m, range=MR_RANGE, spacing_mm=SPACING, protocol="mr")

    # the first time, modules load
    figures()
    return counted(figures, most=10_000)[1]


def test_units_follow_the_protocol() -> None:
    assert [unit_of(name, "ct") for name in ("psnr_db", "mae", "dz_mae", "ssim")] == [
        "dB",
        "HU",
        "HU",
        "",
    ]
    assert unit_of("mae", "mr") == "normalised"
    with pytest.raises(ValueError, match="unknown metric 'psnr'"):
        unit_of("psnr", "mr")


def test_the_table_has_the_structure_of_metrics_json() -> None:
    table = table_of(cohort(), seed=1)
    assert set(table) == {"sites", "pooled", "comparisons"}
    assert {site: entry["patients"] for site, entry in table["sites"].items()} == {
        "north": 4,
        "south": 2,
    }
    assert set(table["sites"]["north"]["methods"]) == {"no_mixer", "federated", "local_only"}
    entry = table["sites"]["south"]["methods"]["federated"]["psnr_db"]
    assert set(entry) == {"value", "n", "low", "high", "unit"}
    assert (entry["n"], entry["unit"]) == (2, "dB")
    assert table["pooled"]["no_mixer"]["psnr_db"]["n"] == 6
    comparison = table["comparisons"]["pooled"]["federated - no_mixer"]["psnr_db"]
    assert set(comparison) == {"value", "low", "high", "n", "wins", "unit"}
    assert comparison == pytest.approx(
        {"value": 1.0, "low": 1.0, "high": 1.0, "n": 6, "wins": 6, "unit": "dB"}
    )
    assert set(table["comparisons"]["sites"]) == {"north", "south"}
    alone = table["comparisons"]["sites"]["north"]["federated - local_only"]
    assert set(alone) == {"psnr_db"}
    assert (alone["psnr_db"]["n"], alone["psnr_db"]["low"], alone["psnr_db"]["high"]) == (
        1,
        None,
        None,
    )


def test_the_pooled_mean_counts_every_patient_once() -> None:
    sites = cohort()
    everyone = [
        figures["psnr_db"] for site in sites.values() for figures in site["no_mixer"].values()
    ]
    pooled = table_of(sites, seed=0)["pooled"]["no_mixer"]["psnr_db"]
    assert pooled["value"] == pytest.approx(np.mean(everyone))


def test_patients_of_one_name_at_two_sites_are_two() -> None:
    same: Methods = {"no_mixer": {"p1": {"psnr_db": 10.0}}}
    other: Methods = {"no_mixer": {"p1": {"psnr_db": 30.0}}}
    pooled = table_of({"a": same, "b": other}, seed=0)["pooled"]["no_mixer"]["psnr_db"]
    assert (pooled["value"], pooled["n"]) == (20.0, 2)


def test_wins_and_missing_figures_are_counted_by_metric() -> None:
    pooled = table_of(cohort(), seed=0)["comparisons"]["pooled"]["federated - no_mixer"]
    assert (pooled["mae"]["wins"], pooled["mae"]["n"]) == (6, 6)  # lower is better
    assert pooled["mae"]["value"] == pytest.approx(-0.01)
    assert (pooled["hf_ratio"]["wins"], pooled["hf_ratio"]["n"]) == (0, 5)  # nearer to 1 is


def test_comparisons_are_those_asked_for_and_run() -> None:
    table = table_of(cohort(), seed=0, comparisons=[("no_mixer", "federated"), ("x", "no_mixer")])
    assert set(table["comparisons"]["pooled"]) == {"no_mixer - federated"}
    assert table["comparisons"]["pooled"]["no_mixer - federated"]["psnr_db"]["wins"] == 0
    assert ("federated", "no_mixer") in COMPARISONS
    assert ("federated", "z_filter") in COMPARISONS


def test_no_patients_name_and_no_nan_is_in_the_output() -> None:
    text = json.dumps(table_of(cohort(), seed=0), allow_nan=False)
    assert "secret" not in text
    assert "north" in text


@given(st.integers(0, 1000))
def test_the_table_depends_on_neither_order_nor_names(seed: int) -> None:
    random = np.random.default_rng(seed)
    renamed = {
        site: {
            method: {
                name[::-1]: figures
                for name, figures in sorted(patients.items(), key=lambda _: random.random())
            }
            for method, patients in methods.items()
        }
        for site, methods in sorted(cohort().items(), reverse=True)
    }
    assert table_of(renamed, seed=5) == table_of(cohort(), seed=5)


def test_a_figure_that_is_not_finite_never_reaches_the_file() -> None:
    with pytest.raises(ValueError, match="finite"):
        metric_table({"a": {"psnr_db": float("nan")}}, seed=0)
    with pytest.raises(ValueError, match="unknown metric"):
        metric_table({"a": {"psnrdb": 1.0}}, seed=0)


def test_the_guard_needs_two_patients_and_an_interval_off_zero() -> None:
    assert guard_verdict([], seed=0) == "undecided"
    assert guard_verdict([9.0], seed=0) == "undecided"
    assert guard_verdict([0.2, 0.3], seed=0) == "helped"
    assert guard_verdict([-0.2, -0.3, -0.1], seed=0) == "harmed"
    assert guard_verdict([0.5, -0.4, 0.1], seed=0) == "undecided"
    assert guard_verdict([-0.5, 0.4, -0.1], seed=0) == "undecided"
    assert guard_verdict([0.0, 0.0, 0.0], seed=0) == "undecided"
    assert guard_verdict([0.2, 0.3], seed=0, margin_db=0.25) == "undecided"
    assert guard_verdict([0.3, 0.4], seed=0, margin_db=0.25) == "helped"
    assert guard_verdict([-0.2, -0.1], seed=0, margin_db=0.25) == "harmed"


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), st.integers(0, 2**32))
def test_turning_the_differences_around_never_keeps_a_verdict(
    differences: list[float], seed: int
) -> None:
    verdict = guard_verdict(differences, seed=seed)
    turned = guard_verdict([-d for d in differences], seed=seed)
    assert verdict == "undecided" or turned != verdict
    if min(differences) > 0:
        assert verdict == "helped"


def test_a_table_counts_persons_and_names_their_examinations() -> None:
    figures = {"a-1": 20.0, "a-2": 24.0, "b-1": 30.0}
    sites: dict[str, Methods] = {
        "north": {
            "no_mixer": {one: {"psnr_db": value} for one, value in figures.items()},
            "federated": {one: {"psnr_db": value + 1} for one, value in figures.items()},
        },
        # the same name elsewhere is another person
        "south": {"no_mixer": {"a-1": {"psnr_db": 10.0}}},
    }
    people = {"north": {"a-1": "a", "a-2": "a", "b-1": "b"}, "south": {"a-1": "a"}}
    found = table_of(sites, seed=0, persons=people)
    north = found["sites"]["north"]
    assert (north["patients"], north["examinations"]) == (2, 3)
    entry = north["methods"]["no_mixer"]["psnr_db"]
    assert (entry["value"], entry["n"]) == (26.0, 2)
    pooled = found["pooled"]["no_mixer"]["psnr_db"]
    assert pooled["value"] == pytest.approx((22 + 30 + 10) / 3)
    assert pooled["n"] == 3
    compared = found["comparisons"]["sites"]["north"]["federated - no_mixer"]["psnr_db"]
    assert (compared["n"], compared["wins"]) == (2, 2)
    alone = table_of(sites, seed=0)
    assert alone["sites"]["north"]["patients"] == 3
    assert alone["pooled"]["no_mixer"]["psnr_db"]["n"] == 4


def test_a_persons_figure_is_the_mean_of_those_that_exist() -> None:
    found = by_person(
        {"a-1": {"psnr_db": 20.0, "dz_corr": 0.5}, "a-2": {"psnr_db": 24.0}, "b": {"ssim": 0.9}},
        {"a-1": "a", "a-2": "a", "b": "b"},
    )
    assert found == {"a": {"psnr_db": 22.0, "dz_corr": 0.5}, "b": {"ssim": 0.9}}
