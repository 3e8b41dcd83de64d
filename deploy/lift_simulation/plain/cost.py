"""What a prediction costs: seconds, operations and memory, measured in a process of its own.

FLOPs are counted by PyTorch's counter: 2 for a multiplication and an addition; convolutions and
products of matrices alone. Everything is measured on the CPU.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from lift.config.simulation import PlainNetworkName
from lift.process import keep_files_private, prepare_process
from lift.strict_json import parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lift.cohort.preprocessing import Prepared
    from lift.config.plan import Plan

NO_MIXER: Final = "no_mixer"
MIXER: Final = "mixer"
THREE_PLANES: Final = "three_planes"
_PLAIN: Final = get_args(PlainNetworkName)
_WARM: Final = (4, 32, 32)
_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class InferenceCost:
    """Of one volume.

    Attributes:
        seconds: wall time.
        cpu_s: of all threads.
        flops: as it is done.
        one_pass_flops: of a network that predicts in windows, in one pass; else None.
        peak_mb: above a process that holds the network and the volume; None where the system does
            not say.
    """

    seconds: float
    cpu_s: float
    flops: int
    one_pass_flops: int | None
    peak_mb: float | None


@dataclass(frozen=True)
class _Volume:
    """What inference reads of a prepared patient."""

    source: NDArray[np.float32]
    mask: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]


def inference_costs(
    windows: Mapping[str, tuple[int, int, int] | None], prepared: Prepared, plan: Plan, bundle: Path
) -> dict[str, InferenceCost]:
    """Measure some ways to predict one volume, one after the other.

    Args:
        windows: `NO_MIXER`, `MIXER`, `THREE_PLANES`, or the name of a plain network -> the window
            of a plain network.
        prepared: the volume.
        plan: of the run, for its mixer and its threads.
        bundle: folder of the generator.
    """
    from safetensors.numpy import save

    task = {
        "windows": windows,
        "plan": plan.model_dump(mode="json"),
        "bundle": str(bundle),
        "spacing_mm": prepared.spacing_mm,
    }
    tensors = {"source": prepared.source, "mask": prepared.mask}
    with tempfile.NamedTemporaryFile() as file:
        file.write(save(tensors, metadata={"task": json.dumps(task)}))
        file.flush()
        command = [sys.executable, "-m", "lift_simulation.plain.cost", file.name]
        # a fresh process: the peak of this one would hold every earlier training
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return {what: InferenceCost(**found) for what, found in parse_json(done.stdout).items()}


def main() -> None:
    """Measure in this process what the named file holds, and print it as JSON."""
    prepare_process()
    keep_files_private()
    # torch reads its environment when it is imported
    import safetensors

    from lift.config.plan import Plan
    from lift.device import fix_threads

    with safetensors.safe_open(sys.argv[1], framework="np") as stream:
        task = parse_json((stream.metadata() or {})["task"])
        source, mask = stream.get_tensor("source"), stream.get_tensor("mask")
    plan = Plan.from_data(task["plan"], "plan")
    fix_threads(plan.threads)
    volume = _Volume(source, mask, cast("tuple[float, float, float]", tuple(task["spacing_mm"])))
    costs = {
        what: asdict(_measured(volume, *_predictor(what, window, task["bundle"], plan)))
        for what, window in task["windows"].items()
    }
    sys.stdout.write(json.dumps(costs) + "\n")


def _measured(volume: _Volume, run: _Run, one_pass: _Count) -> InferenceCost:
    import numpy as np
    from torch.utils.flop_counter import FlopCounterMode

    z, h, w = _WARM
    small = _Volume(
        np.ascontiguousarray(volume.source[:z, :, :h, :w]),
        np.ones_like(volume.mask[:z, :, :h, :w]),
        volume.spacing_mm,
    )
    # what is imported and planned at first use is no part of a volume's cost
    run(small)
    base = _peak_mb_from_now()
    wall, cpu = perf_counter(), process_time()
    run(volume)
    seconds, cpu_s, peak = perf_counter() - wall, process_time() - cpu, _peak_mb()
    with FlopCounterMode(display=False) as counter:
        run(volume)
    return InferenceCost(
        seconds=seconds,
        cpu_s=cpu_s,
        flops=int(counter.get_total_flops()),
        one_pass_flops=one_pass(volume),
        peak_mb=None if peak is None or base is None else peak - base,
    )


_Run = Callable[[_Volume], object]
_Count = Callable[[_Volume], int | None]


def _predictor(
    what: str, window: Sequence[int] | None, bundle: str, plan: Plan
) -> tuple[_Run, _Count]:
    """What predicts a volume, and what counts one pass over it."""
    if what in _PLAIN and window is not None:
        z, h, w = window
        return _plain_predictor(cast("PlainNetworkName", what), (z, h, w), plan)
    from lift.device import resolve_device
    from lift.generator.blocks import generate_blocks
    from lift.generator.bundle import load_bundle
    from lift.tasks.paired.building import plan_mixer
    from lift.tasks.paired.synthesis import GeneratedStream, mix
    from lift_simulation.plain.planes import three_planes

    generator = load_bundle(
        Path(bundle),
        expected_fingerprint=plan.generator_fingerprint,
        device=resolve_device("cpu"),
    )
    mixer = plan_mixer(plan, generator)

    def alone(volume: _Volume) -> NDArray[np.float32]:
        import numpy as np

        blocks = generate_blocks(generator, volume, ())
        return np.concatenate([block.pred.numpy() for _, block in blocks])

    def mixed(volume: _Volume) -> object:
        # it reads the slices, their mask and their spacing, which are here
        return mix(mixer, GeneratedStream(cast("Prepared", volume), generator, mixer))

    def in_planes(volume: _Volume) -> object:
        return three_planes(generator, _features(volume, alone(volume)), volume.spacing_mm)

    runs: dict[str, _Run] = {NO_MIXER: alone, MIXER: mixed, THREE_PLANES: in_planes}
    return runs[what], lambda _: None


def _plain_predictor(
    name: PlainNetworkName, window: tuple[int, int, int], plan: Plan
) -> tuple[_Run, _Count]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lift_simulation.plain.networks import predict_in_windows, predict_window
    from lift_simulation.plain.training import OVERLAP, build

    network = build(name, len(plan.task.source), plan.seed)

    def in_windows(volume: _Volume) -> object:
        features = _features(volume, volume.mask)
        return predict_in_windows(network, features, window, overlap=OVERLAP)

    def one_pass(volume: _Volume) -> int:
        network.to("meta")
        source = torch.empty(1, *volume.source.shape, device="meta")
        mask = torch.empty(1, *volume.mask.shape, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            predict_window(network, source, mask)
        return int(counter.get_total_flops())

    return in_windows, one_pass


def _features(volume: _Volume, pred: NDArray[np.float32]) -> Any:
    import numpy as np

    from lift.generator.features import Features

    return Features(
        source=volume.source,
        pred=pred,
        target=None,
        mask=volume.mask.astype(np.uint8),
        taps={},
        pooled={},
        slice_spacing_mm=volume.spacing_mm[0],
    )


def _peak_mb_from_now() -> float | None:
    """Resident memory now, with which the peak begins anew; None where the system cannot."""
    if not _CLEAR.exists():
        return None
    # what earlier measurements have freed would hide what this one takes
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5", encoding="ascii")
    return _peak_mb()


def _peak_mb() -> float | None:
    """Largest resident memory of this process so far; that of its parent is not in it."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1e3
    return None


if __name__ == "__main__":
    main()
