"""`make brats` and `make synthrad`: a public benchmark, from the official folder to a table."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console

from lift.commands import run_command
from lift_benchmarks.public.config import BenchmarkSettings
from lift_benchmarks.public.folders import REGIONS, Benchmark
from lift_simulation.shipped import shipped_settings

PROGRAM = "public"
_PRESETS: Final = Path("presets/public")
_PIPE_WIDTH: Final = 170
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Data = Annotated[Path, typer.Option(help="The official folder, unpacked.")]
SettingsFile = Annotated[
    Path | None, typer.Option(help="Sizes (YAML). Default: the preset of the benchmark.")
]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="The small preset: an hour or two on two cores, poor figures."),
]
Sites = Annotated[
    Path | None,
    typer.Option(help="CSV table `patient,site`. Default: centres by name, else a keyed hash."),
]
PublicSite = Annotated[
    str | None, typer.Option(help="A whole site as the public part, instead of a share of each.")
]


@app.command()
def brats(
    data: Data,
    missing: Annotated[str, typer.Option(help="Contrast to synthesise.")] = "t2f",
    output: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("out/brats"),
    settings: SettingsFile = None,
    quick: Quick = False,
    sites: Sites = None,
    public_site: PublicSite = None,
) -> None:
    """Synthesise a missing contrast of BraTS 2023: pre-train, federate, evaluate.

    Run the same command again to resume.
    """
    from lift_benchmarks.public.run import check_missing

    _run("brats", data, output, settings, quick, sites, public_site, missing=check_missing(missing))


@app.command()
def synthrad(
    data: Data,
    region: Annotated[
        str | None, typer.Option(help=f"{', '.join(REGIONS.values())}. Default: the only one.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("out/synthrad"),
    settings: SettingsFile = None,
    quick: Quick = False,
    sites: Sites = None,
    public_site: PublicSite = None,
) -> None:
    """Synthesise the CT of SynthRAD2023 or 2025 from the MR: pre-train, federate, evaluate.

    Run the same command again to resume.
    """
    _run("synthrad", data, output, settings, quick, sites, public_site, region=region)


@app.command()
def phantom(
    benchmark: Annotated[Literal["brats", "synthrad"], typer.Argument(help="Layout to write.")],
    folder: Annotated[Path, typer.Argument(help="Is created; it must hold nothing.")],
    year: Annotated[Literal["2023", "2025"], typer.Option(help="Of SynthRAD.")] = "2023",
    persons: Annotated[int, typer.Option(min=4, help="Persons of each centre.")] = 5,
) -> None:
    """Write phantoms in the layout of an official folder, to try the commands without patients."""
    from lift_benchmarks.public.phantoms import write_official

    write_official(folder, benchmark, year=year, persons=persons)
    sys.stdout.write(f"PHANTOM volumes, no patient: {folder}\n")


def _run(
    benchmark: Benchmark,
    data: Path,
    output: Path,
    settings: Path | None,
    quick: bool,
    sites: Path | None,
    public_site: str | None,
    *,
    missing: str = "t2f",
    region: str | None = None,
) -> None:
    preset = f"{benchmark}-quick.yaml" if quick else f"{benchmark}.yaml"
    chosen = BenchmarkSettings.from_yaml(settings or shipped_settings() / _PRESETS / preset)
    if public_site is not None:
        division = chosen.division.model_copy(update={"public_site": public_site})
        chosen = chosen.model_copy(update={"division": division})
    from lift.logs import log_to_file
    from lift_benchmarks.public.run import Request, run_benchmark
    from lift_benchmarks.public.summary import show
    from lift_simulation.progress import Reporter, table_console

    request = Request(benchmark, data, output, chosen, missing, region, sites)
    reporter = Reporter(Console(stderr=True), {})
    with log_to_file(output / "log.txt"):
        table = run_benchmark(request, reporter, command=shlex.join([PROGRAM, *sys.argv[1:]]))
    show(table_console(_PIPE_WIDTH), table)
    sys.stdout.write(f"result: {table}\nreport: {output / 'run' / 'report.html'}\n")


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)


if __name__ == "__main__":
    main()
