"""`lift-client phantom`: phantom volumes, to try a site without patients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from lift.cohort.phantom.places import TABLE_FILE, Layout
from lift.cohort.phantom.write import check_empty, write_phantom_cohort
from lift.config.phantom import MR_CHANNELS, PhantomCohortConfig


def write_phantoms(
    folder: Path,
    layout: Layout,
    *,
    patients: int,
    seed: int,
    scanner: str,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Write phantom patients, and return the lines of site.yaml that read them.

    Equal arguments give equal bytes. Every file says that it is a phantom.

    Args:
        folder: is created; it must hold nothing.
        layout: of the files. synthrad has mr and ct of the whole head, the others t1n, t1c, t2w
            and t2f of the brain.
        patients: their number.
        seed: another one gives other phantoms.
        scanner: north, harbour, valley, or public (each patient on a scanner of its own).
        progress: called with the patients done, and their number.

    Raises:
        DataError: the folder holds something.
    """
    check_empty(folder)
    head = layout == "synthrad"
    settings = {
        "patients": patients,
        "seed": seed,
        "scanner": scanner,
        "channels": ["mr", "ct"] if head else list(MR_CHANNELS),
        "target": "ct" if head else "t2f",
    }
    cohort = PhantomCohortConfig.from_data(settings, "phantom")
    write_phantom_cohort(cohort, folder, layout=layout, progress=progress)
    data = {"layout": layout, "root": str(folder.absolute())}
    if layout == "table":
        data["table"] = str(folder.absolute() / TABLE_FILE)
    return yaml.safe_dump({"data": data}, sort_keys=False, allow_unicode=True, width=4096)
