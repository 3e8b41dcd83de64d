"""The clip to a multiple of the round's median norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift.config.plan import AggregationPlan, FederationPlan, Plan, TaskPlan, TrainingPlan
from lift.config.privacy import NoPrivacy, PatientGradients, SiteLevel
from lift.mixer.update import Values, norm
from lift_server.rounds.clipping import clip_to_median
from lift_server.rounds.updates import round_aggregation
from tests.lift.privacy.streams import KnownStream

LOCAL = PatientGradients(
    mode="patient-local",
    delta=1e-4,
    public_patients={"a": 3, "b": 30, "c": 30},
    clip_norm=0.5,
    noise_multiplier=2.0,
    sampling_rate=0.25,
)
norms = st.floats(1e-6, 1e6)


def update(length: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """An update of this norm."""
    made = np.random.default_rng(seed).standard_normal(7)
    made *= length / np.linalg.norm(made)
    return {"b": torch.from_numpy(made[:2]), "w": torch.from_numpy(made[2:])}


def updates(*lengths: float) -> dict[str, Values]:
    return {
        name: update(n, i) for i, (name, n) in enumerate(zip("abcdefgh", lengths, strict=False))
    }


@given(lengths=st.lists(norms, min_size=1, max_size=8), ratio=st.floats(1, 10))
def test_no_update_is_longer_than_the_multiple_of_the_lower_median(
    lengths: list[float], ratio: float
) -> None:
    clipped = clip_to_median(updates(*lengths), ratio)
    median = sorted(lengths)[(len(lengths) - 1) // 2]
    for site, length in zip("abcdefgh", lengths, strict=False):
        assert norm(clipped.updates[site]) == pytest.approx(min(length, ratio * median), rel=1e-9)
        assert clipped.norm_ratios[site] == pytest.approx(length / median, rel=1e-9)
        assert (site in clipped.factors) == (clipped.norm_ratios[site] > ratio)


def test_an_update_within_the_bound_keeps_its_bits_and_a_clipped_one_its_direction() -> None:
    sent = updates(1.0, 1.5, 1.9, 40.0)
    clipped = clip_to_median(sent, 2.0)
    assert list(clipped.factors) == ["d"]
    for site in "abc":
        assert clipped.updates[site] is sent[site]
    factor = clipped.factors["d"]
    assert factor == pytest.approx(2 * 1.5 / 40)
    for name, tensor in clipped.updates["d"].items():
        torch.testing.assert_close(tensor, sent["d"][name] * factor, rtol=1e-12, atol=0)


def test_the_order_of_the_sites_changes_no_bit() -> None:
    sent = updates(1.0, 9.0, 3.0, 40.0)
    one = clip_to_median(sent, 2.0)
    other = clip_to_median(dict(reversed(sent.items())), 2.0)
    assert one.norm_ratios == other.norm_ratios
    assert one.factors == other.factors
    assert one.distances == other.distances
    assert all(torch.equal(one.updates[s]["w"], other.updates[s]["w"]) for s in sent)


def test_of_two_the_smaller_is_the_reference_and_one_alone_is_never_clipped() -> None:
    assert clip_to_median(updates(1.0, 1000.0), 2.0).factors == pytest.approx({"b": 0.002})
    assert clip_to_median(updates(1000.0), 2.0).factors == {}


def test_a_site_that_sends_zeros_is_no_reference() -> None:
    assert clip_to_median(updates(0.0, 5.0), 2.0).factors == {}
    silent = clip_to_median(updates(0.0, 0.0), 2.0)
    assert (silent.norm_ratios, silent.factors, silent.distances) == ({}, {}, {})


def test_without_a_multiple_nobody_is_clipped_and_the_norms_are_told() -> None:
    clipped = clip_to_median(updates(1.0, 1.0, 1000.0), None)
    assert clipped.factors == {}
    assert clipped.norm_ratios == pytest.approx({"a": 1, "b": 1, "c": 1000})


def test_noise_of_a_site_with_few_public_patients_is_not_clipped() -> None:
    numbers = {"a": 3, "b": 30, "c": 30}
    sent = updates(10.0, 1.0, 1.0)
    assert clip_to_median(sent, 2.0).factors == pytest.approx({"a": 0.2})
    assert clip_to_median(sent, 2.0, numbers).factors == {}
    # one with many has no more room for it
    large = clip_to_median(updates(1.0, 10.0, 1.0), 2.0, numbers)
    assert large.factors == pytest.approx({"b": 0.2})


def test_the_odd_one_out_is_the_farthest_from_the_others_mean() -> None:
    honest = update(1.0)
    turned = {name: -tensor for name, tensor in honest.items()}
    clipped = clip_to_median({"a": honest, "b": honest, "c": turned}, 2.0)
    assert clipped.distances == pytest.approx({"a": 1, "b": 1, "c": 2})
    assert clip_to_median({"a": honest, "b": turned}, 2.0).distances == {}


def plan(privacy: PatientGradients | SiteLevel | NoPrivacy, **aggregation: float | None) -> Plan:
    return Plan(
        task=TaskPlan(source=("t1n",), target="t2f"),
        training=TrainingPlan(steps=1),
        federation=FederationPlan(rounds=3),
        aggregation=AggregationPlan(**aggregation),  # type: ignore[arg-type]
        privacy=privacy,
    )


@pytest.mark.parametrize("privacy", [NoPrivacy(mode="none"), LOCAL])
def test_the_mean_holds_the_clipped_update(privacy: PatientGradients | NoPrivacy) -> None:
    sent = {s: {"w": np.full(4, v, np.float32)} for s, v in {"a": 1, "b": 1, "c": 100}.items()}
    patients = {"a": 1, "b": 1, "c": 1}
    made = round_aggregation(plan(privacy), 3, KnownStream()).combine(sent, patients)
    assert made.update["w"].numpy() == pytest.approx(np.full(4, 4 / 3))
    assert made.told["clipped"] == pytest.approx({"c": 0.02})
    off = plan(privacy, largest_norm_ratio=None)
    free = round_aggregation(off, 3, KnownStream()).combine(sent, patients)
    assert free.update["w"].numpy() == pytest.approx(np.full(4, 102 / 3))
    assert free.told["clipped"] == {}


def test_honest_updates_give_the_bits_that_they_gave_without_the_clip() -> None:
    rng = np.random.default_rng(5)
    sent = {s: {"w": rng.standard_normal(50).astype(np.float32)} for s in "abc"}
    patients = {"a": 5, "b": 6, "c": 6}
    on, off = (
        round_aggregation(
            plan(NoPrivacy(mode="none"), largest_norm_ratio=ratio), 3, KnownStream()
        ).combine(sent, patients)
        for ratio in (2.0, None)
    )
    assert torch.equal(on.update["w"], off.update["w"])


def test_where_the_server_adds_the_noise_no_norm_is_told_and_the_bound_is_fixed() -> None:
    central = LOCAL.model_copy(update={"mode": "patient-central", "public_patients": 10})
    sums = {s: {"w": np.full(4, v, np.int64)} for s, v in {"a": 1, "b": 1, "c": 2**30}.items()}
    chosen = plan(central)
    made = round_aggregation(chosen, 3, KnownStream()).combine(sums, {})
    free = plan(central, largest_norm_ratio=None)
    unclipped = round_aggregation(free, 3, KnownStream()).combine(sums, {})
    assert made.told == {}
    assert torch.equal(made.update["w"], unclipped.update["w"])

    site = SiteLevel(mode="site", delta=1e-4, clip_norm=1.0, noise_multiplier=1e-9, forced=True)
    floats = {s: {"w": np.full(4, v, np.float32)} for s, v in {"a": 0.1, "b": 0.1, "c": 9}.items()}
    made = round_aggregation(plan(site), 3, KnownStream()).combine(floats, {})
    assert made.told == {}
    # 0.1, 0.1 and a vector of length 1: no median of theirs made it shorter
    assert made.update["w"].numpy() == pytest.approx(np.full(4, 0.7 / 3), rel=1e-3)


def test_a_plan_that_says_nothing_of_it_keeps_its_digest() -> None:
    quiet = plan(NoPrivacy(mode="none"))
    assert "largest_norm_ratio" not in quiet.model_dump(mode="json")["aggregation"]
    assert plan(NoPrivacy(mode="none"), largest_norm_ratio=2.0).digest() == quiet.digest()
    for change in ({"largest_norm_ratio": None}, {"fall_tolerance_db": None}):
        assert plan(NoPrivacy(mode="none"), **change).digest() != quiet.digest()
