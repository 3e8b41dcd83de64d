"""What a mixer is given under curves, and what of a site's curve equations is shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.errors import DataError
from lift.generator.features import Features
from lift.mixer.curves import (
    KNOTS,
    ChosenCurves,
    CurveEquations,
    apply_curves,
    choose_curves,
    fit_curves,
    total_equations,
)
from lift.mixer.z_filter import SCALE
from lift.tasks.paired.choice import Use
from lift.tasks.paired.contrast import (
    FEWEST_PATIENTS,
    SiteContrast,
    others_of,
    own_curves_view,
    pooled_arrays,
    read_shared_sums,
    read_site_model,
    to_arrays,
    write_site_curves,
)
from lift.tasks.paired.predictions import filtered, mixed, patient_curves, patient_equations
from lift.tasks.paired.synthesis import GeneratedStream, mix
from lift.tasks.paired.training import batch_loss
from lift.tasks.paired.windows import Window, make_batch
from lift.wire.names import CURVE_SUMS
from tests.lift.small_world import (
    SOURCES,
    features_of,
    random_mixer,
    small_generator,
    small_plan,
    small_prepared,
)

GENERATOR = small_generator()
PLAN = small_plan(generator=GENERATOR)
SIZE = KNOTS * (1 + len(SOURCES))


def curves(seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)).double()


def patient(seed: int, depth: int = 7) -> Features:
    return features_of(small_prepared(depth, seed=seed), GENERATOR, "zrefine")


def contrast_of(count: int, validation: int = 0) -> SiteContrast:
    found = [[patient_curves(patient(seed))] for seed in range(count + validation)]
    names = [f"p{index}" for index in range(count + validation)]
    people = dict(zip(names, found, strict=True))
    return SiteContrast.of(
        {name: people[name] for name in names[:count]},
        {name: people[name] for name in names[count:]},
    )


def test_without_curves_a_mixer_is_given_the_generators_prediction() -> None:
    features = patient(0)
    assert np.array_equal(features.prediction(), features.pred)


def test_a_part_of_the_prediction_is_that_part_of_the_whole() -> None:
    features = patient(0).seen_with(curves())
    whole = features.prediction()
    pred, source, mask = (
        torch.from_numpy(np.array(part)) for part in (features.pred, features.source, features.mask)
    )
    expected = apply_curves(pred, source, mask, curves())
    assert np.array_equal(whole, expected.numpy())
    assert not np.array_equal(whole, features.pred)
    box = (slice(2, 5), slice(3, 11), slice(4, 20))
    assert np.array_equal(features.prediction(box), whole[2:5, :, 3:11, 4:20])


def test_windows_filters_and_whole_volumes_are_given_the_same() -> None:
    mixer = random_mixer(PLAN, GENERATOR)
    seen = patient(1).seen_with(curves(1))
    # as if the generator had predicted it
    as_predicted = Features(**{**vars(patient(1)), "pred": seen.prediction(), "curves": None})
    size = (5, 8, 8)
    window = Window((1, 4, 8), size)
    one, other = (make_batch([f], [window], mixer, size).inputs for f in (seen, as_predicted))
    assert torch.equal(one.pred, other.pred)
    assert np.array_equal(mixed(mixer, seen), mixed(mixer, as_predicted))
    taps = torch.linspace(-0.1, 0.1, 6).double()
    assert np.array_equal(filtered(seen, taps), filtered(as_predicted, taps))
    assert torch.equal(patient_equations(seen).b, patient_equations(as_predicted).b)
    assert not np.array_equal(mixed(mixer, seen), mixed(mixer, patient(1)))


def test_curves_are_fitted_to_the_generators_prediction_whatever_is_seen() -> None:
    features = patient(2)
    found, again = patient_curves(features), patient_curves(features.seen_with(curves()))
    assert torch.equal(found.a, again.a)
    assert torch.equal(found.b, again.b)


def test_a_streamed_translation_is_that_of_the_features() -> None:
    mixer, prepared = random_mixer(PLAN, GENERATOR), small_prepared(9, seed=3)
    stream = GeneratedStream(prepared, GENERATOR, mixer, curves(3))
    seen = features_of(prepared, GENERATOR, "zrefine").seen_with(curves(3))
    assert np.array_equal(mix(mixer, stream), mixed(mixer, seen))


def gradients(persons: dict[str, list[Features]]) -> dict[str, Tensor]:
    """Each patient's gradient of one window's loss."""
    mixer = random_mixer(PLAN, GENERATOR)
    size = PLAN.training.window
    found = {}
    for name, volumes in persons.items():
        mixer.zero_grad(set_to_none=True)
        batch = make_batch(volumes[:1], [Window((1, 4, 8), size)], mixer, size)
        loss = batch_loss(mixer, batch, PLAN.training)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        parts = [p.grad.flatten() for p in mixer.parameters() if p.grad is not None]
        found[name] = torch.cat(parts)
    return found


def test_a_neighbour_changes_nobody_elses_gradient_under_own_curves_and_does_under_the_sites() -> (
    None
):
    contrast = contrast_of(5)
    persons = {f"p{seed}": [patient(seed)] for seed in range(5)}
    without = {name: volumes for name, volumes in persons.items() if name != "p4"}
    fewer = SiteContrast({n: e for n, e in contrast.train.items() if n != "p4"}, {})
    whole = gradients(own_curves_view(persons, contrast))
    part = gradients(own_curves_view(without, fewer))
    assert all(torch.equal(part[name], whole[name]) for name in without)

    def under_site_curves(given: SiteContrast, people: dict[str, list[Features]]) -> set[float]:
        site = fit_curves(total_equations(list(given.train.values())))
        seen = {name: [f.seen_with(site) for f in volumes] for name, volumes in people.items()}
        return {float(gradient.norm()) for gradient in gradients(seen).values()}

    # what the promise of one patient's share would break on
    assert not under_site_curves(fewer, without) & under_site_curves(contrast, persons)


def test_five_patients_share_their_sums_and_four_do_not() -> None:
    assert contrast_of(FEWEST_PATIENTS - 1).shared(FEWEST_PATIENTS) is None
    assert to_arrays(None) == {}
    shared = contrast_of(FEWEST_PATIENTS).shared(10)
    assert shared is not None
    assert shared.patients == 10
    assert set(to_arrays(shared)) == set(CURVE_SUMS)
    assert float(shared.a.sum()) / (1 + len(SOURCES)) ** 2 == pytest.approx(10, abs=1e-6)


def test_validation_patients_are_fitted_to_and_not_shared() -> None:
    small, large = contrast_of(5), contrast_of(5, validation=2)
    one, other = small.shared(5), large.shared(5)
    assert one is not None
    assert other is not None
    assert torch.equal(one.a, other.a)
    everyone = [*large.train.values(), *large.validation.values()]
    found, expected = large.chosen(None), choose_curves(everyone, None)
    assert found.weight == expected.weight
    left = large.chosen(None, without={"p5"}).errors
    assert (
        left == choose_curves([e for e in everyone if e is not large.validation["p5"]], None).errors
    )


def sent(*parts: CurveEquations) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in pooled_arrays(parts).items()}


def test_the_others_are_the_total_without_the_own_to_the_bit() -> None:
    sites = [contrast_of(n).shared(rounded) for n, rounded in ((5, 5), (6, 10), (7, 10))]
    shared = [site for site in sites if site is not None]
    total = sent(*shared)
    assert {n: a.tolist() for n, a in total.items()} == {
        n: a.tolist() for n, a in sent(*shared[::-1]).items()
    }
    found = others_of(total, shared[0], len(SOURCES))
    expected = shared[1] + shared[2]
    assert found is not None
    assert torch.equal(found.a, expected.a)
    assert torch.equal(found.b, expected.b)
    assert found.patients == expected.patients == 20
    assert others_of(sent(shared[0]), shared[0], len(SOURCES)) is None
    assert others_of({}, shared[0], len(SOURCES)) is None
    assert pooled_arrays([]) == {}


def test_a_site_that_came_late_takes_nothing_from_a_sum_that_it_is_no_part_of() -> None:
    early, late = contrast_of(5).shared(5), contrast_of(6).shared(10)
    assert early is not None
    assert late is not None
    found = others_of(sent(early), late, len(SOURCES))
    assert found is not None
    assert torch.equal(found.a, early.a)
    assert found.patients == early.patients


@pytest.mark.parametrize("parts", [np.zeros(1), np.zeros((1, 1), np.int64), None])
def test_parts_of_another_form_are_refused(parts: np.ndarray | None) -> None:
    shared = contrast_of(5).shared(5)
    assert shared is not None
    given = sent(shared)
    given.pop("curves/parts")
    given |= {} if parts is None else {"curves/parts": parts}
    with pytest.raises(ValueError, match="another form"):
        others_of(given, None, len(SOURCES))


def test_curves_of_a_site_are_kept_and_read_again(tmp_path: Path) -> None:
    path, total = tmp_path / "curves", contrast_of(5).shared(5)
    assert total is not None
    write_site_curves(path, ChosenCurves(curves(), 1.0, {}), Use("mixer", 0.5), sent(total), PLAN)
    model = read_site_model(path, len(SOURCES))
    assert torch.equal(model.curves, curves())
    assert model.use == Use("mixer", 0.5)
    found = read_shared_sums(path, PLAN)
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in sent(total).items()
    }
    another = PLAN.model_copy(update={"seed": 12})
    assert read_shared_sums(path, another) == {}
    assert read_shared_sums(tmp_path / "absent", PLAN) == {}
    for sources in (1, 3):
        with pytest.raises(DataError):
            read_site_model(path, sources)
    with pytest.raises(DataError):
        read_site_model(tmp_path / "absent", len(SOURCES))


def test_a_site_that_leaves_curves_off_keeps_that(tmp_path: Path) -> None:
    write_site_curves(tmp_path / "curves", ChosenCurves(None, None, {}), Use(), {}, PLAN)
    kept = read_site_model(tmp_path / "curves", len(SOURCES)).curves
    assert not kept.any()
    features = patient(0)
    assert np.array_equal(features.seen_with(kept).prediction(), features.pred)


def test_fixed_point_loses_nothing() -> None:
    shared = contrast_of(6).shared(10)
    arrays = to_arrays(shared)
    assert shared is not None
    assert torch.equal(torch.from_numpy(np.asarray(arrays["curves_a"])).double() / SCALE, shared.a)
