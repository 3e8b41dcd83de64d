"""Two ways to sum clipped gradients of patients, and the noisy step with the sum.

The unit is the patient: the gradient that is clipped is that of the mean loss over all windows
of all the patient's volumes, not of a window or a slice.

:class:`PatientLoop` is right for every mixer and loss, and as fast or faster on a CPU (8 patients
with two windows of 10 x 48 x 48 each, default mixer, one thread: 0.4 s, hooks 2.5 s; with one
window 1.1 and 1.6 s). :class:`HookedGradients` pays where one row alone does not fill the device,
refuses what it cannot do, and checks the loop. Both normalise, pad and clip within a patient,
keep no patient's data from one call to the next, and leave the mixer's parameters and their
`grad` as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from lift.device import AtOnce
from lift.errors import ConfigError, DeviceMemoryError
from lift.mixer.base import Mixer
from lift.one_patient import NotOfAPatientError, of_one_patient
from lift.privacy.clipping import check_clip_norm, clip_gradient
from lift.privacy.noise import SecureStream, add_noise, poisson_sample
from lift.tasks.paired.private.hooks import (
    hooked_gradients,
    plain_gradient,
    refuse_mixed_rows,
    refuse_unsupported_layers,
)
from lift.tasks.paired.private.patient_batches import (
    PatientWindows,
    RowLosses,
    form,
    join_batches,
    joined_windows,
    row_count,
)
from lift.tasks.paired.windows import Batch

_ROWS_AT_ONCE: Final = 8
# of the mixer, the loss and the shapes of windows: the same for every patient
_OF_EVERYBODY: Final = (ConfigError, NotOfAPatientError)


@dataclass(frozen=True)
class ClippedSum:
    """What the patients of one step add up to, before noise. All of it is private, and not printed.

    Attributes:
        total: trainable parameter -> sum of clipped gradients, float64 on the CPU, names sorted.
        norms: each patient's norm before clipping, in the patients' order; inf where a gradient
            was not finite, or could not be computed, and counted as zero.
    """

    total: dict[str, Tensor] = field(repr=False)
    norms: tuple[float, ...] = field(repr=False)


class GradientEngine(Protocol):
    """What sums clipped gradients.

    Attributes:
        slack: what noise must cover beyond `clip_norm`, as a share of it; 0 for an engine whose
            bound is exact.
    """

    @property
    def slack(self) -> float:
        """See the class."""
        ...  # pragma: no cover

    def sum_of_clipped_gradients(
        self,
        mixer: Mixer,
        patients: Iterable[PatientWindows],
        losses: RowLosses,
        clip_norm: float,
    ) -> ClippedSum:
        """The sum over patients of their clipped gradients; zeros without a patient.

        With or without any one patient, the result differs by at most
        `clip_norm * (1 + slack)` in joint L2 norm.

        Args:
            mixer: what is trained, at the step's values; not changed.
            patients: windows by patient, taken one after the other. A patient without a window
                adds zero; so does one whose gradient cannot be computed, whatever the error.
            losses: loss of each row.
            clip_norm: C, 1e-20 to 1e20.

        Raises:
            ConfigError: the mixer is of a kind whose gradients would not be the patients'.
            NotOfAPatientError: the loss is not one number by row.
            ValueError: `clip_norm` is out of its range.
        """
        ...  # pragma: no cover


class PatientLoop:
    """One patient after the other: for every mixer and every loss, in the least memory.

    A patient's windows are run eight at a time at most, fewer where the device's memory is full.
    What a patient adds is computed from this patient alone, bit by bit.

    On a CPU, two windows by patient are cheaper than one: torch runs a dense 3D convolution of a
    single row by a slow kernel (108 ms for one window of 10 x 48 x 48, 53 ms for two; default
    mixer, one thread).
    """

    slack: Final = 0.0

    def sum_of_clipped_gradients(
        self,
        mixer: Mixer,
        patients: Iterable[PatientWindows],
        losses: RowLosses,
        clip_norm: float,
    ) -> ClippedSum:
        """See :meth:`GradientEngine.sum_of_clipped_gradients`."""
        refuse_unsupported_layers(mixer, hooked=False)
        total = _Total(mixer, clip_norm)
        for windows in patients:
            gradient = partial(_patient_gradient, mixer, windows, losses)
            total.add(of_one_patient(gradient, raised=_OF_EVERYBODY))
        return total.result()


class HookedGradients:
    """Several patients at once, by Opacus's hooks on the mixer's layers.

    Guarantees: before any patient's data is used, the mixer and the loss are tried on invented
    windows of the same shape (see :func:`refuse_mixed_rows`), once by mixer and shape; in every
    call each trainable parameter has one gradient by row, or the call is refused. Patients whose
    windows have different shapes go in batches of their own.

    Kernels may round a row differently beside other rows: one patient more moved the others'
    gradients by up to 2.3e-7 of their norm (measured over all mixers, batches of 7 and 8). `slack`
    covers 1e-6 for each of 1000 patients in a step.

    Args:
        rows_at_once: windows by batch, >= 1. The hooks hold every layer's input once for each
            number of its kernel: 30 MB by row of 10 x 48 x 48 voxels for the default mixer.
    """

    slack: Final = 1e-3

    def __init__(self, *, rows_at_once: int = _ROWS_AT_ONCE) -> None:
        if rows_at_once < 1:
            raise ValueError(f"rows_at_once must be at least 1 (seen: {rows_at_once})")
        self._rows_at_once = rows_at_once
        self._tried: tuple[nn.Module, RowLosses, set[Hashable]] | None = None

    def sum_of_clipped_gradients(
        self,
        mixer: Mixer,
        patients: Iterable[PatientWindows],
        losses: RowLosses,
        clip_norm: float,
    ) -> ClippedSum:
        """See :meth:`GradientEngine.sum_of_clipped_gradients`."""
        refuse_unsupported_layers(mixer, hooked=True)
        total = _Total(mixer, clip_norm)
        waiting: list[PatientWindows] = []
        for windows in patients:
            held = sum(row_count(each) for each in waiting)
            if waiting and held + row_count(windows) > self._rows_at_once:
                self._add(total, mixer, waiting, losses)
                waiting = []
            waiting.append(windows)
        self._add(total, mixer, waiting, losses)
        return total.result()

    def _add(
        self, total: _Total, mixer: Mixer, patients: Sequence[PatientWindows], losses: RowLosses
    ) -> None:
        """Add these patients, whose rows fit into memory together; where one fails, each alone."""
        gradients = of_one_patient(
            partial(self._gradients, mixer, patients, losses), raised=_OF_EVERYBODY
        )
        if gradients is None and len(patients) > 1:
            for windows in patients:
                self._add(total, mixer, [windows], losses)
            return
        for gradient in [None] if gradients is None else gradients:
            total.add(gradient)

    def _gradients(
        self, mixer: Mixer, patients: Sequence[PatientWindows], losses: RowLosses
    ) -> list[dict[str, Tensor]]:
        """Of each of these patients."""
        gradients = [zero_gradient(mixer) for _ in patients]
        by_form: dict[Hashable, list[tuple[int, Batch]]] = {}
        for patient, windows in enumerate(patients):
            for batch in windows:
                by_form.setdefault(form(batch), []).append((patient, batch))
        for given in by_form.values():
            self._try(mixer, given[0][1], losses)
            joined = join_batches([batch for _, batch in given])
            owner = [patient for patient, batch in given for _ in range(len(batch.target))]
            rows = hooked_gradients(mixer, joined, losses)
            for name, gradient in rows.items():
                for row, patient in zip(gradient.double(), owner, strict=True):
                    gradients[patient][name] += row / row_count(patients[patient])
        return gradients

    def _try(self, mixer: Mixer, batch: Batch, losses: RowLosses) -> None:
        """Try mixer, loss and shape on invented windows, unless that was done."""
        if self._tried is None or self._tried[0] is not mixer or self._tried[1] is not losses:
            self._tried = (mixer, losses, set())
        shapes = self._tried[2]
        if form(batch) not in shapes:
            refuse_mixed_rows(mixer, batch, losses)
            shapes.add(form(batch))


@dataclass(frozen=True)
class NoisyMean:
    """One step's noisy gradient, and what stays at the site.

    Attributes:
        gradient: trainable parameter -> noisy mean gradient, float32, names sorted. It may be
            used and sent at the price of the step.
        private: the sum before noise with its norms; never sent, nor the number of its patients.
    """

    gradient: dict[str, Tensor]
    private: ClippedSum = field(repr=False)


@dataclass(frozen=True)
class StepPlan:
    """The public numbers of every step of a run.

    Attributes:
        clip_norm: bound on one patient's gradient, 1e-20 to 1e20.
        noise_multiplier: `noise_std` over one patient's largest influence, > 0.
        sampling_rate: each patient's probability to take part in a step, above 0, at most 1.
        public_patients: number of patients that the divisor is made of, >= 1; public, and so
            never the cohort's own changing count.

    Raises:
        ValueError: a number is out of its range.
    """

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    public_patients: int

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)
        if not 0 < self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be above 0 (seen: {self.noise_multiplier})")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in (0, 1] (seen: {self.sampling_rate})")
        if self.public_patients < 1:
            raise ValueError(f"public_patients must be at least 1 (seen: {self.public_patients})")

    @property
    def expected_patients(self) -> float:
        """The divisor: patients that a step has on average, by public numbers alone."""
        return self.sampling_rate * self.public_patients


def noisy_mean_step(
    engine: GradientEngine,
    mixer: Mixer,
    patients: int,
    windows_of: Callable[[int], PatientWindows],
    losses: RowLosses,
    plan: StepPlan,
    stream: SecureStream,
) -> NoisyMean:
    """The noisy mean gradient of one DP-SGD step; what the optimiser does with it is free.

    Poisson sample -> sum of clipped gradients -> Gaussian noise -> division by the public
    expected number of patients. An empty sample gives noise alone, and is a step like any other:
    nothing is redrawn, padded or dropped.

    Guarantee: one step of the Poisson-subsampled Gaussian mechanism with `noise_multiplier` and
    `sampling_rate` under the relation add/remove one patient, provided that `windows_of` keeps
    its promise.

    Args:
        engine: how clipped gradients are summed.
        mixer: at the step's values; not changed.
        patients: patients of the cohort (private).
        windows_of: a sampled patient's windows. They may depend on this patient and on random
            numbers of this patient's own (seeded by its id, say). Were they drawn from one
            generator for all, a patient more would move every later patient's windows, and
            clipping would bound nothing against one who knows the seed.
        losses: loss of each row.
        plan: the public numbers.
        stream: source of the mask and of the noise.

    Raises:
        ConfigError: the engine refuses the mixer.

    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1.
    """
    private = patient_sum(
        engine, mixer, patients, windows_of, losses, plan.clip_norm, plan.sampling_rate, stream
    )
    noise_std = plan.noise_multiplier * plan.clip_norm * (1 + engine.slack)
    noisy = add_noise(private.total, noise_std, stream)
    gradient = {name: tensor / plan.expected_patients for name, tensor in noisy.items()}
    return NoisyMean(gradient, private)


def patient_sum(
    engine: GradientEngine,
    mixer: Mixer,
    patients: int,
    windows_of: Callable[[int], PatientWindows],
    losses: RowLosses,
    clip_norm: float,
    sampling_rate: float,
    stream: SecureStream,
) -> ClippedSum:
    """The clipped gradients of a Poisson sample, summed, without noise; see `noisy_mean_step`.

    A patient whose windows cannot be drawn has none, and adds zero.
    """
    chosen = poisson_sample(patients, sampling_rate, stream)
    windows = (of_one_patient(partial(windows_of, int(index))) or () for index in chosen)
    return engine.sum_of_clipped_gradients(mixer, windows, losses, clip_norm)


def zero_gradient(mixer: nn.Module) -> dict[str, Tensor]:
    """Float64 zeros on the CPU for every trainable parameter, names sorted."""
    shapes = {name: p.shape for name, p in mixer.named_parameters() if p.requires_grad}
    return {name: torch.zeros(shapes[name], dtype=torch.float64) for name in sorted(shapes)}


def _patient_gradient(
    mixer: Mixer, windows: PatientWindows, losses: RowLosses
) -> dict[str, Tensor]:
    """The gradient of the mean loss over one patient's windows.

    Raises:
        MemoryError: one window does not fit into the device's memory. It is the patient's own
            error, as any other: the settings' would end the round.
    """

    def computed(rows: int) -> dict[str, Tensor]:
        gradient = zero_gradient(mixer)
        for batch in joined_windows(windows, rows):
            for name, part in plain_gradient(mixer, batch, losses).items():
                gradient[name] += part.double() / row_count(windows)
        return gradient

    try:
        # anew for each patient, whose rounding must not tell of another's size
        return AtOnce(_ROWS_AT_ONCE, mixer.device, "training.window").attempt(computed)
    except DeviceMemoryError as error:
        raise MemoryError(str(error)) from None


class _Total:
    """A running sum of clipped gradients."""

    def __init__(self, mixer: nn.Module, clip_norm: float) -> None:
        check_clip_norm(clip_norm)
        self._clip_norm = clip_norm
        self._sum = zero_gradient(mixer)
        self._norms: list[float] = []

    def add(self, gradient: dict[str, Tensor] | None) -> None:
        """Clip one patient's gradient and add it; None adds zero."""
        if gradient is None:
            self._norms.append(math.inf)
            return
        clipped = clip_gradient(gradient, self._clip_norm)
        for name, values in clipped.values.items():
            self._sum[name] += values.double()
        self._norms.append(clipped.norm)

    def result(self) -> ClippedSum:
        """The sum so far."""
        return ClippedSum(self._sum, tuple(self._norms))
