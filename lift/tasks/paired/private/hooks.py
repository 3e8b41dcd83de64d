"""Gradients by row with Opacus's hooks, and the refusal of unsupported layers.

A hook sees what goes in and out of one layer and takes axis 0 for the row. It is silently wrong
for a layer that pads by other means than zeros, for one whose axis 0 is something else (slices or
pixels folded into the batch), for a weight that is also used outside its layer, and for anything
that lets one row act on another. The first is refused by name, the second in every call by the
number of rows, and all of them by a trial on invented windows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from lift.errors import ConfigError
from lift.mixer.base import Mixer
from lift.one_patient import NotOfAPatientError
from lift.tasks.paired.private.patient_batches import RowLosses, invented_batch, one_row
from lift.tasks.paired.windows import Batch

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HOOKED: Final = (*_CONVOLUTIONS, nn.Linear, nn.LayerNorm, nn.GroupNorm)
_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS: Final = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_LEFT_BEHIND: Final = ("activations", "max_batch_len")
_TRIAL_ROWS: Final = 3
_TRIAL_SHIFT: Final = 0.1
_TRIAL_TOLERANCE: Final = 1e-3


def refuse_unsupported_layers(mixer: nn.Module, *, hooked: bool) -> None:
    """Refuse a mixer with a layer for which no clipping, or no hook, is right.

    Batch statistics are refused for either engine: they mix patients, and their running means
    keep a patient's data past the clip and the noise. In evaluation mode they are constants.

    Args:
        mixer: what is to be trained.
        hooked: whether hooks are to be used.

    Raises:
        ConfigError: names the layer.
    """
    for name, module in mixer.named_modules():
        label = f"layer '{name}' ({type(module).__name__})"
        if module.training and (
            isinstance(module, _BATCH_NORMS)
            or (isinstance(module, _INSTANCE_NORMS) and module.track_running_stats)
        ):
            raise ConfigError(
                "the mixer cannot be trained with differential privacy",
                where="mixer.kind",
                seen=f"{label} keeps statistics over patients, which clipping does not bound",
                remedy="Choose a mixer that normalises within a patient.",
            )
        if not hooked or not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        # a subclass may compute something else: its parent's hook would not know
        if type(module) not in _HOOKED:
            raise _refusal(f"{label} has no hook that was tried")
        if isinstance(module, _CONVOLUTIONS) and module.padding_mode != "zeros":
            raise _refusal(f"{label} pads by '{module.padding_mode}'; only zeros are right")


def hooked_gradients(mixer: Mixer, batch: Batch, losses: RowLosses) -> dict[str, Tensor]:
    """The gradient of each row's loss: trainable parameter -> (rows, *shape), on the CPU.

    The mixer, its mode and its parameters' `grad` are as before. A parameter that the loss does
    not reach has zeros.

    Raises:
        ConfigError: a parameter has another number of gradients than the batch has rows.
    """
    # imported here: it takes seconds, and only runs with these gradients need it
    from opacus.grad_sample import GradSampleModule

    trained = {name: p for name, p in sorted(mixer.named_parameters()) if p.requires_grad}
    before = {name: p.grad for name, p in trained.items()}
    wrapped = GradSampleModule(mixer, loss_reduction="sum", strict=True)
    try:
        for parameter in trained.values():
            parameter.grad = None
        with _training(mixer), torch.enable_grad(), warnings.catch_warnings():
            # a first layer's input needs no gradient: the hook's result is the same
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss = row_losses(mixer, batch, losses).sum()
            if loss.requires_grad:
                torch.autograd.backward(loss)
        return {name: _rows(name, p, len(batch.target)) for name, p in trained.items()}
    finally:
        wrapped.to_standard_module()
        # what a layer that the loss did not reach still holds is patients' data
        for module in mixer.modules():
            for left in _LEFT_BEHIND:
                vars(module).pop(left, None)
        for name, parameter in trained.items():
            parameter.grad = before[name]


def plain_gradient(mixer: Mixer, batch: Batch, losses: RowLosses) -> dict[str, Tensor]:
    """The gradient of the sum of the rows' losses: trainable parameter -> its shape, on the CPU.

    Parameters' `grad` is left alone. A parameter that the loss does not reach has zeros.
    """
    trained = {name: p for name, p in sorted(mixer.named_parameters()) if p.requires_grad}
    with torch.enable_grad():
        loss = row_losses(mixer, batch, losses).sum()
        if not loss.requires_grad:
            return {name: torch.zeros_like(p, device="cpu") for name, p in trained.items()}
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {
        name: (torch.zeros_like(p) if gradient is None else gradient).cpu()
        for (name, p), gradient in zip(trained.items(), gradients, strict=True)
    }


def row_losses(mixer: Mixer, batch: Batch, losses: RowLosses) -> Tensor:
    """`losses` of the batch, (rows,).

    Raises:
        NotOfAPatientError: it is not one number by row: a mean over the batch, say.
    """
    result = losses(mixer, batch)
    if result.shape != (len(batch.target),):
        raise NotOfAPatientError(
            f"one loss by row is needed (seen: {tuple(result.shape)} for {len(batch.target)} rows)"
        )
    return result


def refuse_mixed_rows(mixer: Mixer, like: Batch, losses: RowLosses) -> None:
    """Try the hooks on invented windows: each row must have the gradient that it has alone.

    This sees all that :mod:`lift.tasks.paired.private.hooks` warns of, in the mixer as in the loss.
    The trial takes of `like` only its shapes, so that its outcome says nothing of a patient. The
    parameters are moved a little, because a layer that starts at zero hides those before it;
    afterwards they are the same to the bit.

    Raises:
        ConfigError: a row's gradient depends on other rows, or the hooks miss a part of it.
    """
    batch = invented_batch(like, _TRIAL_ROWS)
    with _moved(mixer):
        rows = hooked_gradients(mixer, batch, losses)
        alone = [plain_gradient(mixer, one_row(batch, row), losses) for row in range(_TRIAL_ROWS)]
    for row, expected in enumerate(alone):
        whole = float(sum(gradient.double().square().sum() for gradient in expected.values()))
        for name, gradient in expected.items():
            error = float((rows[name][row].double() - gradient.double()).norm())
            allowed = float(gradient.double().norm()) + _TRIAL_TOLERANCE * whole**0.5
            if not error <= _TRIAL_TOLERANCE * allowed:
                raise _refusal(
                    f"on invented windows, the gradient of '{name}' by row is not that of the "
                    "row alone"
                )


def _rows(name: str, parameter: nn.Parameter, rows: int) -> Tensor:
    given: object = getattr(parameter, "grad_sample", None)
    if given is None and parameter.grad is None:
        return torch.zeros(rows, *parameter.shape)
    # a list would be several batches, none of them whole
    seen = len(given) if isinstance(given, Tensor) else "no number of"
    if not isinstance(given, Tensor) or seen != rows:
        raise _refusal(
            f"'{name}' has {seen} gradients for {rows} rows: its layer's axis 0 is not the patient"
        )
    return given.detach().cpu()


def _refusal(seen: str) -> ConfigError:
    return ConfigError(
        "the mixer's gradients by patient cannot be taken by hooks",
        where="mixer.kind",
        seen=seen,
        remedy="Use the patient loop, which is right for every mixer. Nothing was computed.",
    )


@contextmanager
def _training(mixer: nn.Module) -> Iterator[None]:
    """Training mode for the hooked layers, which compute the same in either; hooks need it."""
    changed = [m for m in mixer.modules() if type(m) in _HOOKED and not m.training]
    for module in changed:
        module.training = True
    try:
        yield
    finally:
        for module in changed:
            module.training = False


@contextmanager
def _moved(mixer: nn.Module) -> Iterator[None]:
    """Parameters moved at random, always by the same; restored to the bit."""
    random = torch.Generator().manual_seed(1)
    trained = [p for p in mixer.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in trained]
    try:
        with torch.no_grad():
            for parameter in trained:
                shift = torch.randn(parameter.shape, generator=random)
                parameter.add_(_TRIAL_SHIFT * shift.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(trained, kept, strict=True):
                parameter.copy_(values)
