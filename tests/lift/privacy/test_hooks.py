"""What hooks get wrong is refused, by name, by count or by trial; the loop gets it right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lift.errors import ConfigError
from lift.mixer.base import Mixer, MixerInputs
from lift.tasks.paired.private.engines import GradientEngine, HookedGradients, PatientLoop
from lift.tasks.paired.private.hooks import hooked_gradients
from lift.tasks.paired.private.patient_batches import invented_batch
from lift.tasks.paired.windows import Batch
from tests.lift.mixer_cases import make_mixer
from tests.lift.privacy.patients import (
    SLICES,
    C,
    cohort,
    influences,
    joint_norm,
    losses,
    make_batch,
    minus,
)

both_engines = pytest.mark.parametrize("engine", [PatientLoop(), HookedGradients()])


class Broken(Mixer):
    """A mixer around one layer."""

    kind = "control_2d"
    has_z_filter = False
    halo = 0

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: MixerInputs) -> Tensor:
        x = inputs.pred.transpose(1, 2)
        return inputs.pred + self.corrected(x).transpose(1, 2) * inputs.mask

    def corrected(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


class FoldedPixels(Broken):
    """Rows and columns in the batch."""

    def corrected(self, x: Tensor) -> Tensor:
        b, c, z, h, w = x.shape
        columns = x.permute(0, 3, 4, 1, 2).reshape(b * h * w, c, z)
        result: Tensor = self.layer(columns).view(b, h, w, c, z)
        return result.permute(0, 3, 4, 1, 2)


class FoldedSlices(Broken):
    """Slices in the batch."""

    def corrected(self, x: Tensor) -> Tensor:
        b, c, z, h, w = x.shape
        result: Tensor = self.layer(x.transpose(1, 2).reshape(b * z, c, h, w))
        return result.view(b, z, c, h, w).transpose(1, 2)


class UsedOutside(Broken):
    """A weight that is also used outside its layer."""

    def corrected(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        result: Tensor = self.layer(x) - x * weight.sum()
        return result


class AcrossPatients(Broken):
    """A layer that is right, between patients that are not apart."""

    def corrected(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x - x.mean(0))
        return result


class RowParameter(Broken):
    """A parameter of its own, without a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.scale = nn.Parameter(torch.ones(1))

    def corrected(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) * self.scale
        return result


class OwnLinear(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the parent's name
        return super().forward(input) + self.weight.sum()


def plain_conv(padding_mode: str = "zeros") -> nn.Conv3d:
    return nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0), padding_mode=padding_mode)  # type: ignore[arg-type]  # a literal


@pytest.mark.parametrize(
    ("mixer", "reason"),
    [
        (FoldedPixels(nn.Conv1d(1, 1, 3, padding=1)), "axis 0 is not the patient"),
        (FoldedSlices(nn.Conv2d(1, 1, 3, padding=1)), "axis 0 is not the patient"),
        (UsedOutside(nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0), bias=False)), "row alone"),
        (AcrossPatients(plain_conv()), "row alone"),
        (Broken(plain_conv("replicate")), "'replicate'"),
        (Broken(plain_conv("circular")), "'circular'"),
        (Broken(nn.ConvTranspose3d(1, 1, 1)), "ConvTranspose3d"),
        (Broken(OwnLinear(8, 8)), "OwnLinear"),
        (RowParameter(plain_conv()), "RowParameter"),
        (Broken(nn.Sequential(plain_conv(), nn.BatchNorm3d(1, affine=False).eval())), None),
        (Broken(nn.Sequential(plain_conv(), nn.GroupNorm(1, 1))), None),
        (Broken(nn.Sequential(plain_conv(), nn.LayerNorm([5, 8, 8]))), None),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, nn.Module) else None,
)
def test_what_hooks_get_wrong_is_refused_and_the_loop_gets_right(
    mixer: Mixer, reason: str | None
) -> None:
    patients = cohort(1, 1.0)
    engine = HookedGradients()
    if reason is None:
        joined = engine.sum_of_clipped_gradients(mixer, patients, losses, C).total
        looped = PatientLoop().sum_of_clipped_gradients(mixer, patients, losses, C).total
        assert joint_norm(minus(joined, looped)) < 1e-5 * C
        return
    with pytest.raises(ConfigError, match=reason) as refusal:
        engine.sum_of_clipped_gradients(mixer, patients, losses, C)
    assert "patient loop" in refusal.value.remedy
    assert max(influences(PatientLoop(), mixer, patients)) <= 1.0


