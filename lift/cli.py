"""`lift`: generator bundles, translation and evaluation on files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import click
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lift.audit.cli import app as audit_app
from lift.commands import VersionOption, run_command
from lift.errors import ConfigError
from lift.release.command import verify_release

if TYPE_CHECKING:
    from lift.config.decoder import DecoderCard
    from lift.config.generator import GeneratorCard
    from lift.mixer.finished import FinishedMixer

T = TypeVar("T")
PROGRAM = "lift"
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Synthesise 3D volumes on files, with a frozen 2D generator and a through-plane mixer.",
)
app.add_typer(audit_app, name="audit")
app.command("verify-release")(verify_release)


CaOption = Annotated[
    Path | None,
    typer.Option(help="ca.pem of the federation. Require a release that its key has signed."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N", help="Device. auto: the GPU if there is one, else the CPU."
    ),
]


class Guard(StrEnum):
    """What to do when the volume differs from the volumes that the mixer improved."""

    WARN = "warn"
    FALL_BACK = "fall-back"


class Protocol(StrEnum):
    """The rules of which challenge the metrics follow."""

    MR = "mr"
    CT = "ct"


@app.callback()
def start(_version: VersionOption = False) -> None:
    """Accept the options that precede a command."""


@app.command()
def pretrain(
    config: Annotated[Path, typer.Option(help="Settings of the generator (YAML).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import",
            help="Import the generator instead of training it: weights (.safetensors, .onnx, or "
            "a state dict .pt), or the folder of a MONAI bundle, of which nothing is run.",
        ),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for cohorts and checkpoints. Default: OUTPUT.work.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Make the bundle of a frozen generator, from public slices or from your own weights.

    With `kind: unconditional` the settings describe a slice decoder for `lift generate`. Run the
    same command again to resume.
    """
    from lift.config.base import read_yaml
    from lift.config.decoder import DecoderPretrainConfig
    from lift.config.generator import GeneratorDescription, PretrainConfig

    console = Console(stderr=True)
    if import_ is not None:
        described = read_yaml(config)
        if import_.is_dir():
            from lift.generator.monai_folder import import_monai_folder

            imported = import_monai_folder(import_, described, str(config), output)
        else:
            description = GeneratorDescription.from_data(described, str(config))
            from lift.generator.importing import import_state_dict

            imported = import_state_dict(import_, description, output)
        sys.stdout.write(f"bundle: {output}\nfingerprint: {imported.fingerprint}\n")
        return
    data = read_yaml(config)
    unconditional = isinstance(data, dict) and data.get("kind") == "unconditional"
    settings: PretrainConfig | DecoderPretrainConfig
    if unconditional:
        settings = DecoderPretrainConfig.from_data(data, str(config))
    else:
        settings = PretrainConfig.from_data(data, str(config))
    from lift.device import resolve_device

    lines = not console.is_terminal
    with Progress(console=console, disable=lines) as progress:
        task = progress.add_task("pre-training", total=None)
        said: list[int] = []

        def report(step: int, total: int, loss: float) -> None:
            progress.update(task, completed=step, total=total, description=f"loss {loss:.4f}")
            # a resumed training speaks from its first step on too
            if lines and (not said or step % 100 == 0 or step == total):
                said.append(step)
                console.print(f"step {step} of {total}: loss {loss:.4f}", highlight=False)

        def reading(what: str, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, description=what)
            if lines and done == total:
                console.print(f"{what}: {done}", highlight=False)

        folder = work or output.with_name(f"{output.name}.work")
        chosen = resolve_device(device)
        card: GeneratorCard | DecoderCard
        if isinstance(settings, DecoderPretrainConfig):
            from lift.tasks.unconditional.pretraining import pretrain_decoder

            card = pretrain_decoder(
                settings, output, work=folder, device=chosen, report=report, progress=reading
            )
        else:
            from lift.generator.pretraining import pretrain as run

            card = run(
                settings, output, work=folder, device=chosen, report=report, progress=reading
            )
    sys.stdout.write(f"bundle: {output}\nfingerprint: {card.fingerprint}\n")


@app.command()
def landmarks(
    config: Annotated[Path, typer.Option(help="Settings of `lift pretrain` (YAML).")],
    work: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the phantom cohorts. Default: temporary."),
    ] = None,
) -> None:
    """Fit the standard grey scales of the normalisation rule `nyul` on the same public volumes.

    Prints `preprocessing.normalisation` for these settings and for plans that use the generator.
    """
    import tempfile

    import yaml

    from lift.config.generator import PretrainConfig
    from lift.generator.landmarks import landmark_rules

    settings = PretrainConfig.from_yaml(config)
    with tempfile.TemporaryDirectory() as folder:
        rules = landmark_rules(settings, work or Path(folder))
    shown = {
        name: rule.model_dump(mode="json", exclude={"written_maximum"})
        for name, rule in rules.items()
    }
    content = {"preprocessing": {"normalisation": shown}}
    sys.stdout.write(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100))


