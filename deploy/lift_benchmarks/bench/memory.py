"""Peak memory of one streamed BraTS-size volume, in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys

from lift.process import keep_files_private, prepare_process
from lift_benchmarks.bench.figure import Figure


def memory_figures() -> list[Figure]:
    """Peak resident memory over the process with input, networks and result in place."""
    command = [sys.executable, "-m", "lift_benchmarks.bench.memory"]
    # a fresh process: the peak of this one would hold every earlier measurement
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return [
        Figure(
            "stream_peak_gb_over_base",
            float(done.stdout),
            "<= 0.5",
            "peak memory of synthesising 155x240x240 (U-Net w=32, zrefine), over the process "
            "that already holds packages, networks and the source slices",
        )
    ]


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure in this process and print gigabytes."""
    prepare_process()
    keep_files_private()
    # torch reads its environment when it is imported
    from lift.device import fix_threads
    from lift.tasks.paired.synthesis import GeneratedStream, mix
    from lift_benchmarks.bench.example import (
        BRATS_SIDE,
        BRATS_SLICES,
        example_generator,
        example_mixer,
        example_prepared,
    )

    fix_threads(2)
    generator = example_generator(32, (1, 2, 4, 8), "mask")
    mixer = example_mixer(generator)
    prepared = example_prepared((BRATS_SLICES, BRATS_SIDE, BRATS_SIDE))
    base = _peak_gb()
    mix(mixer, GeneratedStream(prepared, generator, mixer))
    sys.stdout.write(f"{_peak_gb() - base:.4f}\n")


if __name__ == "__main__":
    main()
