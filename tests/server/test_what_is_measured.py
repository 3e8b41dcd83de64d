"""Under patient-level privacy no record says how large an answer was, or how long a round took."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lift.config.plan import FederationPlan, Plan, TaskPlan, TrainingPlan
from lift.config.privacy import NoPrivacy, PatientGradients
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
from lift.protocol.transport import Transport
from lift.records.run import RunRecord
from lift.report.read import Run as Report
from lift.report.record_tables import rounds_table
from lift.tracking.figures import round_figures
from lift_server.release.results import most_bytes
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.paired import PairedRun
from lift_server.watch.board import last_rounds
from lift_server.watch.live.exposition import exposition
from lift_server.watch.rounds_file import Rounds

CENTRAL = PatientGradients(
    mode="patient-central",
    delta=1e-4,
    public_patients=10,
    clip_norm=0.5,
    noise_multiplier=2.0,
    sampling_rate=0.25,
)
SITES = ("east", "west")
HEAD = "ab" * 32


def answer(request: Parcel) -> Parcel | Failure:
    """A site's answer: statistics without sums under noise, a sum or an update of zeros."""
    body = request.body
    if isinstance(body, StatisticsRequest):
        private = body.plan.protects_patients
        reply = StatisticsReply(
            plan_digest=body.plan.digest(),
            train_patients=10,
            validation_patients=0,
            test_patients=0,
            refused_volumes=0,
            lowest_slice_spacing_mm=None,
            highest_slice_spacing_mm=None,
            ledger_head=HEAD if private else None,
        )
        sums = {"z_filter_a": np.eye(6, dtype=np.int64), "z_filter_b": np.zeros(6, np.int64)}
        return Parcel(Kind.STATISTICS, reply, {} if private else sums)
    if isinstance(body, TrainRequest):
        train = TrainReply(
            plan_digest=body.plan_digest,
            round=body.round,
            loss=None,
            validation_psnr_db=None,
            ledger_head=body.known_head,
        )
        return Parcel(Kind.TRAIN, train, {"w": np.zeros(3, NUMBER[body.plan_digest])})
    return Failure(FailureKind.POLICY)


NUMBER: dict[str, str] = {}


def run(folder: Path, privacy: PatientGradients | NoPrivacy) -> Rounds:
    plan = Plan(
        task=TaskPlan(source=("t1n",), target="t2f"),
        training=TrainingPlan(steps=1),
        federation=FederationPlan(rounds=2),
        privacy=privacy,
    )
    NUMBER[plan.digest()] = "int64" if plan.protects_patients else "float32"

    def main(transport: Transport) -> None:
        run_rounds(
            plan,
            transport,
            RunStore(folder, plan.digest()),
            PairedRun(plan, lambda taps: {"w": torch.zeros(3)}),
            roster=lambda: SITES,
            with_guard=False,
        )

    run_in_process(main, dict.fromkeys(SITES, answer))
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    store = RunStore(folder, plan.digest())
    store.resume()
    assert len(lines) == len(store.records) == 3
    return Rounds(tuple(store.records))


@pytest.mark.parametrize(("privacy", "told"), [(CENTRAL, False), (NoPrivacy(mode="none"), True)])
def test_sizes_and_seconds_are_on_record_only_where_no_mode_protects_patients(
    tmp_path: Path, privacy: PatientGradients | NoPrivacy, told: bool
) -> None:
    rounds = run(tmp_path, privacy)
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [bool(line["bytes"]) for line in lines] == [told] * 3
    assert [line["seconds"] is not None for line in lines] == [told] * 3

    # whatever is made of the record
    tags = {tag for line in rounds.lines for tag in round_figures(line)}
    assert any("bytes" in tag or "seconds" in tag for tag in tags) is told
    sites = {
        name: {"received_bytes": tally.received_bytes} for name, tally in rounds.tallies.items()
    }
    metrics = exposition({"sites": sites}, rounds.lines)
    assert bool(re.search("lift_site_received_bytes|lift_last_round_duration", metrics)) is told
    assert (most_bytes(rounds.lines, "train") is not None) is told
    assert last_rounds(rounds.lines) is not None
    record = RunRecord(name="trial", phantom=False, plan={})
    table = rounds_table(
        Report(record, rounds.lines, last_line_lost=False, metrics=None, patients=())
    )
    assert bool(re.search("bytes|time \\(s\\)", table)) is told
