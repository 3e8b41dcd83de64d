"""How much the tests marked `fuzz` try: one column for every run of CI, one for the night.

`make test-fuzz` takes the first, `make test-fuzz-full` the second (`LIFT_SCALE=full`). The first
damaged files of a long run are those of a short one.
"""

from __future__ import annotations

import os
from typing import Final

SCALES: Final = ("ci", "full")


def _size(*, ci: int, full: int) -> int:
    scale = os.environ.get("LIFT_SCALE") or "ci"
    if scale not in SCALES:
        raise ValueError(f"LIFT_SCALE must be one of {SCALES} (seen: {scale!r})")
    return full if scale == "full" else ci


MUTATIONS: Final = _size(ci=100_000, full=100_000)
"""Mutated messages in all."""
EXAMPLES: Final = _size(ci=100, full=200)
"""Scripts of events that the round machine plays."""
FORMAT_CASES: Final = _size(ci=10_000, full=50_000)
"""Damaged files of the single-file formats; of DICOM series an eighth of them on top."""
TABLE_CASES: Final = _size(ci=2_000, full=10_000)
"""Damaged tables and as many settings."""
COHORT: Final = _size(ci=80, full=200)
"""Patients among whom the faults are planted."""
SHARDS: Final = 4
"""Parts of a long test, so that several processes share it evenly."""
