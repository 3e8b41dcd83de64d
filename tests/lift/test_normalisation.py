from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lift.cohort.normalisation import Scale, learn_landmarks, looks_inside_the_mask, scale_of
from lift.cohort.patients import Patient
from lift.cohort.preprocessing import prepare, preprocessing_digest, to_output_units, values_inside
from lift.config.plan import AnyRule, NyulRule, PercentileRule, Plan, PreprocessingPlan
from lift.config.plan import WhiteMatterRule as WhiteMatter
from lift.errors import ConfigError, DataError, VolumeError

Array = NDArray[Any]
SHAPE = (40, 40, 20)
LANDMARKS = (0.05, 0.12, 0.2, 0.27, 0.33, 0.4, 0.47, 0.53, 0.6, 0.7, 0.85)
NYUL = NyulRule(landmarks=LANDMARKS)
RULES: dict[str, AnyRule] = {
    "volume": PercentileRule(),
    "mask": PercentileRule(inside="mask"),
    "highest": WhiteMatter(peak="highest"),
    "largest": WhiteMatter(peak="largest", level=0.25),
    "nyul": NYUL,
}
INSIDE_RULES = [name for name in RULES if name != "volume"]


def head(seed: int = 0, *, fluid: float = 0.1, fat: float = 0.0) -> tuple[Array, NDArray[np.bool_]]:
    """A volume like T1, and its mask: air, fluid 30, grey matter 70, white matter 100, fat 220.

    `fat` is its share outside the mask, in the place of air; `fluid` its share inside.
    """
    rng = np.random.default_rng(seed)
    inside = np.zeros(SHAPE, np.bool_)
    inside[8:32, 8:32, 3:17] = True
    kinds = rng.choice(3, SHAPE, p=[fluid, (1 - fluid) * 0.6, (1 - fluid) * 0.4])
    tissue = np.array([30.0, 70.0, 100.0])[kinds] + rng.normal(0, 5, SHAPE)
    outside = np.where(rng.random(SHAPE) < fat, rng.normal(220, 8, SHAPE), rng.gamma(2, 1, SHAPE))
    return np.where(inside, tissue, outside), inside


def applied(
    name: str, voxels: Array, inside: NDArray[np.bool_]
) -> tuple[Scale, NDArray[np.float32]]:
    scale = scale_of(voxels, RULES[name], inside=inside)
    return scale, scale.apply(voxels)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), gain=st.sampled_from([1e-3, 1.0, 1e4]))
def test_a_scale_is_monotone_within_0_and_1_and_comes_back(
    name: str, seed: int, gain: float
) -> None:
    voxels, inside = head(seed)
    voxels = voxels * gain
    scale, values = applied(name, voxels, inside)
    assert (scale.levels[0], scale.levels[-1]) == (0, 1)
    assert np.all(np.diff(scale.values) > 0)
    assert np.all(np.diff(scale.levels) > 0)
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() <= 1
    order = np.argsort(voxels, axis=None)
    assert np.all(np.diff(values.ravel()[order]) >= 0)
    width = scale.values[-1] - scale.values[0]
    np.testing.assert_allclose(
        scale.invert(values),
        np.clip(voxels, scale.values[0], scale.values[-1]),
        # float32 keeps 6e-8 of 1; the steepest segment of the way back spreads that
        atol=width * 1e-6,
    )
    np.testing.assert_allclose(
        scale.apply(scale.invert(np.linspace(0, 1, 101))), np.linspace(0, 1, 101), atol=1e-6
    )


@pytest.mark.parametrize("name", RULES)
def test_a_gain_changes_nothing(name: str) -> None:
    voxels, inside = head()
    expected = applied(name, voxels, inside)[1]
    for gain in (0.01, 37.0):
        found = applied(name, voxels * gain, inside)[1]
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["volume", "mask", "nyul"])
def test_an_offset_changes_nothing_where_percentiles_decide(name: str) -> None:
    voxels, inside = head()
    expected = applied(name, voxels, inside)[1]
    np.testing.assert_allclose(
        applied(name, voxels * 3 + 500, inside)[1], expected, rtol=0, atol=1e-6
    )


def test_an_offset_changes_the_white_matter_rule_for_0_is_no_signal() -> None:
    voxels, inside = head()
    expected = applied("highest", voxels, inside)[1]
    assert np.abs(applied("highest", voxels + 50, inside)[1] - expected)[inside].mean() > 0.02


