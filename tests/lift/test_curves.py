"""Curves: the closed form, its sums, and the rule by which a site takes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lift.errors import DataError, VolumeError
from lift.generator.features import Features
from lift.mixer.curves import (
    ALONE,
    ENOUGH,
    KNOTS,
    CurveEquations,
    apply_curves,
    choose_curves,
    curve_equations,
    fit_curves,
    hats,
    mean_equations,
)
from lift.tasks.paired.methods import curve_methods
from lift.tasks.paired.predictions import patient_psnr_db
from tests.lift.small_world import (
    assert_four_parts,
    features_of,
    small_generator,
    small_prepared,
)

SHAPE = (5, 1, 12, 10)
SOURCES = 2
GENERATOR = small_generator()
Contrast = Callable[[Tensor, Tensor], Tensor]


def volume(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, sources and mask of a random patient."""
    rng = np.random.default_rng(seed)
    pred = torch.from_numpy(rng.random(SHAPE, dtype=np.float32))
    source = torch.from_numpy(rng.random((SHAPE[0], SOURCES, *SHAPE[2:]), dtype=np.float32))
    mask = torch.from_numpy((rng.random(SHAPE) > 0.2).astype(np.float32))
    return pred, source, mask


def equations(seed: int, contrast: Contrast, noise: float = 0.0) -> CurveEquations:
    pred, source, mask = volume(seed)
    random = torch.Generator().manual_seed(seed)
    target = contrast(pred, source) + noise * torch.randn(SHAPE, generator=random)
    return curve_equations(pred, source, target, mask)


def added(patients: list[CurveEquations]) -> CurveEquations:
    total = CurveEquations.zero(SOURCES)
    for patient in patients:
        total = total + patient
    return total


def darker(pred: Tensor, source: Tensor) -> Tensor:
    return 0.8 * pred + 0.05


def bent(pred: Tensor, source: Tensor) -> Tensor:
    return pred + 0.1 * torch.sin(3 * pred) - 0.2 * source[:, :1].square()


def same(pred: Tensor, source: Tensor) -> Tensor:
    return pred


