"""One patient's influence is bounded, in both engines, through every mixer; the step is noisy."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from lift.config.plan import MixerKind
from lift.mixer.base import Mixer
from lift.one_patient import NotOfAPatientError
from lift.privacy.clipping import clip_gradient
from lift.privacy.noise import SecureStream, add_noise, poisson_sample
from lift.tasks.paired.private.engines import (
    ClippedSum,
    GradientEngine,
    HookedGradients,
    PatientLoop,
    StepPlan,
    noisy_mean_step,
    patient_sum,
    zero_gradient,
)
from lift.tasks.paired.private.patient_batches import (
    PatientWindows,
    RowLosses,
    form,
    join_batches,
    one_row,
)
from lift.tasks.paired.windows import Batch, draw_window
from lift.tasks.paired.windows import make_batch as make_windows
from tests.lift.mixer_cases import KINDS, make_mixer
from tests.lift.privacy.patients import (
    C,
    cohort,
    influences,
    joint_norm,
    losses,
    make_batch,
    make_patient,
    mean_gradient,
    minus,
)
from tests.lift.privacy.streams import KnownStream
from tests.lift.small_world import (
    SIZE,
    features_of,
    random_mixer,
    small_generator,
    small_plan,
    small_prepared,
)

every_mixer = pytest.mark.parametrize("kind", KINDS)
both_engines = pytest.mark.parametrize("engine", [PatientLoop(), HookedGradients()])


class WindowLoop:
    """What must never be written: the unit is the window."""

    slack = 0.0

    def sum_of_clipped_gradients(
        self, mixer: Mixer, patients: Iterable[PatientWindows], losses: RowLosses, clip_norm: float
    ) -> ClippedSum:
        windows = [[batch] for windows in patients for batch in windows]
        return PatientLoop().sum_of_clipped_gradients(mixer, windows, losses, clip_norm)


class ClippedBatch:
    """What must never be written: the sum is clipped, not each patient."""

    slack = 0.0

    def sum_of_clipped_gradients(
        self, mixer: Mixer, patients: Iterable[PatientWindows], losses: RowLosses, clip_norm: float
    ) -> ClippedSum:
        total = zero_gradient(mixer)
        for windows in patients:
            for name, part in mean_gradient(mixer, windows).items():
                total[name] += part
        clipped = clip_gradient(total, clip_norm)
        return ClippedSum({n: t.double() for n, t in clipped.values.items()}, (clipped.norm,))


@both_engines
@every_mixer
@pytest.mark.parametrize(("windows", "scale"), [(1, 1e-4), (8, 1.0), (1, 1e6), (8, 1e6)])
def test_one_patients_influence_is_at_most_the_clip(
    kind: MixerKind, engine: GradientEngine, windows: int, scale: float
) -> None:
    seen = influences(engine, make_mixer(kind), cohort(windows, scale))
    assert max(seen) <= 1.0 + engine.slack
    # everywhere but where there is hardly a gradient, the clip is what bounds it
    if scale >= 1 and (kind, scale) != ("pooled_bigru", 1e6):
        assert max(seen) > 0.5


def test_a_clip_by_window_or_by_batch_would_show() -> None:
    mixer = make_mixer("zrefine_lite")
    assert max(influences(WindowLoop(), mixer, cohort(8, 1.0))) > 2
    # two patients who pull in opposite directions, one of them three times as hard
    one = make_batch([4])
    with torch.no_grad():
        mixed = mixer(one.inputs)
    apart = [[one], [Batch(one.inputs, mixed + 3 * (mixed - one.target))]]
    assert max(influences(PatientLoop(), mixer, apart)) <= 1
    assert max(influences(ClippedBatch(), mixer, apart)) > 1.9


@every_mixer
@pytest.mark.parametrize(("windows", "scale"), [(1, 1.0), (3, 1.0), (1, 1e-4)])
def test_the_engines_agree_on_every_patient(kind: MixerKind, windows: int, scale: float) -> None:
    mixer = make_mixer(kind)
    patients = cohort(windows, scale, count=5)
    hooked = HookedGradients(rows_at_once=4)
    looped = PatientLoop().sum_of_clipped_gradients(mixer, patients, losses, C)
    joined = hooked.sum_of_clipped_gradients(mixer, patients, losses, C)
    assert joint_norm(minus(looped.total, joined.total)) < 1e-5 * C
    assert looped.norms == pytest.approx(joined.norms, rel=1e-4)
    assert joint_norm(looped.total) > 0
    # without a clip in the way: the mean over the patient's windows
    for windows_of_one in patients:
        expected = mean_gradient(mixer, windows_of_one)
        for engine in (PatientLoop(), hooked):
            given = engine.sum_of_clipped_gradients(mixer, [windows_of_one], losses, 1e20).total
            assert joint_norm(minus(given, expected)) < 1e-5 * joint_norm(expected)


@both_engines
@every_mixer
def test_a_patients_part_does_not_depend_on_the_others(
    kind: MixerKind, engine: GradientEngine
) -> None:
    mixer = make_mixer(kind)
    # slices, volumes and, where the mixer allows it, planes of different sizes
    patients = [
        make_patient(1, depth=2),
        make_patient(2, depth=5),
        make_patient(3, depth=4, windows=2, size=(12, 8)),
    ]
    alone = [engine.sum_of_clipped_gradients(mixer, [one], losses, C).total for one in patients]
    whole = engine.sum_of_clipped_gradients(mixer, patients, losses, C).total
    summed = {name: sum((part[name] for part in alone), torch.zeros(())) for name in whole}
    assert joint_norm(minus(whole, summed)) < 1e-5 * C


@both_engines
@every_mixer
def test_padding_and_cached_features_change_no_patients_part(
    kind: MixerKind, engine: GradientEngine
) -> None:
    generator = small_generator()
    plan = small_plan(kind, generator=generator)
    mixer = random_mixer(plan, generator)
    size = plan.training.window
    patients = []
    # fewer slices than the window, and more; planes of another size where the mixer sees whole ones
    for seed, (depth, plane) in enumerate([(2, SIZE), (9, SIZE), (4, (24, 16))]):
        features = features_of(small_prepared(depth, seed=seed, size=plane), generator, kind)
        whole = (size[0], *plane) if mixer.pooled_names else size
        window = draw_window(features, whole, np.random.default_rng(seed))
        padded = make_windows([features], [window], mixer, whole)
        bare = make_windows([features], [window], mixer, window.size)
        patients.append((padded, bare))
    sums = [
        engine.sum_of_clipped_gradients(mixer, [[pair[i]] for pair in patients], losses, C)
        for i in (0, 1)
    ]
    assert joint_norm(minus(sums[0].total, sums[1].total)) < 1e-5 * C
    looped = PatientLoop().sum_of_clipped_gradients(mixer, [[b] for b, _ in patients], losses, C)
    assert joint_norm(minus(sums[0].total, looped.total)) < 1e-5 * C
    assert joint_norm(looped.total) > 0


@both_engines
@every_mixer
def test_a_patient_that_is_not_finite_adds_zero_and_harms_nobody(
    kind: MixerKind, engine: GradientEngine
) -> None:
    mixer = make_mixer(kind)
    good = [make_patient(1), make_patient(2)]
    bad = make_patient(3)
    bad[0].inputs.pred[0, 1] = math.nan
    bad[0].target[0, 0] = math.inf
    with_bad = engine.sum_of_clipped_gradients(mixer, [good[0], bad, good[1]], losses, C)
    without = engine.sum_of_clipped_gradients(mixer, good, losses, C)
    assert with_bad.norms[1] == math.inf
    assert [math.isfinite(each) for each in with_bad.norms] == [True, False, True]
    assert joint_norm(minus(with_bad.total, without.total)) < 1e-5 * C


@both_engines
@every_mixer
def test_the_mixer_is_left_as_it_was(kind: MixerKind, engine: GradientEngine) -> None:
    mixer = make_mixer(kind)
    first = next(mixer.parameters())
    first.grad = torch.ones_like(first)
    mixer.eval()
    before = mixer.values()
    result = engine.sum_of_clipped_gradients(mixer, cohort(1, 1.0), losses, C)
    assert joint_norm(result.total) > 0
    assert all(torch.equal(before[name], values) for name, values in mixer.values().items())
    assert first.grad is not None
    assert bool((first.grad == 1).all())
    assert all(p.grad is None for p in mixer.parameters() if p is not first)
    assert not any(module.training for module in mixer.modules())
    assert not any(set(vars(p)) for p in mixer.parameters())
    for module in mixer.modules():
        assert not {"activations", "max_batch_len", "autograd_grad_sample_hooks"} & set(
            vars(module)
        )
        assert not module._forward_hooks
        assert not module._backward_hooks


@both_engines
def test_no_patient_and_a_patient_without_windows_give_zeros(engine: GradientEngine) -> None:
    mixer = make_mixer("zdiff")
    for patients, norms in (([], ()), ([[]], (0.0,))):
        result = engine.sum_of_clipped_gradients(mixer, patients, losses, C)
        assert list(result.total) == list(mixer.values())
        assert joint_norm(result.total) == 0
        assert result.norms == norms


@both_engines
def test_a_frozen_parameter_has_no_part(engine: GradientEngine) -> None:
    mixer = make_mixer("zrefine_lite")
    whole = engine.sum_of_clipped_gradients(mixer, cohort(1, 1.0), losses, 1e20).total
    frozen = next(name for name in whole if name.startswith("first"))
    dict(mixer.named_parameters())[frozen].requires_grad_(False)
    result = engine.sum_of_clipped_gradients(mixer, cohort(1, 1.0), losses, 1e20).total
    assert set(whole) - set(result) == {frozen}
    for name, values in result.items():
        torch.testing.assert_close(values, whole[name], rtol=1e-4, atol=1e-3)


def test_joined_rows_are_the_rows_that_were_joined() -> None:
    batches = [make_batch([4], seed=1), make_batch([3, 5], seed=2)]
    assert form(batches[0]) == form(batches[1])
    assert form(batches[0]) != form(make_batch([4], size=(8, 12)))
    joined = join_batches(batches)
    assert joined.inputs.depth.tolist() == [4, 3, 5]
    mixer = make_mixer("pooled_bigru")
    for row, (batch, index) in enumerate([(batches[0], 0), (batches[1], 0), (batches[1], 1)]):
        torch.testing.assert_close(
            mixer(one_row(joined, row).inputs), mixer(one_row(batch, index).inputs)
        )


PLAN = StepPlan(clip_norm=C, noise_multiplier=1.3, sampling_rate=0.25, public_patients=40)


def test_an_empty_batch_gives_noise_alone_divided_by_the_public_number() -> None:
    mixer = make_mixer("zrefine")

    def forbidden(index: int) -> PatientWindows:
        raise AssertionError(index)

    for engine in (PatientLoop(), HookedGradients()):
        step = noisy_mean_step(engine, mixer, 0, forbidden, losses, PLAN, SecureStream())
        assert step.private.norms == ()
        assert joint_norm(step.private.total) == 0
        assert {tensor.dtype for tensor in step.gradient.values()} == {torch.float32}
        drawn = torch.cat([tensor.flatten() for tensor in step.gradient.values()]).numpy()
        std = 1.3 * C / 10 * (1 + engine.slack)
        assert kstest(drawn, norm(scale=std).cdf).pvalue > 1e-7
        for wrong in (2 / 3, 3 / 2):
            assert kstest(drawn, norm(scale=wrong * std).cdf).pvalue < 1e-7


@both_engines
@pytest.mark.parametrize("patients", [0, 3])
def test_the_noise_has_the_multiplier_times_the_largest_influence(
    engine: GradientEngine, patients: int
) -> None:
    mixer = make_mixer("zdiff")
    given = cohort(1, 1.0)
    step = noisy_mean_step(engine, mixer, patients, given.__getitem__, losses, PLAN, KnownStream())
    stream = KnownStream()
    chosen = poisson_sample(patients, 0.25, stream)
    total = engine.sum_of_clipped_gradients(mixer, [given[i] for i in chosen], losses, C).total
    noisy = add_noise(total, 1.3 * C * (1 + engine.slack), stream)
    for name, tensor in noisy.items():
        torch.testing.assert_close(step.gradient[name], tensor / 10, rtol=1e-6, atol=1e-7)


def test_the_step_is_the_clipped_sum_with_noise_over_the_expected_number() -> None:
    mixer = make_mixer("zrefine_lite")
    patients = cohort(2, 1.0, count=4)
    asked: list[int] = []

    def windows_of(index: int) -> PatientWindows:
        asked.append(index)
        return patients[index]

    plan = StepPlan(clip_norm=C, noise_multiplier=1e-3, sampling_rate=1.0, public_patients=50)
    step = noisy_mean_step(PatientLoop(), mixer, 4, windows_of, losses, plan, SecureStream())
    assert asked == [0, 1, 2, 3]
    expected = PatientLoop().sum_of_clipped_gradients(mixer, patients, losses, C).total
    noise = {n: 50 * step.gradient[n].double() - expected[n] for n in expected}
    drawn = torch.cat([tensor.flatten() for tensor in noise.values()]).numpy()
    assert np.std(drawn) == pytest.approx(1e-3 * C, rel=0.1)
    assert all(torch.equal(step.private.total[n], expected[n]) for n in expected)
    assert repr(step.private) == "ClippedSum()"
    assert "private" not in repr(step)
    again = noisy_mean_step(PatientLoop(), mixer, 4, windows_of, losses, plan, SecureStream())
    assert not any(torch.equal(again.gradient[n], step.gradient[n]) for n in expected)


@pytest.mark.parametrize(
    "change",
    [
        {"clip_norm": 0.0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"public_patients": 0},
    ],
)
def test_a_plan_out_of_range_is_refused(change: dict[str, float]) -> None:
    values = {
        "clip_norm": C,
        "noise_multiplier": 1.0,
        "sampling_rate": 0.1,
        "public_patients": 10,
    }
    with pytest.raises(ValueError, match=next(iter(change))):
        StepPlan(**{**values, **change})  # type: ignore[arg-type]  # the wrong values are the point


def failing(error: Exception) -> RowLosses:
    """The loss of every patient but those whose target begins with a 7, at whom it fails."""

    def losses_of(mixer: Mixer, batch: Batch) -> torch.Tensor:
        if bool((batch.target[:, 0, 0, 0, 0] == 7).any()):
            raise error
        return losses(mixer, batch)

    return losses_of


@both_engines
@pytest.mark.parametrize("error", [RuntimeError("x"), torch.OutOfMemoryError(), MemoryError()])
def test_a_patient_whose_gradient_cannot_be_computed_adds_zeros(
    engine: GradientEngine, error: Exception
) -> None:
    mixer, patients = make_mixer("zrefine_lite"), cohort(2, 1.0, count=4)
    broken = make_patient(99, windows=2)
    broken[1].target[:, 0, 0, 0, 0] = 7
    mixed = [patients[0], broken, *patients[1:]]
    whole = engine.sum_of_clipped_gradients(mixer, mixed, failing(error), C)
    others = engine.sum_of_clipped_gradients(mixer, patients, losses, C)
    # nobody else's part changes by more than kernels round
    assert joint_norm(minus(whole.total, others.total)) <= C * engine.slack
    assert [math.isinf(norm) for norm in whole.norms].count(True) == 1
    assert len(whole.norms) == len(mixed)
    assert joint_norm(others.total) > 0.1


@both_engines
def test_a_patient_whose_windows_cannot_be_drawn_adds_zeros(engine: GradientEngine) -> None:
    mixer, patients = make_mixer("zrefine_lite"), cohort(2, 1.0, count=3)

    def windows_of(index: int) -> PatientWindows:
        if index == 1:
            raise OSError(5, "a disk that is gone")
        return patients[index]

    found = patient_sum(engine, mixer, 3, windows_of, losses, C, 1.0, SecureStream())
    others = engine.sum_of_clipped_gradients(mixer, [patients[0], patients[2]], losses, C)
    assert joint_norm(minus(found.total, others.total)) <= C * engine.slack


@both_engines
def test_what_is_wrong_with_the_loss_is_no_patient_s_fault(engine: GradientEngine) -> None:
    mixer = make_mixer("zrefine_lite")
    with pytest.raises(NotOfAPatientError):
        engine.sum_of_clipped_gradients(mixer, cohort(1, 1.0), lambda m, b: losses(m, b).mean(), C)
