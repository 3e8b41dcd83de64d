"""Commands of `lift` with a mixer that translates volumes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from lift.cli.options import CaOption, DeviceOption, GeneratorOption, MixerOption, check_kind
from lift.errors import ConfigError


class Guard(StrEnum):
    """What to do when the volume differs from the volumes that the mixer improved."""

    WARN = "warn"
    FALL_BACK = "fall-back"


def translate(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Source volumes: NAME=FILE, or files in the order of the plan."),
    ],
    output: Annotated[
        list[Path],
        typer.Option(
            "--output",
            "-o",
            help="File to write (.nii.gz); with --dicom, a new folder for the series. Repeat it to "
            "write both.",
        ),
    ],
    mixer: MixerOption,
    generator: GeneratorOption = None,
    dicom: Annotated[
        str | None,
        typer.Option(
            metavar="SERIES",
            help="Write a derived DICOM series on the slices of this one: the folder (or "
            "multi-frame file) of the first source, or of what its file was converted from. Its "
            "patient, study and places are taken over. NAME of a source means that source.",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Mask of the patient, if the mask rule of the plan is `file`."),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(
            help="site-curves.safetensors from the site's work folder, for a mixer with contrast."
        ),
    ] = None,
    guard: Annotated[
        Guard, typer.Option(help="What to do with a volume on which the mixer may not help.")
    ] = Guard.WARN,
    ca: CaOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Synthesise the missing channel of one patient, on the grid of the first input.

    A NIfTI file gets a sidecar (.json) that says that it is synthetic, and what made it.
    """
    from lift.device import resolve_device
    from lift.generator.bundle import load_bundle
    from lift.generator.card import known_bundle
    from lift.mixer.finished import read_mixer
    from lift.tasks.paired.local import with_site
    from lift.tasks.paired.translation import ToDicom
    from lift.tasks.paired.translation import translate as run

    file, folder = _outputs(output, has_series=dicom is not None)
    finished = read_mixer(mixer, ca=ca)
    check_kind(finished, "paired", "generate")
    named = _named(inputs, finished.plan.task.source)
    series = None if dicom is None else named.get(dicom, Path(dicom))
    bundle = generator or known_bundle(mixer, finished.plan.generator_fingerprint)
    frozen = load_bundle(bundle, expected_fingerprint=None, device=resolve_device(device))
    console = Console(stderr=True)
    if finished.phantom:
        console.print("note: this mixer was trained on phantom data alone", highlight=False)
    finished, site = with_site(finished, curves)
    if site is not None and site.name != "mixer":
        console.print(
            f"note: this site uses {site.name}, chosen on its own patients", highlight=False
        )
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("slices", total=None)
        done = run(
            named,
            file,
            finished,
            frozen,
            mask=mask,
            site=site,
            on_concern="fall_back" if guard is Guard.FALL_BACK else "warn",
            dicom=None if series is None or folder is None else ToDicom(series, folder),
            report=lambda at, total: progress.update(task, completed=at, total=total),
        )
    if done.concern is not None:
        action = "the mixer was not used" if done.method == "no_mixer" else "check the result"
        console.print(f"warning: {done.concern}; {action}", highlight=False, soft_wrap=True)
    for written in (file, folder):
        if written is not None:
            sys.stdout.write(f"{written}\n")


