"""Noise that is too small is found by what a release holds outside the canaries' span."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import Tensor

from lift.audit.canary import Canaries, audit_pipeline
from lift.audit.documents import TrainingAudit
from lift.audit.residual import LEVEL, NUMBERS, TOLD, ResidualNoise, residual_noise
from lift.audit.training import audit_training
from lift.config.plan import MixerKind
from lift.privacy.noise import SecureStream
from tests.lift.audit.test_canary import GENERATOR, PRIVACY, plan_of
from tests.lift.privacy.streams import KnownStream

Floats = NDArray[np.float64]
COUNT, PARAMETERS, STEPS = 20, 120, 5


class Part(KnownStream):
    """A stream whose noise is a part of what it should be."""

    __slots__ = ("part",)

    def __init__(self, seed: int, part: float) -> None:
        super().__init__(seed)
        self.part = part

    def normals(self, count: int) -> Floats:
        return self.part * super().normals(count)


def released(seed: int, part: float = 1.0, std: float = 0.3) -> tuple[list[Floats], Floats]:
    """What a pipeline would release: half of the canaries, and noise."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(COUNT, PARAMETERS))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    taken = rng.random(COUNT) < 0.5
    noise = rng.normal(0, part * std, (STEPS, PARAMETERS))
    return [directions[taken].sum(0) + one for one in noise], directions


def test_right_noise_is_refused_as_often_as_the_level_says() -> None:
    values = [residual_noise(*released(seed), 0.3).p_value for seed in range(2000)]
    assert kstest(values, "uniform").pvalue > 0.01
    # 2 expected
    assert sum(value < LEVEL for value in values) <= 8
    assert abs(sum(value < 0.1 for value in values) - 200) < 60


@pytest.mark.parametrize(("part", "least"), [(0.5, 1.0), (0.8, 0.99), (0.9, 0.4)])
def test_too_little_noise_is_refused(part: float, least: float) -> None:
    refused = [not residual_noise(*released(seed, part), 0.3).enough for seed in range(200)]
    assert np.mean(refused) >= least


def test_the_share_that_is_said_to_be_found_is_found() -> None:
    found = residual_noise(*released(0), 0.3)
    assert found.numbers == STEPS * (PARAMETERS - COUNT)
    assert found.steps == STEPS
    part = found.smallest_found
    assert 0.7 < part < 1
    told = [residual_noise(*released(seed, part), 0.3).p_value < TOLD for seed in range(500)]
    assert sum(told) >= 496
    # and not much less would do
    closer = (1 + part) / 2
    told = [residual_noise(*released(seed, closer), 0.3).p_value < TOLD for seed in range(100)]
    assert sum(told) < 50


def test_more_than_noise_outside_the_span_accuses_nobody() -> None:
    releases, directions = released(1)
    found = residual_noise([one + 0.2 for one in releases], directions, 0.3)
    assert found.ratio > 1
    assert found.enough


def test_the_measure_depends_on_no_scale_of_the_canaries() -> None:
    releases, directions = released(2)
    found = residual_noise(releases, directions, 0.3)
    twice = np.concatenate([directions * 5, directions[:3]])
    again = residual_noise(releases, twice, 0.3)
    assert again.numbers == found.numbers
    assert again.ratio == pytest.approx(found.ratio, rel=1e-9)


@pytest.mark.parametrize("noise_std", [0.0, -1.0, float("nan")])
def test_a_claim_without_noise_cannot_be_measured(noise_std: float) -> None:
    with pytest.raises(ValueError, match="positive standard deviation"):
        residual_noise(*released(3), noise_std)
    with pytest.raises(ValueError, match="spanned"):
        residual_noise([np.ones(4)], np.eye(4), 1.0)


CASES: list[tuple[str, MixerKind, str]] = [
    ("patient-local", "zrefine", "loop"),
    ("patient-central", "zrefine", "loop"),
    ("patient-local", "zrefine", "hooks"),
]


