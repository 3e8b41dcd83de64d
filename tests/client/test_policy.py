"""The site's policy: what is beyond it is refused, key by key; what is at the limit is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lift.config.kit import Kit, TaskRule
from lift.config.plan import FederationPlan, MixerPlan, Plan, SplitPlan, TaskPlan, TrainingPlan
from lift.config.privacy import NoPrivacy
from lift.config.site import PolicySettings
from lift.errors import NonFiniteUpdateError, PolicyError
from lift.mixer.base import FrozenParts
from lift.mixer.build import build_mixer
from lift_client.policy import check_outgoing, check_plan

KIT = Kit(
    federation="brains",
    site="north",
    address="lift.example.org:8443",
    ca_sha256="c" * 64,
    generator_fingerprint="a" * 64,
    task=TaskRule(source=("t1n", "t1c", "t2w"), target="t2f"),
)
PLAN = Plan(
    task=TaskPlan(source=("t1n", "t1c", "t2w"), target="t2f"),
    generator_fingerprint="a" * 64,
    training=TrainingPlan(steps=40),
    federation=FederationPlan(rounds=6),
    privacy=NoPrivacy(mode="none"),
)
POLICY = PolicySettings(
    privacy_modes=("none",),
    most_rounds=6,
    most_steps_per_round=40,
    least_patient_count_step=1,
    largest_update_bytes=4000,
    largest_statistics_bytes=6000,
)


def changed(policy: PolicySettings = POLICY, **values: object) -> PolicySettings:
    return policy.model_copy(update=values)


def test_a_plan_at_every_limit_is_allowed() -> None:
    check_plan(PLAN, POLICY, KIT, parameters=1000)
    check_plan(PLAN, POLICY, KIT, parameters=None)
    half = PLAN.model_copy(update={"federation": FederationPlan(rounds=6, update_dtype="float16")})
    check_plan(half, POLICY, KIT, parameters=2000)


@pytest.mark.parametrize(
    ("key", "plan", "policy", "parameters"),
    [
        ("tasks", {"task": TaskPlan(source=("t1c", "t1n", "t2w"), target="t2f")}, {}, 1),
        ("tasks", {"task": TaskPlan(source=("t1n", "t1c", "t2f"), target="t2w")}, {}, 1),
        ("tasks", {}, {"tasks": (TaskRule(source=("mr",), target="ct"),)}, 1),
        ("generators", {"generator_fingerprint": "b" * 64}, {}, 1),
        ("generators", {"generator_fingerprint": None}, {}, 1),
        ("generators", {}, {"generators": ("b" * 64,)}, 1),
        ("most_rounds", {"federation": FederationPlan(rounds=7)}, {}, 1),
        ("most_steps_per_round", {"training": TrainingPlan(steps=41)}, {}, 1),
        ("least_patient_count_step", {}, {"least_patient_count_step": 2}, 1),
        ("split", {"split": SplitPlan(held_out=("north/one",))}, {}, 1),
        ("privacy_modes", {}, {"privacy_modes": ("other",)}, 1),
        ("largest_update_bytes", {}, {}, 1001),
    ],
)
def test_each_offence_is_refused_by_its_key(
    key: str, plan: dict[str, Any], policy: dict[str, Any], parameters: int
) -> None:
    with pytest.raises(PolicyError) as caught:
        check_plan(PLAN.model_copy(update=plan), changed(**policy), KIT, parameters=parameters)
    assert caught.value.where == f"policy.{key}"
    assert caught.value.seen.startswith(f"{key}: ")
    assert caught.value.remedy
    assert caught.value.exit_code == 7


def test_all_offences_are_named_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        check_plan(PLAN, changed(most_rounds=1, most_steps_per_round=1), KIT, parameters=1001)
    assert caught.value.where == (
        "policy.most_rounds, policy.most_steps_per_round, policy.largest_update_bytes"
    )
    assert len(caught.value.seen.splitlines()) == 3


def test_the_default_lets_a_pyramid_of_400_000_numbers_through_in_half_precision() -> None:
    features = {"feat": 12, "enc0": 12}
    frozen = FrozenParts(features, dict.fromkeys(features, 1), n_source=3)
    mixer = build_mixer(MixerPlan(kind="pyramid", width=30), frozen, seed=0)
    policy = PolicySettings(privacy_modes=("none",), least_patient_count_step=1)
    count = mixer.parameter_count()
    assert 400_000 < count < 420_000
    half = PLAN.model_copy(
        update={"federation": PLAN.federation.model_copy(update={"update_dtype": "float16"})}
    )
    check_plan(half, policy, KIT, parameters=count)
    values = {name: tensor.half().numpy() for name, tensor in mixer.values().items()}
    check_outgoing(values, policy, expected={name: v.shape for name, v in values.items()})
    with pytest.raises(PolicyError, match=f"{4 * count} bytes"):
        check_plan(PLAN, policy, KIT, parameters=count)


def test_the_policys_own_lists_replace_the_kits() -> None:
    rule = TaskRule(source=("mr",), target="ct")
    policy = changed(tasks=(rule,), generators=("b" * 64,))
    plan = PLAN.model_copy(
        update={
            "task": TaskPlan(source=("mr",), target="ct"),
            "generator_fingerprint": "b" * 64,
        }
    )
    check_plan(plan, policy, KIT, parameters=None)


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


def test_an_answer_at_the_limit_may_leave() -> None:
    tensors = {"body.weight": ones(500), "z_filter_a": ones(250, dtype="int64")}
    check_outgoing(tensors, POLICY)
    check_outgoing(tensors, POLICY, expected={"body.weight": (500,), "z_filter_a": (250,)})
    check_outgoing({}, POLICY)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ones(1001)},
        {"a": ones(500), "b": ones(501)},
        {"a": ones(2, dtype="complex64")},
        {"a": ones(2, dtype="uint8")},
        {"a": np.array(["a patient's name"], dtype=object)},
        {"a": np.array(["a patient's name"])},
        {"a b": ones(1)},
        {"a\n": ones(1)},
        {"": ones(1)},
        {"x" * 129: ones(1)},
        {"a": ones(*[1] * 9)},
        {f"t{number}": ones(0) for number in range(4097)},
    ],
    ids=str,
)
def test_what_no_answer_holds_may_not_leave(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(PolicyError, match="refuses to send"):
        check_outgoing(tensors, POLICY)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ones(2)},
        {"a": ones(2), "b": ones(3), "c": ones(1)},
        {"a": ones(2), "b": ones(3, 1)},
        {"a": ones(2), "c": ones(3)},
    ],
    ids=["missing", "extra", "shape", "renamed"],
)
def test_only_the_expected_tensors_may_leave(tensors: dict[str, np.ndarray]) -> None:
    expected = {"a": (2,), "b": (3,)}
    check_outgoing({"b": ones(3), "a": ones(2)}, POLICY, expected=expected)
    with pytest.raises(PolicyError):
        check_outgoing(tensors, POLICY, expected=expected)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_may_not_leave(number: float) -> None:
    tensors = {"a": ones(3), "b": np.array([0, number], np.float16)}
    with pytest.raises(NonFiniteUpdateError) as caught:
        check_outgoing(tensors, POLICY)
    assert caught.value.where == "tensors.b"


def test_what_is_sent_once_has_a_bound_of_its_own() -> None:
    check_outgoing({"a": ones(1500)}, POLICY, once=True)
    with pytest.raises(PolicyError, match="6004 bytes; at most 6000") as caught:
        check_outgoing({"a": ones(1501)}, POLICY, once=True)
    assert caught.value.where == "policy.largest_statistics_bytes"
    # the control: in a round it is too large
    with pytest.raises(PolicyError) as caught:
        check_outgoing({"a": ones(1500)}, POLICY)
    assert caught.value.where == "policy.largest_update_bytes"


def test_the_defaults_let_a_sketch_through_once_and_never_in_a_round() -> None:
    policy = PolicySettings(privacy_modes=("none",))
    # 24 positions of 258 latents and a length, 128 columns
    sketch = {"trajectory_sketch": ones(24 * 259, 128, dtype="int64")}
    check_outgoing(sketch, policy, once=True)
    with pytest.raises(PolicyError, match="largest_update_bytes"):
        check_outgoing(sketch, policy)
