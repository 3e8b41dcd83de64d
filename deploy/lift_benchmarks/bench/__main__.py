"""`make bench`: measure the cost of one run, as ratios within one session. Writes bench.json.

Ratios, not seconds, carry over to other machines. cWDM is counted with its published 1000
steps: against few-step samplers every ratio is smaller by that factor.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lift.process import keep_files_private, prepare_process

_RESULT = Path("bench.json")
_WIDTH = 110


def main() -> None:
    """Measure, print the table, write bench.json."""
    prepare_process()
    keep_files_private()
    # torch reads its environment when it is imported
    from lift.device import fix_threads
    from lift.files import write_json
    from lift_benchmarks.bench.cost import cost_figures
    from lift_benchmarks.bench.drifting import drifting_figures
    from lift_benchmarks.bench.federation import federation_figures
    from lift_benchmarks.bench.figure import Figure
    from lift_benchmarks.bench.inference import inference_figures
    from lift_benchmarks.bench.memory import memory_figures
    from lift_benchmarks.bench.metrics import metrics_figures
    from lift_benchmarks.bench.precision import precision_figures

    fix_threads(2)
    console = Console(stderr=True)
    figures: list[Figure] = []
    for title, measure in (
        ("memory", memory_figures),
        ("messages and rounds", federation_figures),
        ("half precision", precision_figures),
        ("drifting loss", drifting_figures),
        ("figures of a patient", metrics_figures),
        ("a volume beside 3D networks", inference_figures),
        ("cost against cWDM, and the cache", cost_figures),
    ):
        console.print(f"measuring: {title}", highlight=False)
        figures += measure()
    write_json(_RESULT, {figure.name: figure.value for figure in figures})
    table = Table(title="bench", caption=f"written to {_RESULT}")
    for heading, side in (("figure", "left"), ("value", "right"), ("bound", "right")):
        table.add_column(heading, justify="right" if side == "right" else "left", no_wrap=True)
    table.add_column("what it is")
    for figure in figures:
        table.add_row(figure.name, f"{figure.value:,.4g}", figure.bound, figure.meaning)
    Console(file=sys.stdout, width=_WIDTH).print(table)


if __name__ == "__main__":
    main()