@app.command()
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
    mixer: Annotated[
        Path, typer.Option(help="mixer.safetensors, or the folder of a run or a release.")
    ],
    generator: Annotated[
        Path | None,
        typer.Option(help="Bundle folder. Default: the bundle of the run, or a shipped one."),
    ] = None,
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
    _check_kind(finished, "paired", "generate")
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


@app.command("export-bundle")
def export_bundle(
    mixer: Annotated[
        Path, typer.Argument(help="mixer.safetensors, or the folder of a run or a release.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the MONAI bundle, new or empty.")
    ],
    generator: Annotated[
        Path | None,
        typer.Option(help="Bundle folder. Default: the bundle of the run, or a shipped one."),
    ] = None,
    ca: CaOption = None,
) -> None:
    """Write generator and mixer as a MONAI bundle, with a model card. It holds no curves of a site.

    The config of the bundle is for MONAI's ConfigParser, and calls this package. Its volumes are
    those of `lift translate`.
    """
    from lift.generator.card import known_bundle
    from lift.mixer.finished import read_mixer
    from lift.tasks.paired.monai_bundle import export_monai_bundle

    finished = read_mixer(mixer, ca=ca)
    _check_kind(finished, "paired", "generate")
    bundle = generator or known_bundle(mixer, finished.plan.generator_fingerprint)
    export_monai_bundle(output, mixer, bundle, ca=ca)
    sys.stdout.write(f"{output}\n")


