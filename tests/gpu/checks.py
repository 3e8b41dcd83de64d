"""What holds on every device: the tests assert it, and planted mistakes must break it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lift.config.plan import MixerKind, Plan
from lift.records.rounds import RoundRecord
from tests.end_to_end.tiny_run import PATIENTS, SOURCES, TARGET, TinyRun, changed
from tests.gpu.fake_cuda import Device, fake_cuda
from tests.gpu.world import Ran, federate

NEAR_DB = 0.05
"""A GPU computes features in float16 and trains in bfloat16."""
NEAR_LOSS = 0.01
LEAST_COSINE = 0.98
"""Of the whole run's change of the trained numbers, on both devices."""


def paired_plan(kind: MixerKind = "zrefine", **changes: object) -> Plan:
    """Two rounds; of its patients each site keeps two for validation."""
    data: dict[str, object] = {
        "task": {"source": list(SOURCES), "target": TARGET},
        # of five seeds the pyramid has .996 to .999 with four, and .963 with 3: a gradient near 0
        # may change its sign in bfloat16, and Adam's first steps are as long as any
        "seed": 4 if kind == "pyramid" else 3,
        "threads": 1,
        "mixer": {"kind": kind, "width": 4},
        "split": {"train": 0.4, "validation": 0.4},
        "training": {
            "steps": 3,
            "patients_per_step": 2,
            "window": [6, 16, 16],
            "warmup_steps": 1,
        },
        "federation": {"rounds": 2},
        "privacy": {"mode": "none"},
    }
    return Plan.from_data(changed(data, changes), "test")


def run_paired(folder: Path, tiny: TinyRun, plan: Plan, **options: Any) -> Ran:
    """A federation of the tiny run's sites."""
    return federate(folder, tiny.bundle, {s: tiny.site(s) for s in PATIENTS}, plan, **options)


def check_paired(
    folder: Path, tiny: TinyRun, kind: MixerKind = "zrefine", *, largest: int | None = None
) -> Device:
    """A federation on the device ends, and is that of the CPU; returns the device."""
    plan = paired_plan(kind)
    expected = run_paired(folder / "cpu", tiny, plan, device="cpu")
    with fake_cuda(largest=largest) as device:
        found = run_paired(folder / "gpu", tiny, plan)
    check_same(found, expected)
    return device


def check_same(found: Ran, expected: Ran) -> None:
    """One federation was on the device, the other was not, and both learned the same."""
    assert expected.devices == {"cpu"}
    assert found.devices == {"cuda:0"}, f"on {sorted(found.devices)}"
    assert len(found.records) == len(expected.records)
    for one, other in zip(found.records[1:], expected.records[1:], strict=True):
        check_figures(one, other, "loss", NEAR_LOSS)
        check_figures(one, other, "validation_psnr_db", NEAR_DB)
    assert cosine(found.change, expected.change) > LEAST_COSINE


def check_figures(one: RoundRecord, other: RoundRecord, figure: str, most: float) -> None:
    """A round's figure of every site differs by at most so much; none lacks or is infinite."""
    own, others = getattr(one, figure), getattr(other, figure)
    assert own.keys() == others.keys()
    for site, value in own.items():
        assert value is None or math.isfinite(value)
        assert value == others[site] or abs(value - others[site]) <= most, figure


def cosine(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> float:
    """Of two sets of arrays by name, each set as one long vector."""
    assert one.keys() == other.keys()
    rows = [
        np.concatenate([arrays[n].ravel() for n in one]).astype(float) for arrays in (one, other)
    ]
    return float(rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1]))


def check_no_read_between_steps(folder: Path, tiny: TinyRun) -> None:
    """From a round's first step to its last the host reads no number of the device.

    A read waits for all that the device has to do: it starves between the steps.
    """
    seen: list[tuple[str, int]] = []

    def report(what: str, step: int, total: int) -> None:
        seen.append((f"{what} {step}", sum(device.reads.values())))

    with fake_cuda() as device:
        run_paired(folder, tiny, paired_plan(), report=report)
    by_round = [reads for what, reads in seen if ": round" in what]
    assert len(by_round) % 3 == 0
    assert len(by_round) >= 12
    for first in range(0, len(by_round), 3):
        assert by_round[first] == by_round[first + 2], dict(device.reads)


def check_features_of_both_precisions(folder: Path, tiny: TinyRun) -> None:
    """A cache that a CPU has filled gives a GPU nothing, and the reverse."""
    plan, cache = paired_plan(), folder / "cache"
    run_paired(folder / "cpu", tiny, plan, device="cpu", cache=cache)
    entries = len(list(cache.iterdir()))
    with fake_cuda():
        shared = run_paired(folder / "gpu", tiny, plan, cache=cache)
        alone = run_paired(folder / "alone", tiny, plan)
    assert len(list(cache.iterdir())) == 2 * entries, "one precision's features stood for both"
    for name, tensor in alone.finished.mixer.items():
        assert np.array_equal(shared.finished.mixer[name].numpy(), tensor.numpy()), name
