"""Sizes of what is measured: those of BraTS, or tiny ones with which the script is tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lift_benchmarks.bench.example import BRATS_SIDE, BRATS_SLICES


@dataclass(frozen=True)
class Sizes:
    """See the module.

    Attributes:
        name: in the result.
        shape: slices, rows and columns of a volume.
        network: width and multipliers of the generator of the volumes.
        cached: the same of the generator whose features are cached.
        blocks: slices that go through the generator at once; None: the whole volume.
        patients: of a round.
        distinct: of them have files of their own; the others are these again.
        steps: of a round.
        window: of a training step.
        matrix: side of the matrices of the roof.
        copied_bytes: of the roof's copy.
        phantom_mm: side of a pixel of the phantom patients.
    """

    name: str
    shape: tuple[int, int, int]
    network: tuple[int, tuple[int, ...]]
    cached: tuple[int, tuple[int, ...]]
    blocks: tuple[int | None, ...]
    patients: int
    distinct: int
    steps: int
    window: tuple[int, int, int]
    matrix: int
    copied_bytes: int
    phantom_mm: float


FULL: Final = Sizes(
    name="full",
    shape=(BRATS_SLICES, BRATS_SIDE, BRATS_SIDE),
    network=(32, (1, 2, 4, 8)),
    cached=(12, (1, 2, 4, 4)),
    blocks=(8, 32, None),
    patients=100,
    distinct=4,
    steps=40,
    window=(10, 48, 48),
    matrix=8192,
    copied_bytes=1 << 30,
    phantom_mm=2.0,
)
SMALL: Final = Sizes(
    name="small",
    shape=(9, 24, 24),
    network=(4, (1, 2)),
    cached=(4, (1, 2)),
    blocks=(4, None),
    patients=3,
    distinct=1,
    steps=2,
    window=(4, 16, 16),
    matrix=64,
    copied_bytes=1 << 16,
    phantom_mm=4.0,
)