def more_fat(voxels: Array, inside: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    changed = voxels.copy()
    changed[np.random.default_rng(5).random(SHAPE) < 0.2] = 220.0
    return np.where(inside, voxels, changed), inside


def more_air(voxels: Array, inside: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    pad = [(200, 0), (0, 0), (0, 0)]
    return np.pad(voxels, pad), np.pad(inside, pad)


@pytest.mark.parametrize("change", [more_fat, more_air])
def test_what_lies_outside_the_mask_moves_the_whole_volumes_scale_alone(
    change: Callable[[Array, NDArray[np.bool_]], tuple[Array, NDArray[np.bool_]]],
) -> None:
    voxels, inside = head()
    other, other_inside = change(voxels, inside)
    for name in RULES:
        before = applied(name, voxels, inside)[1][inside]
        after = applied(name, other, other_inside)[1][other_inside]
        moved = float(np.abs(after - before).mean())
        if name == "volume":
            assert moved > 0.003, name
        else:
            np.testing.assert_array_equal(after, before)


def test_a_lesion_moves_percentiles_and_not_the_white_matters_peak() -> None:
    voxels, inside = head()
    ill = voxels.copy()
    ill[10:16, 10:16, 5:12] = 300.0
    assert ill[inside].mean() > voxels[inside].mean() + 5
    well = inside & (ill == voxels)
    moved = {
        name: float(
            np.abs(applied(name, ill, inside)[1] - applied(name, voxels, inside)[1])[well].mean()
        )
        for name in RULES
    }
    assert moved["highest"] < 0.002
    assert min(moved["volume"], moved["mask"]) > 0.1


@pytest.mark.parametrize(("peak", "value"), [("highest", 100), ("largest", 70)])
def test_white_matter_is_the_peak_that_the_rule_names(peak: str, value: float) -> None:
    rule = WhiteMatter.model_validate({"peak": peak, "level": 0.3})
    for seed in range(5):
        # few bright voxels (fat, vessels) inside are no peak
        voxels, inside = head(seed)
        voxels[8:10, 8:32, 3:17] = 250 + voxels[8:10, 8:32, 3:17] / 20
        scale = scale_of(voxels, rule, inside=inside)
        assert scale.values[0] == 0
        assert scale.values[1] * 0.3 == pytest.approx(value, rel=0.02)
        assert scale.apply(np.array([scale.values[1] * 0.3]))[0] == pytest.approx(0.3)


@settings(max_examples=20)
@given(factor=st.integers(1, 40))
def test_white_matter_is_found_in_coarse_whole_numbers_too(factor: int) -> None:
    voxels, inside = head()
    scale = scale_of(np.rint(voxels / 100 * (9 + factor)), RULES["highest"], inside=inside)
    assert scale.values[1] * 0.4 == pytest.approx(9 + factor, rel=0.05)


def test_percentiles_come_to_lie_on_the_landmarks() -> None:
    voxels, inside = head()
    scale = scale_of(voxels, NYUL, inside=inside)
    found = np.percentile(voxels[inside], NYUL.percentiles)
    np.testing.assert_allclose(scale.apply(found), LANDMARKS, atol=1e-6)
    # the outer segments go on with their own slopes
    step = found[1] - found[0]
    slope = (LANDMARKS[1] - LANDMARKS[0]) / step
    below = scale.apply(np.array([found[0] - 0.1 * step]))
    assert below[0] == pytest.approx(LANDMARKS[0] - 0.1 * step * slope, abs=1e-6)
    assert scale.apply(np.array([1e9]))[0] == 1


def test_a_standard_histogram_takes_up_what_bends_the_grey_scale() -> None:
    voxels, inside = head()
    bent = np.where(voxels > 60, 60 + 3 * (voxels - 60), voxels)
    shift = {
        name: float(
            np.abs(applied(name, bent, inside)[1] - applied(name, voxels, inside)[1])[inside].mean()
        )
        for name in ("mask", "nyul")
    }
    assert shift["nyul"] < 0.2 * shift["mask"]


@pytest.mark.parametrize("share", [0.05, 0.35, 0.97])
def test_percentiles_that_coincide_leave_an_increasing_scale(share: float) -> None:
    voxels, inside = head()
    voxels[np.random.default_rng(1).random(SHAPE) < share] = 0.0
    voxels = np.maximum(voxels, 0)
    scale = scale_of(voxels, NYUL, inside=inside)
    assert np.all(np.diff(scale.values) > 0)
    assert np.all(np.diff(scale.levels) > 0)
    order = np.argsort(voxels, axis=None)
    assert np.all(np.diff(scale.apply(voxels).ravel()[order]) >= 0)


@pytest.mark.parametrize("name", INSIDE_RULES)
def test_what_cannot_be_normalised_is_refused_by_name(name: str) -> None:
    voxels, inside = head()
    few = np.zeros(SHAPE, np.bool_)
    few[10, 10, :9] = True
    falling = voxels.copy()
    falling[inside] = -np.log1p(-np.arange(0.5, inside.sum()) / inside.sum())
    cases: list[tuple[Array, NDArray[np.bool_], str]] = [
        (np.where(inside, 50.0, voxels), inside, "both 50: nearly all of it is one value"),
        (voxels, few, "9 of its voxels lie inside the mask"),
    ]
    if name in {"highest", "largest"}:
        cases += [
            (voxels - 500, inside, "0 of the 8064 voxels inside the mask are above 0"),
            (falling, inside, "has no peak"),
        ]
    for image, mask, seen in cases:
        with pytest.raises(VolumeError, match=r"volume 'a/t1\.nii'") as caught:
            scale_of(image, RULES[name], "a/t1.nii", inside=mask)
        assert seen in caught.value.seen
        assert caught.value.where == "preprocessing.normalisation"
        assert caught.value.remedy


@pytest.mark.parametrize("name", RULES)
def test_only_some_rules_need_a_mask(name: str) -> None:
    voxels, inside = head()
    assert looks_inside_the_mask(RULES[name]) == (name != "volume")
    if name == "volume":
        assert scale_of(voxels, RULES[name]) == scale_of(voxels, RULES[name], inside=inside)
    else:
        with pytest.raises(ValueError, match="looks inside the mask"):
            scale_of(voxels, RULES[name])


# --- landmarks


def test_learned_landmarks_are_means_of_what_public_volumes_have() -> None:
    quantiles = [np.array([10.0, 20.0, 30.0]), np.array([0.0, 3.0, 4.0]) * 1e6]
    assert learn_landmarks(quantiles) == (0.0, 0.5, 0.8)
    assert learn_landmarks(quantiles, low=0.1, high=0.9) == (0.1, 0.6, 0.9)


def test_landmarks_of_one_volume_make_it_linear() -> None:
    voxels, inside = head()
    landmarks = learn_landmarks([np.percentile(voxels[inside], NYUL.percentiles)])
    scale = scale_of(voxels, NyulRule(landmarks=landmarks), inside=inside)
    low, high = (float(q) for q in np.percentile(voxels[inside], [1, 99]))
    straight = np.linspace(low, high, 50)
    np.testing.assert_allclose(scale.apply(straight), np.linspace(0, 0.8, 50), atol=1e-5)


@pytest.mark.parametrize(
    ("quantiles", "seen"),
    [
        ([], "0 volumes"),
        ([np.array([1.0, 1.0, 1.0])], "both 1"),
        ([np.array([1.0, 1.0, 2.0])], "must increase"),
    ],
)
def test_landmarks_that_cannot_be_learned_are_refused(quantiles: list[Array], seen: str) -> None:
    with pytest.raises(DataError) as caught:
        learn_landmarks(quantiles)
    assert seen in caught.value.seen
    assert caught.value.remedy


# --- in the plan


def plan(rule: dict[str, object] | None, **preprocessing: object) -> Plan:
    rules = {} if rule is None else dict.fromkeys(("t1", "t2"), rule)
    return Plan.from_data(
        {
            "task": {"source": ["t1"], "target": "t2"},
            "preprocessing": {"normalisation": rules, **preprocessing},
            "privacy": {"mode": "none"},
        },
        "test",
    )


AS_DATA = {name: rule.model_dump(mode="json") for name, rule in RULES.items()}


def test_a_rule_that_was_there_before_reads_as_before() -> None:
    # digests of plans, runs and caches are of this text
    assert (
        PercentileRule().canonical_json()
        == '{"high":99.9,"low":0.1,"rule":"percentile","written_maximum":1000.0}'
    )
    assert '"inside"' not in plan({"rule": "percentile"}).canonical_json()
    assert plan({"rule": "percentile"}) == plan({"rule": "percentile", "inside": "volume"})
    assert '"inside":"mask"' in plan(AS_DATA["mask"]).canonical_json()
    digests = {preprocessing_digest(plan(rule)) for rule in AS_DATA.values()}
    assert len(digests) == len(AS_DATA)


@pytest.mark.parametrize("name", RULES)
def test_a_plan_with_a_rule_comes_back_from_its_json(name: str) -> None:
    first = plan(AS_DATA[name])
    assert Plan.model_validate_json(first.canonical_json()) == first


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        ({"rule": "white_matter"}, "peak: missing"),
        ({"rule": "white_matter", "peak": "last"}, "peak"),
        ({"rule": "white_matter", "peak": "largest", "level": 1.0}, "level"),
        ({"rule": "nyul"}, "landmarks: missing"),
        ({"rule": "nyul", "landmarks": [0.1, 0.5]}, "11 percentiles and 2 landmarks"),
        ({"rule": "nyul", "percentiles": [1, 1], "landmarks": [0, 1]}, "percentiles must increase"),
        ({"rule": "nyul", "percentiles": [1, 99], "landmarks": [1, 0]}, "landmarks must increase"),
        ({"rule": "nyul", "percentiles": [1, 99], "landmarks": [0, 1.5]}, "landmarks"),
        ({"rule": "percentile", "inside": "body"}, "inside"),
        ({"rule": "whitestripe"}, "holds an unknown name"),
    ],
)
def test_settings_that_make_no_scale_are_refused(rule: dict[str, object], seen: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(rule)
    assert seen in caught.value.seen


@pytest.mark.parametrize("name", RULES)
def test_mr_goes_out_at_the_rules_written_maximum(name: str) -> None:
    task = plan({**AS_DATA[name], "written_maximum": 200.0})
    values, dtype = to_output_units(np.array([-0.5, 0.25, 1.5], np.float32), task, "t2")
    assert dtype == values.dtype == np.float32
    np.testing.assert_array_equal(values, [0, 50, 200])


def patient(folder: Path, t1: Array, t2: Array, affine: Array | None = None) -> Patient:
    for name, voxels, place in (("t1", t1, None), ("t2", t2, affine)):
        image = nibabel.Nifti1Image(
            voxels.astype(np.float32), np.eye(4) * [2, 2, 3, 1] if place is None else place
        )
        image.to_filename(folder / f"{name}.nii.gz")
    return Patient("p", "p", {name: folder / f"{name}.nii.gz" for name in ("t1", "t2")}, None)


@pytest.mark.parametrize("mask", ["body", "nonzero"])
@pytest.mark.parametrize("name", INSIDE_RULES)
def test_a_prepared_patient_is_scaled_by_what_its_mask_holds(
    tmp_path: Path, name: str, mask: str
) -> None:
    t1, inside = head(1)
    t2 = head(2)[0] * 3
    if mask == "nonzero":
        t1, t2 = t1 * inside, t2 * inside
    case = patient(tmp_path, t1, t2)
    task = plan(AS_DATA[name], mask=mask)
    prepared = prepare(case, task, root=tmp_path, with_target=True)
    assert prepared.target is not None
    assert prepared.target_scale is not None
    # the mask is the one that the whole-volume rule finds
    before = prepare(case, plan(None, mask=mask), root=tmp_path, with_target=True)
    np.testing.assert_array_equal(prepared.mask, before.mask)
    counted = values_inside(case, task, root=tmp_path)
    assert counted["t2"].size == prepared.mask.sum()
    everywhere = np.ones(counted["t2"].shape, np.bool_)
    expected = scale_of(counted["t2"], RULES[name], inside=everywhere)
    assert prepared.target_scale == expected
    where = prepared.mask > 0
    np.testing.assert_allclose(
        np.sort(prepared.target[where]), np.sort(expected.apply(counted["t2"])), atol=1e-6
    )
    # without its target a patient's sources are the same
    alone = prepare(case, task, root=tmp_path, with_target=False)
    np.testing.assert_array_equal(alone.source, prepared.source)


def test_a_sources_scale_does_not_depend_on_where_the_target_was_scanned(tmp_path: Path) -> None:
    t1, t2 = head(1)[0], head(2)[0]
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[2, 3] = 15.0
    case = patient(tmp_path, t1, t2, affine)
    task = plan(AS_DATA["mask"], mask="body", grid={"kind": "first_source"})
    both = prepare(case, task, root=tmp_path, with_target=True)
    alone = prepare(case, task, root=tmp_path, with_target=False)
    assert both.mask.shape[0] < alone.mask.shape[0]
    np.testing.assert_array_equal(
        both.source[both.mask[:, [0]] > 0],
        alone.source[-both.mask.shape[0] :][both.mask[:, [0]] > 0],
    )
    # scaled by its own voxels, on its own grid
    inside = values_inside(case, task, root=tmp_path)["t2"]
    everywhere = np.ones(inside.shape, np.bool_)
    assert both.target_scale == scale_of(inside, RULES["mask"], inside=everywhere)


def test_every_rule_of_the_schema_is_tested_here() -> None:
    kinds = {type(rule) for rule in RULES.values()}
    known = PreprocessingPlan.model_json_schema()["$defs"]
    assert {name for name in known if name.endswith("Rule")} == {
        *(kind.__name__ for kind in kinds),
        "WindowRule",
    }
