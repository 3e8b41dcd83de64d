"""The command of `lift` with a mixer that makes new volumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from lift.cli.options import CaOption, DeviceOption, check_kind


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
    check_kind(finished, "unconditional", "translate")
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