def calibrate(
    mixer: MixerOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the curves (.safetensors).")
    ],
    pairs: Annotated[
        Path | None,
        typer.Argument(help="Your own pairs: a folder in a known layout, or a table (.csv)."),
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="Settings of a site (YAML), instead of PAIRS.")
    ] = None,
    generator: GeneratorOption = None,
    pooled: Annotated[
        Path | None,
        typer.Option(
            help="Curves of all sites of the run. Default: pooled-curves.safetensors in the "
            "folder of the mixer, if it exists."
        ),
    ] = None,
    ca: CaOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Fit the grey scale of a hospital from two to four of its own pairs.

    Use it at a hospital that did not take part in the training, with a mixer whose plan has
    contrast. Pass the result to `lift translate --curves`. The fit is a closed form: it trains
    nothing and sends nothing. It leaves out each pair in turn to choose which part of the mixer to
    use. Without pairs it uses the curves of all sites of the run.
    """
    from lift.config.site import SiteConfig, SiteSettings
    from lift.device import resolve_device
    from lift.generator.bundle import load_bundle
    from lift.generator.card import bundle_folder, known_bundle
    from lift.mixer.finished import read_mixer
    from lift.tasks.paired.calibration import ENOUGH
    from lift.tasks.paired.calibration import calibrate as run
    from lift.tasks.paired.contrast import POOLED_FILE

    beside = (mixer if mixer.is_dir() else mixer.parent) / POOLED_FILE
    if pooled is None and beside.is_file():
        pooled = beside
    nothing = pairs is None and site is None and pooled is None
    if nothing or (pairs is not None and site is not None):
        raise ConfigError(
            "the pairs must be given exactly once",
            where="PAIRS, --site",
            seen="both" if pairs else "neither, and the run has no pooled curves",
            remedy="Give either a folder or table of pairs, or the settings of a site.",
        )
    finished = read_mixer(mixer, ca=ca)
    check_kind(finished, "paired", "generate")
    settings: SiteSettings | None = None
    if site is not None:
        settings = (config := SiteConfig.from_yaml(site).under(site.parent))
        bundle = generator or bundle_folder(config.generator)
    elif pairs is None:
        bundle = generator or known_bundle(mixer, finished.plan.generator_fingerprint)
    else:
        settings = SiteSettings.from_data({"name": "here", "data": _pairs(pairs)}, "PAIRS")
        bundle = generator or known_bundle(mixer, finished.plan.generator_fingerprint)
    frozen = load_bundle(bundle, expected_fingerprint=None, device=resolve_device(device))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pairs", total=None)
        found = run(
            settings,
            finished,
            frozen,
            output,
            pooled=pooled,
            report=lambda at, total: progress.update(task, completed=at, total=total),
        )
    if found.patients == 0:
        console.print("warning: no pairs of this hospital were used; inspect the results")
    elif found.patients < ENOUGH:
        console.print("warning: one patient does not represent the others; inspect the results")
    elif found.chosen.curves is None:
        console.print(
            "note: curves do not help these patients; the contrast of the generator is kept"
        )
    counts = f"{found.patients} patients of this hospital"
    if found.pooled:
        counts += f", {found.pooled} of the sites of the run"
    console.print(counts, highlight=False)
    if found.choice.psnr_db:
        before, now = (found.choice.psnr_db[name] for name in ("no_mixer", found.choice.method))
        console.print(
            f"uses: {found.choice.method}, {now:.2f} dB; without the mixer {before:.2f} dB",
            highlight=False,
        )
    sys.stdout.write(f"{output}\n")


def _pairs(path: Path | None) -> dict[str, str]:
    """Return the data settings for a folder or a table of volumes."""
    if path is not None and path.is_file():
        return {"layout": "table", "root": str(path.parent), "table": str(path)}
    return {"layout": "auto", "root": str(path)}


def _named(inputs: Sequence[str], sources: Sequence[str]) -> dict[str, Path]:
    """Return channel -> file, from NAME=FILE arguments or from files in the order of the plan."""
    named = [word.partition("=") for word in inputs]
    # a file may have = in its name; what is no file but has one was meant as NAME=FILE
    if any("=" in word and not Path(word).exists() for word in inputs):
        found = {name: Path(path) for name, equals, path in named if equals}
        if len(inputs) == len(found) and set(found) == set(sources):
            return found
    elif len(inputs) == len(sources):
        return dict(zip(sources, map(Path, inputs), strict=True))
    given = ", ".join(name if equals else Path(name).name for name, equals, _ in named)
    raise ConfigError(
        "the inputs do not match the mixer",
        where="inputs",
        seen=f"given: {given}; needed: {', '.join(sources)}",
        remedy="Give one file for each source, as NAME=FILE or in this order.",
    )


def _outputs(outputs: Sequence[Path], *, has_series: bool) -> tuple[Path | None, Path | None]:
    """Return the file of a NIfTI output and the folder of a DICOM series; one may be None."""
    if not has_series:
        if len(outputs) == 1:
            return outputs[0], None
        needed = "one file; a folder for a DICOM series needs --dicom"
    else:
        from lift.volumes.volume import is_written_name

        files = [path for path in outputs if is_written_name(path)]
        folders = [path for path in outputs if not is_written_name(path)]
        if len(folders) == 1 and len(files) <= 1:
            return next(iter(files), None), folders[0]
        needed = "with --dicom one new folder, and a file (.nii.gz) if you want both"
    raise ConfigError(
        "the outputs do not fit",
        where="--output, --dicom",
        seen=f"given: {', '.join(path.name for path in outputs)}; needed: {needed}",
        remedy="Nothing was written.",
    )
