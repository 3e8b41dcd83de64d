"""`make bench-gpu`: measure one GPU, or with `--device cpu --small` try the script itself."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from lift.commands import run_command

PROGRAM: Final = "bench-gpu"
_RESULTS: Final = Path(__file__).parents[2] / "benchmarks" / "results"
_TOTAL_S: Final = 540.0
_PART_S: Final = 20.0
_WIDTH: Final = 110
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def bench_gpu(
    device: Annotated[str, typer.Option(help="cuda, cuda:N or cpu.")] = "cuda",
    small: Annotated[bool, typer.Option("--small", help="Tiny sizes, to try the script.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the result. Default: deploy/benchmarks/results; of a CPU out/bench-gpu"
        ),
    ] = None,
) -> None:
    """Measure seconds, memory, quality and agreement on one device, in about nine minutes.

    Prints one table and writes DEVICE.json. A part that does not fit into the device's memory, or
    for which no time is left, is named and left out.
    """
    # torch reads its environment when it is imported, and `main` sets it
    import torch

    from lift.device import fix_threads, resolve_device
    from lift.errors import DeviceMemoryError
    from lift.files import write_json
    from lift_benchmarks.bench.figure import Figure
    from lift_benchmarks.gpu.machine import Machine
    from lift_benchmarks.gpu.parts import Bench, all_parts
    from lift_benchmarks.gpu.sizes import FULL, SMALL

    machine = Machine(resolve_device(device), 0.0 if small else _PART_S)
    fix_threads(1 if small else torch.get_num_threads())
    sizes = SMALL if small else FULL
    console = Console(stderr=True)
    figures: list[Figure] = []
    seconds: dict[str, float] = {}
    skipped: dict[str, str] = {}
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(machine, sizes, Path(folder))
        for name, part in all_parts(sizes).items():
            here = perf_counter()
            if here - began > _TOTAL_S:
                skipped[name] = "no time left"
                continue
            console.print(f"measuring: {name}", highlight=False)
            try:
                figures += part(bench)
            except (torch.OutOfMemoryError, DeviceMemoryError):
                skipped[name] = "does not fit into the device's memory"
                if machine.is_gpu:
                    torch.cuda.empty_cache()
            seconds[name] = perf_counter() - here
    described = machine.described()
    path = (output or (_RESULTS if machine.is_gpu else Path("out/bench-gpu"))) / (
        re.sub(r"[^a-z0-9]+", "-", str(described["device"]).lower()).strip("-") + ".json"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            **described,
            "sizes": sizes.name,
            "figures": {figure.name: figure.value for figure in figures},
            "skipped": skipped,
            "seconds": seconds,
        },
    )
    table = Table(title=f"{described['device']}, {sizes.name}", caption=f"written to {path}")
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it is")
    for figure in figures:
        table.add_row(figure.name, f"{figure.value:,.4g}", figure.meaning)
    for name, reason in skipped.items():
        table.add_row(name, "-", f"left out: {reason}")
    Console(file=sys.stdout, width=_WIDTH).print(table)


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)


if __name__ == "__main__":
    main()