@given(st.lists(st.floats(-0.5, 1.5, width=32), min_size=1, max_size=20))
def test_hats_are_shares_that_add_up_to_1(values: list[float]) -> None:
    found = hats(torch.tensor(values, dtype=torch.float64))
    assert found.shape == (len(values), KNOTS)
    assert bool((found >= 0).all())
    assert torch.allclose(found.sum(1), torch.ones(len(values)).double())
    # the knots' mean by these shares is the value itself, or the end that it is beyond
    place = found @ torch.linspace(0, 1, KNOTS).double()
    assert torch.allclose(place, torch.tensor(values).double().clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize(("contrast", "left"), [(darker, 0.01), (bent, 0.01)])
def test_another_contrast_is_taken_up_on_patients_that_were_not_fitted(
    contrast: Contrast, left: float
) -> None:
    curves = fit_curves(added([equations(seed, contrast) for seed in range(4)]))
    pred, source, mask = volume(99)
    target = contrast(pred, source)
    inside = mask > 0
    before = (pred - target)[inside].square().mean()
    after = (apply_curves(pred, source, mask, curves) - target)[inside].square().mean()
    assert after < left * before


def test_the_error_of_curves_is_that_of_the_volume() -> None:
    pred, source, mask = volume(7)
    target, inside = bent(pred, source), mask > 0
    found = curve_equations(pred, source, target, mask)
    curves = fit_curves(found)
    made = apply_curves(pred.double(), source.double(), mask, curves)
    gained = (made - target)[inside].square().mean() - (pred - target)[inside].square().mean()
    assert found.error(curves) == pytest.approx(float(gained), rel=1e-3)
    assert found.error(None) == 0


def test_nothing_outside_the_mask_has_influence_or_changes() -> None:
    pred, source, mask = volume(3)
    target = bent(pred, source)
    outside = mask == 0
    wild = [torch.where(outside, torch.tensor(torch.nan), part) for part in (pred, target)]
    found = curve_equations(wild[0], source, wild[1], mask)
    assert torch.equal(found.a, curve_equations(pred, source, target, mask).a)
    made = apply_curves(pred, source, mask, fit_curves(found))
    assert torch.equal(made[outside], pred[outside])
    assert not torch.equal(made, pred)


def test_a_voxel_is_changed_by_its_own_values_alone() -> None:
    pred, source, mask = volume(4)
    curves = fit_curves(equations(4, bent))
    whole = apply_curves(pred, source, mask, curves)
    part = apply_curves(pred[1:3, :, 2:5], source[1:3, :, 2:5], mask[1:3, :, 2:5], curves)
    assert torch.equal(part, whole[1:3, :, 2:5])
    batch = apply_curves(pred[None], source[None], mask[None], curves)
    assert torch.equal(batch[0], whole)


def test_sums_have_the_same_bits_in_every_order() -> None:
    patients = [equations(seed, bent, 0.1) for seed in range(4)]
    sums = [added(list(order)) for order in itertools.permutations(patients)]
    assert all(torch.equal(each.a, sums[0].a) and torch.equal(each.b, sums[0].b) for each in sums)
    assert torch.equal(sums[0].a, sums[0].a.T)


def test_a_patient_with_several_volumes_counts_once() -> None:
    one, other = equations(1, bent), equations(2, darker)
    both = mean_equations([one, other])
    assert both.patients == 1
    assert torch.allclose(both.a, (one.a + other.a) / 2)
    assert torch.equal(mean_equations([one, one, one]).b, one.b)
    with pytest.raises(ValueError, match="at least one"):
        mean_equations([])


def test_weights_lead_from_the_sites_own_curves_to_the_others() -> None:
    own = added([equations(seed, darker) for seed in range(3)])
    others = added([equations(seed, bent) for seed in range(10, 20)])
    alone, theirs = fit_curves(own), fit_curves(own, others, weight=math.inf)
    distance = [
        float((fit_curves(own, others, weight=weight) - alone).norm())
        for weight in (0.0, 1.0, 3.0, 10.0, 1e9)
    ]
    assert distance == sorted(distance)
    assert distance[0] == 0
    assert torch.allclose(fit_curves(own, others, weight=1e9), theirs, atol=1e-4)


def test_what_cannot_be_fitted_is_refused() -> None:
    nobody, somebody = CurveEquations.zero(SOURCES), equations(1, bent)
    for arguments in ((nobody, None, 0.0), (somebody, None, 1.0), (somebody, nobody, math.inf)):
        own, others, weight = arguments
        with pytest.raises(DataError) as caught:
            fit_curves(own, others, weight=weight)
        assert_four_parts(caught.value)
    pred, source, mask = volume(1)
    broken = pred.clone()
    broken[mask > 0] = torch.nan
    with pytest.raises(VolumeError, match="NaN or infinity"):
        curve_equations(pred, source, broken, mask)


def test_a_site_of_its_own_contrast_with_enough_patients_trusts_them() -> None:
    own = [equations(seed, darker, 0.02) for seed in range(8)]
    others = added([equations(seed, bent, 0.02) for seed in range(20, 40)])
    chosen = choose_curves(own, others)
    assert chosen.weight in {0.0, 1.0}
    assert chosen.errors[chosen.weight] < 0.5 * chosen.errors[math.inf]


def test_a_site_like_the_others_takes_theirs() -> None:
    own = [equations(seed, darker, 0.2) for seed in range(3)]
    others = added([equations(seed, darker, 0.2) for seed in range(20, 60)])
    chosen = choose_curves(own, others)
    assert chosen.weight == math.inf
    assert chosen.curves is not None
    assert torch.equal(chosen.curves, fit_curves(own[0], others, weight=math.inf))


def test_a_site_whose_patients_disagree_takes_none() -> None:
    def shifted(by: float) -> Contrast:
        return lambda pred, source: pred + by

    own = [equations(seed, shifted(by)) for seed, by in enumerate((-0.2, 0.2, -0.1, 0.15))]
    chosen = choose_curves(own, None)
    assert chosen.curves is None
    assert chosen.weight is None
    assert chosen.errors[None] == 0
    # the negative control: without leaving anybody out the same curves look good
    total = added(own)
    assert total.error(fit_curves(total)) < 0 < chosen.errors[0.0]


def test_a_site_that_needs_no_curves_takes_none() -> None:
    own = [equations(seed, same, 0.05) for seed in range(5)]
    others = added([equations(seed, darker, 0.05) for seed in range(20, 40)])
    assert choose_curves(own, others).curves is None


def test_with_one_patient_nothing_is_chosen() -> None:
    own, others = equations(1, darker), added([equations(seed, darker) for seed in range(2, 9)])
    chosen = choose_curves([own], others)
    assert chosen.weight == ALONE
    assert chosen.errors == {}
    assert chosen.curves is not None
    assert torch.equal(chosen.curves, fit_curves(own, others, weight=ALONE))
    for nobody in (None, CurveEquations.zero(SOURCES)):
        alone = choose_curves([own], nobody)
        assert alone.weight == 0
        assert alone.curves is not None
        assert torch.equal(alone.curves, fit_curves(own))
        assert choose_curves([], nobody).curves is None


def patients_of(contrast: Contrast, seeds: range) -> dict[str, list[Features]]:
    """Small patients whose target is another contrast of the prediction, and flickers."""
    found = {}
    for seed in seeds:
        prepared = small_prepared(9, seed=seed)
        # one slice again and again: all that changes along depth is flicker
        prepared = replace(prepared, source=np.repeat(prepared.source[:1], 9, axis=0))
        features = features_of(prepared, GENERATOR, "zrefine")
        pred, source = (torch.from_numpy(np.array(x)) for x in (features.pred, features.source))
        flicker = np.random.default_rng(seed).normal(0, 0.03, (9, 1, 1, 1)).astype(np.float32)
        target = contrast(pred, source).numpy()
        # what the generator made is jumpy, what is true is not
        found[f"p{seed}"] = [replace(features, pred=features.pred + flicker, target=target)]
    return found


def test_the_rows_of_a_site_that_stays_out_take_up_contrast_and_then_flicker() -> None:
    train, validation = patients_of(bent, range(4)), patients_of(bent, range(4, 6))
    methods = curve_methods(train, validation, ridge=1e-3)
    assert set(methods) == {"curves", "curves_z_filter"}
    ((held_out,),) = patients_of(bent, range(20, 21)).values()
    psnr = {name: patient_psnr_db(held_out, method(held_out)) for name, method in methods.items()}
    assert psnr["curves"] > patient_psnr_db(held_out, held_out.pred) + 3
    assert psnr["curves_z_filter"] > psnr["curves"] + 1


def test_a_site_without_patients_has_no_such_rows() -> None:
    assert curve_methods({}, {}, ridge=1e-3) == {}
    assert set(curve_methods({}, patients_of(bent, range(2)), ridge=1e-3)) == {"curves"}


def test_an_affine_contrast_is_a_line_of_the_prediction_alone() -> None:
    pred, source, mask = volume(11)
    target = 0.6 * pred + 0.2
    found = curve_equations(pred, source, target, mask)
    line = fit_curves(found, affine=True)
    made = apply_curves(pred, source, mask, line)
    assert torch.allclose(made[mask > 0], target[mask > 0], atol=2e-3)
    heights = line[:KNOTS]
    assert torch.allclose(heights.diff(), heights.diff()[0].expand(KNOTS - 1), atol=1e-9)
    assert not line[KNOTS:].any()
    # a bent contrast is none of it
    curve = curve_equations(pred, source, bent(pred, source), mask)
    assert curve.error(fit_curves(curve)) < curve.error(fit_curves(curve, affine=True)) < 0


def test_an_affine_contrast_is_chosen_by_the_same_rule() -> None:
    own = [equations(seed, darker, 0.02) for seed in range(5)]
    chosen = choose_curves(own, None, affine=True)
    assert chosen.weight == 0
    assert chosen.curves is not None
    assert torch.equal(chosen.curves, fit_curves(added(own), affine=True))


def outlier(by: float) -> Contrast:
    return lambda pred, source: pred + by * (0.5 - source.mean(1, keepdim=True))


def test_from_enough_patients_on_the_best_is_taken_though_they_differ() -> None:
    """One patient far off makes a standard error within which no curves at all would do."""
    seen = [equations(seed, darker, 0.02) for seed in range(ENOUGH - 1)]
    own = [*seen, equations(90, outlier(0.3), 0.02)]
    chosen = choose_curves(own, None)
    assert chosen.weight == 0.0
    # with one patient fewer there are not enough, and the cautious rule says none
    fewer = choose_curves(own[1:], None)
    assert fewer.errors[0.0] < 0
    assert fewer.weight is None


def test_a_change_in_decibels_counts_every_patient_alike() -> None:
    small, large = equations(1, darker, 0.0), equations(2, darker, 0.5)
    curves = fit_curves(small)
    assert small.square < large.square
    assert small.change_db(None) == large.change_db(None) == 0
    # the same curves take almost all of the error of one away, and little of the other's
    assert small.change_db(curves) < -10
    assert -10 < large.change_db(curves) < 0
    # the mean of a patient's volumes is one patient's
    both = mean_equations([small, large])
    assert both.square == pytest.approx((small.square + large.square) / 2)
    assert added([small, large]).square == pytest.approx(small.square + large.square)
