"""Federations of seconds that run on the CPU or on a fake CUDA device, and what they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lift.config.plan import Plan
from lift.config.site import MARK_FILE, SiteSettings
from lift.device import resolve_device
from lift.generator.base import Generator
from lift.protocol.flower.in_process import run_in_process
from lift.protocol.transport import Transport
from lift.records.rounds import RoundRecord
from lift.tasks.paired.building import start_values
from lift.tasks.paired.task import slice_generator
from lift.tasks.registry import load_generator, with_generator
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import plan_mapper
from lift_client.gate.cohort_ledger import begin
from lift_client.session import SiteSession
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.registry import run_task


@dataclass(frozen=True)
class Ran:
    """A federation that came to its end.

    Attributes:
        devices: where its generator and its trained parts were at the end.
        start: the numbers that the first round started from.
        finished: what the server holds.
        records: the lines of its rounds.
    """

    devices: frozenset[str]
    start: Mapping[str, Tensor]
    finished: FinishedRun
    records: tuple[RoundRecord, ...]

    @property
    def change(self) -> dict[str, NDArray[np.float32]]:
        """Trained numbers minus the numbers at the start."""
        return {name: (self.finished.mixer[name] - self.start[name]).numpy() for name in self.start}


def federate(
    folder: Path,
    bundle: Path,
    sites: Mapping[str, Path],
    plan: Plan,
    *,
    device: str = "auto",
    cache: Path | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> Ran:
    """All rounds of a plan in this process, as `lift-simulate` runs them.

    Args:
        folder: for what server and sites write.
        bundle: the frozen generator's.
        sites: SITE -> its data folder.
        plan: its generator's fingerprint is filled in.
        device: the sites' setting.
        cache: the sites' cache of features; None: each has its own in `folder`.
        report: of the sites, see `SiteSession`.
    """
    generator = load_generator(bundle, expected_fingerprint=None, device=resolve_device(device))
    whole = _of(generator, plan)
    sessions = {}
    for name, root in sites.items():
        settings = SiteSettings.from_data(
            {
                "name": name,
                "data": {"layout": "brats", "root": str(root)},
                "cache": {"folder": None if cache is None else str(cache)},
                "device": device,
                "budget": {
                    "epsilon": 1000.0,
                    "delta": 1e-3,
                    "mark": str(folder / name / MARK_FILE),
                },
            },
            "test",
        )
        (folder / name).mkdir(parents=True)
        begin(settings, folder / name)
        sessions[name] = SiteSession(settings, generator, folder / name, report=report)
    store = RunStore(folder, whole.digest())
    results: list[FinishedRun] = []

    def main(transport: Transport) -> None:
        task = run_task(whole, generator)
        results.append(run_rounds(whole, transport, store, task, roster=lambda: list(sites)))

    try:
        run_in_process(main, {name: session.handle for name, session in sessions.items()})
        parts = [session.work(whole).part.device for session in sessions.values()]
    finally:
        for session in sessions.values():
            session.close()
    devices = frozenset(str(device) for device in (generator.device, *parts))
    return Ran(devices, _start(generator, whole, results[0]), results[0], tuple(store.records))


def _of(generator: Generator, plan: Plan) -> Plan:
    return with_generator(plan, generator)


def _start(generator: Generator, plan: Plan, finished: FinishedRun) -> Mapping[str, Tensor]:
    if isinstance(generator, FrozenDecoder):
        return plan_mapper(plan, generator).values()
    return start_values(plan, slice_generator(plan, generator), finished.taps)