@app.command()
def calibrate(
    mixer: Annotated[
        Path, typer.Option(help="mixer.safetensors, or the folder of a run or a release.")
    ],
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
    generator: Annotated[
        Path | None,
        typer.Option(help="Bundle folder. Default: the bundle of the run, or a shipped one."),
    ] = None,
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
    _check_kind(finished, "paired", "generate")
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


@app.command()
def generate(
    mixer: Annotated[
        Path, typer.Option(help="Folder of a run or a release, or its mixer.safetensors.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the volumes.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many volumes.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed. Seed and position in the series determine a volume.")
    ] = 0,
    slices: Annotated[
        int | None,
        typer.Option(min=2, max=2048, help="Slices of a volume. Default: as in the plan."),
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=50,
            help="Slice spacing in mm. Default: length of the body divided by the slices.",
        ),
    ] = None,
    field_of_view: Annotated[
        str | None,
        typer.Option(
            metavar="MM[xMMxMM]",
            help="Length along the slices in mm; or length, height and width. Two of slices, "
            "spacing and length determine the third.",
        ),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            metavar="SITE|mean",
            help="Grey scale of all volumes: the mean of one site or of all sites. Default: a new "
            "random one for each volume.",
        ),
    ] = None,
    generator: Annotated[
        Path | None, typer.Option(help="Bundle of the mixer, if it is not a shipped one.")
    ] = None,
    ca: CaOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Generate new synthetic volumes that belong to no real patient, as NIfTI files.

    Existing volumes are kept. Run the same command again to resume.
    """
    from lift.device import resolve_device
    from lift.generator.card import known_bundle
    from lift.mixer.finished import read_mixer
    from lift.tasks.unconditional.bundle import load_decoder
    from lift.tasks.unconditional.learning import settings_of
    from lift.tasks.unconditional.sampling import MOST_OUTSIDE, latent_mapper, outside, write_series
    from lift.tasks.unconditional.style import stated_style
    from lift.tasks.unconditional.view import Wanted, parse_field_of_view, view_of

    sides = None if field_of_view is None else parse_field_of_view(field_of_view)
    wanted = Wanted(slices, spacing, sides)
    finished = read_mixer(mixer, ca=ca)
    _check_kind(finished, "unconditional", "translate")
    frozen = load_decoder(
        generator or known_bundle(mixer, finished.plan.generator_fingerprint),
        expected_fingerprint=finished.plan.generator_fingerprint,
        device=resolve_device(device),
    )
    made_by = latent_mapper(finished.plan, frozen, finished.values)
    console = Console(stderr=True)
    if finished.phantom:
        console.print("note: this mixer was trained on phantom data alone", highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("volumes", total=number)
        for path in write_series(
            output,
            made_by,
            finished.values,
            frozen,
            finished.plan,
            number=number,
            seed=seed,
            wanted=wanted,
            style=style,
        ):
            progress.update(task, advance=1)
            sys.stdout.write(f"{path}\n")
    looked_at = min(number, 16)
    rms = outside(
        made_by,
        frozen,
        seed=seed,
        number=looked_at,
        slices=view_of(wanted, settings_of(finished.plan), frozen.card.network).slices,
        style=None if style is None else stated_style(style, made_by, finished.values, frozen),
    )
    if rms > MOST_OUTSIDE:
        console.print(
            f"warning: the latents of these volumes differ much from real ones: RMS {rms:.2f}, "
            f"real 1 (first {looked_at} volumes). The decoder was not trained for such latents. "
            "Inspect the volumes, and prefer a run with unconditional.trajectory: gaussian.",
            highlight=False,
        )


@app.command()
def evaluate(
    predicted: Annotated[
        Path | None, typer.Option(help="Folder of translated volumes, each with a target.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="Folder of real volumes with the same file names.")
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(help="mr: grey values in [0, 1] (default with --generated). ct: HU."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Folder of masks with the same names.")] = None,
    generated: Annotated[
        Path | None, typer.Option(help="Folder of generated volumes, at least 2.")
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(help="Folder of real volumes not used in training, at least 4."),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(help="Folder of real training volumes, to search for copies of them."),
    ] = None,
    subjects: Annotated[
        Path | None,
        typer.Option(help="CSV table with `file` and `subject`. Files of one person count once."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the table to this JSON file.")
    ] = None,
) -> None:
    """Compare synthetic volumes with real ones. Print a table, or JSON with intervals.

    --predicted, --target and --protocol compare file by file: each translated volume with the real
    volume of the same name. --generated and --real compare two sets: new volumes, which have no
    partner, with real ones. For reference, one half of the real set is compared with the other.
    """
    if generated is not None or real is not None or training is not None:
        given = {"--predicted": predicted, "--target": target, "--mask": mask}
        for option, value in given.items():
            if value is not None:
                raise click.UsageError(
                    f"'{option}' compares file by file; --generated and --real compare two sets. "
                    "Use only one of the two forms."
                )
        folders = (_needed("--generated", generated), _needed("--real", real))
        _evaluate_generated(*folders, training, protocol or Protocol.MR, subjects, output)
        return
    predicted, target = _needed("--predicted", predicted), _needed("--target", target)
    protocol = _needed("--protocol", protocol)
    from lift.files import write_json
    from lift.metrics.files import evaluate_folders

    result = evaluate_folders(
        predicted, target, mask=mask, protocol=protocol.value, subjects=subjects
    )
    if output is not None:
        write_json(output, result)
    if not sys.stdout.isatty():
        sys.stdout.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
        return
    table = Table(
        title=f"{result['volumes']} volumes of {result['persons']} persons; 95% bootstrap "
        "intervals over persons",
        caption=result["note"] or None,
    )
    for heading in ("metric", "value", "low", "high", "unit"):
        table.add_column(heading, justify="left" if heading in {"metric", "unit"} else "right")
    for name, entry in result["metrics"].items():
        numbers = [
            "" if entry[key] is None else f"{entry[key]:.4g}" for key in ("value", "low", "high")
        ]
        table.add_row(name, *numbers, str(entry["unit"]))
    Console().print(table)


def _evaluate_generated(
    generated: Path,
    real: Path,
    training: Path | None,
    protocol: Protocol,
    subjects: Path | None,
    output: Path | None,
) -> None:
    from lift.device import fix_threads
    from lift.files import write_json
    from lift.metrics.generated_files import evaluate_generated, notes, table_rows

    # the images are small: more threads only wait for each other
    fix_threads(1)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("volumes", total=None)
        result = evaluate_generated(
            generated,
            real,
            training=training,
            protocol=protocol.value,
            subjects=subjects,
            report=lambda at, total: progress.update(task, completed=at, total=total),
        )
    if output is not None:
        write_json(output, result)
    if not sys.stdout.isatty():
        sys.stdout.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
        return
    table = Table(title="generated against real volumes", caption="\n".join(notes(result)))
    for heading in ("metric", "generated", "real, by halves", "ideal"):
        table.add_column(heading)
    for row in table_rows(result):
        table.add_row(*row)
    Console().print(table)


def _needed(option: str, value: T | None) -> T:
    if value is None:
        raise click.UsageError(f"Missing option '{option}'.")
    return value


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


def _check_kind(finished: FinishedMixer, needed: str, other: str) -> None:
    kind = finished.plan.task.kind
    if kind != needed:
        raise ConfigError(
            "the mixer belongs to another command",
            where="--mixer",
            seen=f"its task is {kind}; needed: {needed}",
            remedy=f"Use `lift {other}`.",
        )


@app.command()
def view(
    volumes: Annotated[
        list[Path],
        typer.Argument(metavar="A [B ...]", help="Volumes: NIfTI, MGZ, NRRD, MetaImage, DICOM."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write one self-contained HTML file."),
    ] = None,
    label: Annotated[str, typer.Option(help="Heading of the page.")] = "Volumes",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1. 0: any free port.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """View volumes side by side: linked axial, coronal and sagittal slices, swipe, difference.

    Without --output, the page is served to this machine only, until Ctrl-C. Nothing else is read
    or sent.
    """
    from lift.viewer.command import show_volumes

    show_volumes(volumes, output=output, label=label, port=port, browser=browser)


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)
