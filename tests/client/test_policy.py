"""The site's policy: what is beyond it is refused, key by key; what is at the limit is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lift.config.kit import Kit, TaskRule
from lift.config.plan import (
    FederationPlan,
    LossPlan,
    MixerPlan,
    Plan,
    SplitPlan,
    TaskPlan,
    TrainingPlan,
    UnconditionalPlan,
)
from lift.config.privacy import NoPrivacy, PatientGradients, StartRelease
from lift.config.simulation import SimulationConfig
from lift.config.site import PolicySettings
from lift.errors import NonFiniteUpdateError, PolicyError
from lift.mixer.base import FrozenParts
from lift.mixer.build import build_mixer
from lift.protocol.messages import Kind
from lift.wire.form import AnswerForm, Part, TensorForm
from lift.wire.groups import CURVES, UPDATE
from lift.wire.update import update_form
from lift_client.gate.policy import check_outgoing, check_plan, check_start

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


LOCAL = {"privacy_modes": ("patient-local",)}


def private(clip_norm: float, *, start: float = 0.1) -> PatientGradients:
    return PatientGradients(
        mode="patient-local",
        delta=1e-5,
        public_patients=10,
        clip_norm=clip_norm,
        noise_multiplier=2.0,
        sampling_rate=0.5,
        start=StartRelease(noise_multiplier=5.0, clip_norm=start),
    )


def answer(*, dtype: str = "float32", **shapes: tuple[int, ...]) -> AnswerForm:
    tensors = {name: TensorForm(dtype, shape) for name, shape in shapes.items()}
    return AnswerForm(Kind.TRAIN, (Part(UPDATE, tensors),))


def update(parameters: int) -> AnswerForm:
    return answer(w=(parameters,))


def changed(policy: PolicySettings = POLICY, **values: object) -> PolicySettings:
    return policy.model_copy(update=values)


def test_a_plan_at_every_limit_is_allowed() -> None:
    check_plan(PLAN, POLICY, KIT, forms=[update(1000)])
    check_plan(PLAN, POLICY, KIT)
    check_plan(PLAN, POLICY, KIT, forms=[answer(dtype="float16", w=(2000,))])


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
        ("site_styles", {"unconditional": UnconditionalPlan(site_styles=True)}, {}, 1),
        ("largest_update_bytes", {}, {}, 1001),
        ("largest_learning_rate", {"training": TrainingPlan(learning_rate=1.01)}, {}, 1),
        ("largest_weight_decay", {"training": TrainingPlan(weight_decay=2.0**13.5)}, {}, 1),
        ("largest_weight_decay", {"training": TrainingPlan(proximal=1.01)}, {}, 1),
        ("largest_gradient_clip", {"training": TrainingPlan(gradient_clip=1e30)}, {}, 1),
        ("largest_loss_weight", {"training": TrainingPlan(loss=LossPlan(scale=1e9))}, {}, 1),
        ("largest_loss_weight", {"training": TrainingPlan(loss=LossPlan(dz_weight=1e9))}, {}, 1),
        ("largest_clip_norm", {"privacy": private(1001.0)}, LOCAL, 1),
        ("least_clip_norm", {"privacy": private(2.5e-9)}, LOCAL, 1),
        ("least_clip_norm", {"privacy": private(0.1, start=1e-9)}, LOCAL, 1),
    ],
)
def test_each_offence_is_refused_by_its_key(
    key: str, plan: dict[str, Any], policy: dict[str, Any], parameters: int
) -> None:
    with pytest.raises(PolicyError) as caught:
        check_plan(PLAN.model_copy(update=plan), changed(**policy), KIT, forms=[update(parameters)])
    assert caught.value.where == f"policy.{key}"
    assert caught.value.seen.startswith(f"{key}: ")
    assert caught.value.remedy
    assert caught.value.exit_code == 7


PRESETS = [Path("configs/simulation.yaml"), *sorted(Path("configs/presets").glob("*.yaml"))]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_the_bounds_that_a_site_has_by_itself_admit_every_preset(preset: Path) -> None:
    plan = SimulationConfig.from_yaml(preset).plan
    kit = KIT.model_copy(
        update={
            "generator_fingerprint": "a" * 64,
            "task": TaskRule(source=plan.task.source, target=plan.task.target),
        }
    )
    allowed = PolicySettings(privacy_modes=("none", "patient-local", "patient-central"))
    known = plan.model_copy(update={"generator_fingerprint": "a" * 64})
    rounded = known.federation.model_copy(update={"patient_count_step": 5})
    check_plan(known.model_copy(update={"federation": rounded}), allowed, kit)


def test_a_round_starts_from_no_number_beyond_the_bound() -> None:
    small, shared = np.full(3, -1000.0, np.float32), np.full(3, 1e9, np.float32)
    check_start({"w": small, "shared/drifting_a": shared, "none": np.zeros(0)}, POLICY)
    for value in (1000.1, -1e30, np.inf):
        with pytest.raises(PolicyError) as caught:
            check_start({"v": small, "w": np.array([0.0, value], np.float32)}, POLICY)
        assert caught.value.where == "policy.largest_start_value"


def test_nothing_that_the_bounds_admit_overflows_half_precision() -> None:
    """A step moves a number by its decay, and by the learning rate at most (AdamW)."""
    policy = PolicySettings(privacy_modes=("none",))
    decayed = policy.largest_start_value * policy.largest_weight_decay
    moved = policy.largest_learning_rate * (decayed + policy.most_steps_per_round)
    assert moved < np.finfo(np.float16).max


def test_a_site_may_let_its_grey_scale_be_known() -> None:
    styled = PLAN.model_copy(update={"unconditional": UnconditionalPlan(site_styles=True)})
    check_plan(styled, changed(site_styles=True), KIT)
    silent = PLAN.model_copy(update={"unconditional": UnconditionalPlan()})
    check_plan(silent, POLICY, KIT)


def test_all_offences_are_named_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        check_plan(PLAN, changed(most_rounds=1, most_steps_per_round=1), KIT, forms=[update(1001)])
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
    form = update_form(mixer.values(), half)
    check_plan(half, policy, KIT, forms=[form])
    values = {name: tensor.half().numpy() for name, tensor in mixer.values().items()}
    check_outgoing(values, policy, form)
    with pytest.raises(PolicyError, match=f"{4 * count} bytes"):
        check_plan(PLAN, policy, KIT, forms=[update_form(mixer.values(), PLAN)])


def test_the_policys_own_lists_replace_the_kits() -> None:
    rule = TaskRule(source=("mr",), target="ct")
    policy = changed(tasks=(rule,), generators=("b" * 64,))
    plan = PLAN.model_copy(
        update={
            "task": TaskPlan(source=("mr",), target="ct"),
            "generator_fingerprint": "b" * 64,
        }
    )
    check_plan(plan, policy, KIT)


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


def test_an_answer_at_the_limit_may_leave() -> None:
    check_outgoing({"a": ones(500), "b": ones(500)}, POLICY, answer(a=(500,), b=(500,)))
    check_outgoing({}, POLICY, AnswerForm(Kind.GUARD, ()))


def test_an_answer_beyond_the_limit_may_not_leave() -> None:
    with pytest.raises(PolicyError, match="largest_update_bytes"):
        check_outgoing({"a": ones(1001)}, POLICY, answer(a=(1001,)))


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ones(2)},
        {"a": ones(2), "b": ones(3), "c": ones(1)},
        {"a": ones(2), "b": ones(3, 1)},
        {"a": ones(2), "c": ones(3)},
        {"a": ones(2), "b": ones(3, dtype="float64")},
        {"a": ones(2), "b": np.array(["a", "patient's", "name"], dtype=object)},
        {"a": ones(2), "b": np.array(["a", "patient's", "name"])},
        {"a": ones(2), "b": ones(3), "scan/of-the-patient": ones(2, 240, 240)},
        {"a": ones(2), "b": ones(3), "x" * 1000: ones(0)},
    ],
    ids=[
        "missing", "extra", "shape", "renamed", "format", "objects", "text", "scan", "long name",
    ],
)  # fmt: skip
def test_only_the_tensors_of_the_answer_may_leave(tensors: dict[str, np.ndarray]) -> None:
    form = answer(a=(2,), b=(3,))
    check_outgoing({"b": ones(3), "a": ones(2)}, POLICY, form)
    with pytest.raises(PolicyError, match="refuses to send") as caught:
        check_outgoing(tensors, POLICY, form)
    assert len(str(caught.value.where)) < 60


def test_tensors_that_belong_together_leave_together_or_not_at_all() -> None:
    sums = Part(CURVES, {n: TensorForm("int64", (2,)) for n in CURVES.tensors}, optional=True)
    form = AnswerForm(Kind.STATISTICS, (sums,))
    whole = {name: ones(2, dtype="int64") for name in CURVES.tensors}
    check_outgoing(whole, POLICY, form)
    check_outgoing({}, POLICY, form)
    with pytest.raises(PolicyError, match="missing"):
        check_outgoing({CURVES.tensors[0]: whole[CURVES.tensors[0]]}, POLICY, form)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_may_not_leave(number: float) -> None:
    tensors = {"a": ones(3), "b": np.array([0, number], np.float16)}
    parts = [Part(UPDATE, {n: TensorForm(t.dtype.name, t.shape)}) for n, t in tensors.items()]
    with pytest.raises(NonFiniteUpdateError) as caught:
        check_outgoing(tensors, POLICY, AnswerForm(Kind.TRAIN, tuple(parts)))
    assert caught.value.where == "tensors.b"


def sums(dtype: str = "float32", **shapes: tuple[int, ...]) -> AnswerForm:
    return replace(answer(dtype=dtype, **shapes), kind=Kind.STATISTICS)


def test_what_is_sent_once_has_a_bound_of_its_own() -> None:
    check_outgoing({"a": ones(1500)}, POLICY, sums(a=(1500,)))
    with pytest.raises(PolicyError, match="6004 bytes; at most 6000") as caught:
        check_outgoing({"a": ones(1501)}, POLICY, sums(a=(1501,)))
    assert caught.value.where == "policy.largest_statistics_bytes"
    with pytest.raises(PolicyError, match="6004 bytes; at most 6000"):
        check_plan(PLAN, POLICY, KIT, forms=[sums(a=(1501,))])
    # the control: in a round it is too large
    with pytest.raises(PolicyError) as caught:
        check_outgoing({"a": ones(1500)}, POLICY, answer(a=(1500,)))
    assert caught.value.where == "policy.largest_update_bytes"


def test_the_defaults_let_a_sketch_through_once_and_never_in_a_round() -> None:
    policy = PolicySettings(privacy_modes=("none",))
    # 24 positions of 258 latents and a length, 128 columns
    form = sums(dtype="int64", sketch=(24 * 259, 128))
    sketch = {"sketch": ones(24 * 259, 128, dtype="int64")}
    check_outgoing(sketch, policy, form)
    with pytest.raises(PolicyError, match="largest_update_bytes"):
        check_outgoing(sketch, policy, replace(form, kind=Kind.TRAIN))
