"""Bytes of an update, and the overhead of a simulated round without any training."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from lift.config.plan import FederationPlan, Plan
from lift.protocol.flower.in_process import run_in_process
from lift.protocol.messages import (
    Failure,
    FailureKind,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
)
from lift.protocol.transport import SiteHandler, Transport
from lift.records.rounds import RoundRecord
from lift.wire.names import Z_FILTER_SUMS
from lift_benchmarks.bench.example import example_generator, example_plan
from lift_benchmarks.bench.figure import Figure
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.registry import run_task

_ROUNDS = 6
_SITES = (3, 50, 200)
_BOUNDS = {3: "<= 0.1", 200: "<= 5"}


def federation_figures() -> list[Figure]:
    """Update bytes in full and half precision; seconds a round for 3, 50 and 200 sites."""
    figures = []
    for dtype, name, bound in (
        ("float32", "update_bytes", "<= 25000"),
        ("float16", "update_bytes_half", "<= 12500"),
    ):
        largest = max(max(_sizes(record)) for record in _run(3, dtype).records)
        figures.append(
            Figure(
                name,
                float(largest),
                bound,
                f"bytes of one site's reply in one round as they cross Flower's wire format: "
                f"zrefine, 3 sources, 12-channel taps, {dtype}",
            )
        )
    for sites in _SITES:
        seconds = median(_run(sites, "float32").seconds)
        figures.append(
            Figure(
                f"simulated_round_overhead_s_{sites}",
                seconds,
                _BOUNDS.get(sites, ""),
                f"seconds of a round of {sites} simulated sites that do not train: messages, "
                "review, aggregation, checkpoint (median)",
            )
        )
    return figures


@dataclass(frozen=True)
class _Run:
    """Records of the training rounds, and the seconds between their ends."""

    records: list[RoundRecord]
    seconds: list[float]


def _run(sites: int, dtype: str) -> _Run:
    generator = example_generator(12, (1, 2, 4, 4))
    plan = example_plan().model_copy(
        update={
            "federation": FederationPlan.from_data(
                {"rounds": _ROUNDS, "update_dtype": dtype}, "bench"
            )
        }
    )
    records: list[RoundRecord] = []
    ends: list[float] = []

    def main(transport: Transport) -> None:
        with tempfile.TemporaryDirectory() as folder:
            finished = run_rounds(
                plan,
                transport,
                RunStore(Path(folder), plan.digest()),
                run_task(plan, generator),
                roster=lambda: names,
                on_round=lambda _: ends.append(perf_counter()),
                with_guard=False,
            )
            records.extend(finished.records[1:])

    names = [f"site-{i:03d}" for i in range(sites)]
    run_in_process(main, {name: idle_site(plan) for name in names})
    return _Run(records, [later - earlier for earlier, later in pairwise(ends)])


def idle_site(plan: Plan) -> SiteHandler:
    """A site that sends an update of random numbers at once."""
    digest = plan.digest()
    rng = np.random.default_rng(0)
    number = np.float16 if plan.federation.update_dtype == "float16" else np.float32

    def handle(request: Parcel) -> Parcel | Failure:
        body = request.body
        if isinstance(body, StatisticsRequest):
            reply = StatisticsReply(
                plan_digest=digest,
                train_patients=10,
                validation_patients=2,
                test_patients=2,
                refused_volumes=0,
                lowest_slice_spacing_mm=1.0,
                highest_slice_spacing_mm=1.0,
            )
            sums = dict(
                zip(Z_FILTER_SUMS, (np.eye(6, dtype=np.int64), np.zeros(6, np.int64)), strict=True)
            )
            return Parcel(Kind.STATISTICS, reply, sums)
        if isinstance(body, TrainRequest):
            update = {
                name: (rng.standard_normal(tensor.shape) * 1e-2).astype(number)
                for name, tensor in request.tensors.items()
            }
            train = TrainReply(
                plan_digest=digest, round=body.round, loss=1.0, validation_psnr_db=20.0
            )
            return Parcel(Kind.TRAIN, train, update)
        return Failure(FailureKind.PROTOCOL)

    return handle


def _sizes(record: RoundRecord) -> list[int]:
    return list(record.bytes.values())
