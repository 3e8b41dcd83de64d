from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift.config.plan import AggregationPlan
from lift_server.rounds.aggregation import ServerState, mean_update, next_state, site_weights

counts = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=4), st.integers(1, 500), min_size=1, max_size=8
)


@given(patients=counts, share=st.floats(0.05, 1.0))
def test_site_weights_sum_to_one_and_none_passes_the_largest_share(
    patients: dict[str, int], share: float
) -> None:
    weights = site_weights(patients, AggregationPlan(largest_share=share))
    assert sum(weights.values()) == pytest.approx(1.0)
    assert max(weights.values()) <= max(share, 1 / len(patients)) * (1 + 1e-9)


@given(patients=counts)
def test_site_weights_without_a_cap_are_patient_shares(patients: dict[str, int]) -> None:
    weights = site_weights(patients, AggregationPlan(largest_share=1.0))
    total = sum(patients.values())
    # with one site the cap is moot; else the share of the patients, exactly FedAvg
    for site, n in patients.items():
        assert weights[site] == pytest.approx(n / total)


def test_capped_weight_goes_to_the_others_in_proportion() -> None:
    weights = site_weights({"a": 80, "b": 15, "c": 5}, AggregationPlan(largest_share=0.6))
    assert weights == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1})


@given(seed=st.integers(0, 2**16), order=st.permutations(["a", "b", "c", "d"]))
def test_mean_update_does_not_depend_on_the_order_of_answers(seed: int, order: list[str]) -> None:
    rng = torch.Generator().manual_seed(seed)
    updates = {site: {"w": torch.randn(5, generator=rng)} for site in "abcd"}
    weights = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    expected = mean_update(updates, weights)["w"]
    shuffled = mean_update({site: updates[site] for site in order}, weights)["w"]
    assert torch.equal(expected, shuffled)
    plain = sum(np.float64(weights[s]) * updates[s]["w"].numpy().astype(np.float64) for s in "abcd")
    np.testing.assert_allclose(expected.numpy(), plain, rtol=1e-12)


def test_equal_updates_average_to_that_update() -> None:
    update = {"w": torch.tensor([1.5, -2.0])}
    weights = site_weights({"a": 3, "b": 9}, AggregationPlan())
    assert torch.allclose(
        mean_update({"a": update, "b": update}, weights)["w"], update["w"].double()
    )


def test_momentum_accumulates_updates_as_fedavgm() -> None:
    plan = AggregationPlan(optimiser="momentum", momentum=0.5)
    state = ServerState({"w": torch.zeros(1)})
    one = {"w": torch.ones(1)}
    state = next_state(state, one, plan)
    state = next_state(state, one, plan)
    # steps 1 and 1 + 0.5
    assert state.mixer["w"].item() == pytest.approx(2.5)


def test_adam_takes_the_steps_of_algorithm_2_of_reddi() -> None:
    plan = AggregationPlan(optimiser="adam", learning_rate=0.1, momentum=0.9, second_momentum=0.99)
    state = next_state(ServerState({"w": torch.zeros(1)}), {"w": torch.full((1,), 0.2)}, plan)
    m = 0.1 * 0.2
    v = 0.99 * plan.epsilon**2 + 0.01 * 0.04
    assert state.mixer["w"].item() == pytest.approx(0.1 * m / (v**0.5 + plan.epsilon), rel=1e-6)


def test_average_starts_at_the_first_mixer_and_follows_it() -> None:
    plan = AggregationPlan(ema=0.5)
    state = next_state(ServerState({"w": torch.zeros(1)}), {"w": torch.ones(1)}, plan)
    assert state.released["w"].item() == 1.0
    state = next_state(state, {"w": torch.ones(1)}, plan)
    assert state.mixer["w"].item() == 2.0
    assert state.released["w"].item() == 1.5