def audited(mode: str, kind: MixerKind, engine: str, stream: SecureStream) -> ResidualNoise | None:
    privacy = PRIVACY.model_copy(update={"mode": mode, "engine": engine})
    result = audit_training(plan_of(privacy, kind, rounds=4), GENERATOR, canaries=60, stream=stream)
    assert result.epsilon_lower_bound <= result.claimed_epsilon
    assert result.passed == (result.noise is not None and result.noise.enough)
    return result.noise


@pytest.mark.parametrize(("mode", "kind", "engine"), CASES)
def test_half_the_noise_is_refused_though_the_canaries_pass_it(
    mode: str, kind: MixerKind, engine: str
) -> None:
    for part in (0.5, 0.7):
        noise = audited(mode, kind, engine, Part(9, part))
        assert noise is not None
        assert not noise.enough
        assert noise.ratio == pytest.approx(part, rel=0.1)
        assert noise.p_value < 1e-5


@pytest.mark.parametrize(("mode", "kind", "engine"), CASES)
@pytest.mark.parametrize("part", [0.935, 0.95])
def test_a_few_percent_too_little_are_refused(
    mode: str, kind: MixerKind, engine: str, part: float
) -> None:
    noise = audited(mode, kind, engine, Part(11, part))
    assert noise is not None
    assert noise.numbers >= NUMBERS
    assert noise.p_value < TOLD
    assert not noise.enough
    assert 0.95 < noise.smallest_found < 0.96
    # more than the run has
    assert noise.steps > 4


@pytest.mark.parametrize(("mode", "kind", "engine"), CASES)
def test_more_noise_than_claimed_is_told_and_passes(
    mode: str, kind: MixerKind, engine: str
) -> None:
    noise = audited(mode, kind, engine, Part(12, 1.05))
    assert noise is not None
    assert noise.enough
    assert noise.more
    assert noise.ratio == pytest.approx(1.05, abs=0.03)
    assert "more than claimed" in document(noise).noise_seen
    usual = audited(mode, kind, engine, Part(12, 1.0))
    assert usual is not None
    assert not usual.more
    assert "more than claimed" not in document(usual).noise_seen


def document(noise: ResidualNoise) -> TrainingAudit:
    return TrainingAudit(
        plan_digest="0" * 64,
        audited="",
        steps=1,
        canaries=60,
        guesses=30,
        correct=15,
        confidence=0.95,
        delta=1e-5,
        claimed_epsilon=1.0,
        epsilon_lower_bound=0.0,
        noise_ratio=noise.ratio,
        noise_numbers=noise.numbers,
        noise_steps=noise.steps,
        noise_p_value=noise.p_value,
        noise_p_more=noise.p_more,
        noise_smallest_found=noise.smallest_found,
        passed=noise.enough,
        meaningful=True,
        statement="",
    )


@pytest.mark.parametrize(("mode", "kind", "engine"), CASES)
def test_the_training_that_runs_has_the_noise_that_it_claims(
    mode: str, kind: MixerKind, engine: str
) -> None:
    found = [audited(mode, kind, engine, KnownStream(100 * seed + 7)) for seed in range(3)]
    ratios = [noise.ratio for noise in found if noise is not None]
    assert len(ratios) == 3
    assert all(noise is not None and noise.enough for noise in found)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)


def test_noise_is_measured_where_nobody_but_canaries_takes_part() -> None:
    def never(patients: object) -> list[Mapping[str, Tensor]]:
        raise AssertionError(patients)

    nobody = Canaries(((),), np.eye(1), 1.0)
    with pytest.raises(ValueError, match="nobody but canaries"):
        audit_pipeline(
            never,
            nobody,
            what="test",
            claimed_epsilon=1.0,
            delta=1e-5,
            guess_in=1,
            noise_std=1.0,
            patients=[[]],
        )