@both_engines
@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm3d(1),
        nn.BatchNorm3d(1, affine=False, track_running_stats=False),
        nn.InstanceNorm3d(1, track_running_stats=True),
    ],
)
def test_statistics_over_patients_are_refused(layer: nn.Module, engine: GradientEngine) -> None:
    mixer = Broken(nn.Sequential(plain_conv(), layer))
    before = {name: buffer.clone() for name, buffer in mixer.named_buffers()}
    with pytest.raises(ConfigError, match="statistics over patients"):
        engine.sum_of_clipped_gradients(mixer, cohort(1, 1.0), losses, C)
    assert all(torch.equal(before[name], buffer) for name, buffer in mixer.named_buffers())


def test_a_loss_that_mixes_patients_is_refused_by_the_hooks() -> None:
    def mixing(mixer: Mixer, batch: Batch) -> Tensor:
        each = losses(mixer, batch)
        return each * each.mean()

    def averaged(mixer: Mixer, batch: Batch) -> Tensor:
        return losses(mixer, batch).mean()

    mixer = make_mixer("zrefine_lite")
    with pytest.raises(ConfigError, match="row alone"):
        HookedGradients().sum_of_clipped_gradients(mixer, cohort(1, 1.0), mixing, C)
    for engine in (PatientLoop(), HookedGradients()):
        with pytest.raises(ValueError, match="one loss by row"):
            engine.sum_of_clipped_gradients(mixer, cohort(1, 1.0), averaged, C)


def test_the_trial_sees_through_layers_that_start_at_zero() -> None:
    mixer = UsedOutside(nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0), bias=False))
    gate = nn.Conv3d(1, 1, 1, bias=False)
    nn.init.zeros_(gate.weight)

    class Gated(Broken):
        def corrected(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(mixer.corrected(x))
            return result

    gated = Gated(gate)
    gated.inner = mixer.layer
    with pytest.raises(ConfigError, match="row alone"):
        HookedGradients().sum_of_clipped_gradients(gated, cohort(1, 1.0), losses, C)
    assert float(gate.weight.detach().abs().sum()) == 0.0


def test_rows_of_a_layer_that_folds_are_counted_in_every_call() -> None:
    mixer = FoldedSlices(nn.Conv2d(1, 1, 3, padding=1))
    with pytest.raises(ConfigError, match="10 gradients for 2 rows"):
        hooked_gradients(mixer, make_batch([4, 5]), losses)
    # and nothing is left behind by the refusal
    assert not any(vars(parameter) for parameter in mixer.parameters())


def test_a_trial_takes_nothing_of_a_patient_but_shapes() -> None:
    first, second = (
        invented_batch(make_batch([4], seed=seed, scale=scale), 3)
        for seed, scale in ((1, 1.0), (5, 1e6))
    )
    pairs = [
        (first.target, second.target),
        (first.inputs.source, second.inputs.source),
        (first.inputs.pred, second.inputs.pred),
        (first.inputs.mask, second.inputs.mask),
        (first.inputs.depth, second.inputs.depth),
        (first.inputs.start, second.inputs.start),
        (first.inputs.slice_spacing_mm, second.inputs.slice_spacing_mm),
        *((tap, second.inputs.taps[name]) for name, tap in first.inputs.taps.items()),
    ]
    assert all(torch.equal(one, other) for one, other in pairs)
    assert first.inputs.depth.tolist() == [SLICES, SLICES - 1, SLICES]
    assert first.inputs.mask.flatten(2).amin(2).sum(1).tolist() == first.inputs.depth.tolist()
