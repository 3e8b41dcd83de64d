"""How much the tests marked `fuzz` try: the sizes of CI, unless the environment names others.

`make test-fuzz` runs these sizes, `make test-fuzz-full` the ones that README.md and SECURITY.md
promise. The first cases of a long run are those of a short one, but for the round machine.
"""

from __future__ import annotations

import os
from typing import Final


def _size(name: str, default: int) -> int:
    size = int(os.environ.get(name) or default)
    if size < 1:
        raise ValueError(f"{name} must be at least 1 (seen: {size})")
    return size


MUTATIONS: Final = _size("LIFT_MUTATIONS", 60_000)
"""Mutated messages in all."""
EXAMPLES: Final = _size("LIFT_EXAMPLES", 120)
"""Scripts of events that the round machine plays."""
FORMAT_CASES: Final = _size("LIFT_FORMAT_CASES", 16_000)
"""Damaged files of the single-file formats; of DICOM series an eighth of them on top."""
COHORT: Final = _size("LIFT_COHORT", 60)
"""Patients among whom the faults are planted."""
SHARDS: Final = 4
"""Parts of a long test, so that several processes share it evenly."""
