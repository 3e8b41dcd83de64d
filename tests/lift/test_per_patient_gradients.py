"""Per-patient gradients under Opacus are those of one patient at a time, for every mixer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from lift.config.plan import MixerKind
from lift.mixer.base import Mixer, MixerInputs
from tests.lift.mixer_cases import KINDS, make_inputs, make_mixer, window

pytestmark = pytest.mark.filterwarnings(
    # a first layer has no input that needs a gradient; the hook's result is the same
    "ignore:Full backward hook is firing when gradients are computed:UserWarning"
)
DEPTHS = (6, 2, 4)


def loss(result: Tensor, inputs: MixerInputs) -> Tensor:
    """Summed over patients, and of another size for each: a mix-up of rows would show."""
    each = ((result - 0.3) * inputs.mask).square().flatten(1).sum(1)
    return (each * torch.arange(1, len(each) + 1)).sum()


def sampled(module: nn.Module, run: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """Opacus's gradient of every parameter by row of axis 0."""
    wrapped = GradSampleModule(module, loss_reduction="sum")
    torch.autograd.backward(run(wrapped))
    rows: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        given: object = vars(parameter)["grad_sample"]
        assert isinstance(given, Tensor)  # a list would be several batches, stacked
        rows[name] = given.clone()
    wrapped.to_standard_module()
    module.zero_grad()
    return rows


def one_by_one(mixer: Mixer, inputs: MixerInputs) -> dict[str, Tensor]:
    """The same by plain back-propagation, each patient alone and without padding."""
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in mixer.named_parameters()}
    for patient, depth in enumerate(DEPTHS):
        mixer.zero_grad()
        alone = window(inputs, 0, depth, patient)
        torch.autograd.backward((patient + 1) * loss(mixer(alone), alone))
        for name, parameter in mixer.named_parameters():
            assert parameter.grad is not None
            rows[name].append(parameter.grad.clone())
    mixer.zero_grad()
    return {name: torch.stack(parts) for name, parts in rows.items()}


def worst_error(rows: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest deviation of a patient's gradient, relative to that gradient's norm."""
    return max(
        float((got - row).norm() / row.norm())
        for name in expected
        for got, row in zip(rows[name], expected[name], strict=True)
        if row.norm() > 0
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_source", [1, 3])
def test_per_patient_gradients_are_those_of_one_patient_at_a_time(
    kind: MixerKind, n_source: int
) -> None:
    mixer = make_mixer(kind, n_source)
    inputs = make_inputs(DEPTHS, n_source=n_source, seed=7)
    expected = one_by_one(mixer, inputs)
    rows = sampled(mixer, lambda module: loss(module(inputs), inputs))
    assert set(rows) == set(mixer.values())
    assert {row.shape[0] for row in rows.values()} == {len(DEPTHS)}
    assert all(float(row.norm()) > 0 for row in expected.values())
    assert worst_error(rows, expected) < 1e-5


class Folded(nn.Module):
    """What must never be written: slices folded into the batch of a trainable layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x.flatten(0, 1))
        return result.view_as(x)


class Leaky(Mixer):
    """What must never be written: a weight that is also used outside its module."""

    kind = "control_2d"
    has_z_filter = False
    halo = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0), bias=False)

    def forward(self, inputs: MixerInputs) -> Tensor:
        x = (inputs.pred * inputs.mask).transpose(1, 2)
        result: Tensor = (self.conv(x) - x * self.conv.weight.sum()).transpose(1, 2)
        return inputs.pred + result * inputs.mask


def test_folding_slices_into_the_batch_would_show() -> None:
    x = make_inputs(DEPTHS).pred
    rows = sampled(Folded(), lambda module: module(x).square().sum())
    assert rows["conv.weight"].shape[0] == x.shape[0] * x.shape[1] != len(DEPTHS)


def test_a_weight_used_outside_its_module_would_show() -> None:
    inputs = make_inputs(DEPTHS)
    mixer = Leaky()
    rows = sampled(mixer, lambda module: loss(module(inputs), inputs))
    assert worst_error(rows, one_by_one(mixer, inputs)) > 1e-2
