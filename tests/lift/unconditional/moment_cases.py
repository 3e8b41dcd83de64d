"""What the tests of trajectories' moments share: sums of cohorts, and the mapper of a Gaussian."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lift.config.plan import MapperPlan
from lift.mixer.gaussian import GaussianTrajectory
from lift.tasks.unconditional.moments import TrajectoryForm, TrajectorySums, patient_moments
from lift.wire.names import GAUSSIAN


def sums_of(patients: Iterable[Tensor], form: TrajectoryForm) -> TrajectorySums:
    """The moments of patients with one volume each."""
    return sum((patient_moments([one], form) for one in patients), start=TrajectorySums.zero(form))


def part(gaussian: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fitted Gaussian's tensors without their prefix."""
    return {name.removeprefix(GAUSSIAN): tensor for name, tensor in gaussian.items()}


def mapper_of(
    gaussian: Mapping[str, Tensor], form: TrajectoryForm, residual: MapperPlan | None = None
) -> GaussianTrajectory:
    """What draws from a fitted Gaussian."""
    mapper = GaussianTrajectory(
        form.positions, form.joint, form.tail, residual, form.rest, form.columns
    )
    mapper.load_gaussian(part(gaussian))
    return mapper
