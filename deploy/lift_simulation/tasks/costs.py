"""What the rows of a run cost: parameters, bytes, seconds of training, and one prediction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from time import process_time
from typing import Final, TypedDict

from lift.cohort.preprocessing import Prepared
from lift.config.plan import Plan
from lift.config.simulation import RivalsSettings
from lift.generator.features import Person
from lift.generator.networks import FrozenGenerator
from lift.records.metrics import Cost, Costs
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.training import train_round
from lift_server.release.results import most_bytes
from lift_server.rounds.finished import FinishedRun
from lift_simulation.plain.cost import MIXER, NO_MIXER, THREE_PLANES, InferenceCost, inference_costs
from lift_simulation.plain.training import TrainedNetwork, build

_DIGITS: Final = 3


def row_costs(
    plan: Plan,
    generator: FrozenGenerator,
    bundle: Path,
    prepared: Prepared,
    finished: FinishedRun,
    patients: Sequence[Person],
    trained: Sequence[TrainedNetwork],
    settings: RivalsSettings,
    *,
    main: str,
    compared: Collection[str],
) -> Costs:
    """The costs of no mixer, of the run's mixer, and of what was compared with them.

    Args:
        plan: of the run.
        generator: frozen.
        bundle: its folder.
        prepared: the volume that is predicted.
        finished: the federated run.
        patients: training patients of one site, for the seconds of a site's training.
        trained: the plain networks.
        settings: of these.
        main: the row of the run's mixer.
        compared: rows that were asked for.
    """
    windows: dict[str, tuple[int, int, int] | None] = {NO_MIXER: None, MIXER: None}
    if THREE_PLANES in compared:
        windows[THREE_PLANES] = None
    for one in trained:
        windows[one.network] = settings.of(one.network).window
    measured = inference_costs(windows, prepared, plan, bundle)
    alone = measured[NO_MIXER]
    training_s = None
    if plan.privacy.mode == "none" and patients:
        training_s = round(_site_training_s(plan, generator, patients, alone), _DIGITS)
    rows = {
        NO_MIXER: Cost(parameters=0, **_inference(alone)),
        main: Cost(
            parameters=plan_mixer(plan, generator).parameter_count(),
            sent_bytes=most_bytes(finished.records, "train"),
            training_cpu_s=training_s,
            **_inference(measured[MIXER]),
        ),
    }
    if THREE_PLANES in compared:
        rows[THREE_PLANES] = Cost(parameters=0, **_inference(measured[THREE_PLANES]))
    for one in trained:
        network = build(one.network, len(plan.task.source), plan.seed)
        rows[one.row] = Cost(
            parameters=network.parameter_count(),
            sent_bytes=one.sent_bytes,
            training_cpu_s=round(one.training_cpu_s, _DIGITS),
            steps=one.steps,
            kept_steps=one.kept_steps,
            stopped=one.stopped,
            epsilon=one.epsilon,
            **_inference(measured[one.network]),
        )
    z, _, h, w = prepared.mask.shape
    return Costs(volume=(z, h, w), threads=plan.threads, rows=rows)


class _Inference(TypedDict):
    inference_s: float
    inference_flops: int
    one_pass_flops: int | None
    peak_mb: float | None


def _inference(cost: InferenceCost) -> _Inference:
    return {
        "inference_s": round(cost.seconds, _DIGITS),
        "inference_flops": cost.flops,
        "one_pass_flops": cost.one_pass_flops,
        "peak_mb": None if cost.peak_mb is None else round(cost.peak_mb, 1),
    }


def _site_training_s(
    plan: Plan, generator: FrozenGenerator, patients: Sequence[Person], alone: InferenceCost
) -> float:
    """Processor seconds of a site's part: the frozen features once, and one round times all."""
    mixer = plan_mixer(plan, generator)
    start = mixer.values()
    began = process_time()
    train_round(mixer, start, patients, plan, round_index=1, site="cost")
    round_s = process_time() - began
    return len(patients) * alone.cpu_s + plan.federation.rounds * round_s
