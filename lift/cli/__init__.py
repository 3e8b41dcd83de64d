"""`lift`: generator bundles, translation and evaluation on files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lift.audit.cli import app as audit_app
from lift.cli.bundles import export_bundle, landmarks, pretrain
from lift.cli.evaluation import evaluate
from lift.cli.paired import calibrate, translate
from lift.cli.unconditional import generate
from lift.commands import VersionOption, run_command
from lift.release.command import verify_release

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
app.command()(pretrain)
app.command()(landmarks)
app.command()(translate)
app.command("export-bundle")(export_bundle)
app.command()(calibrate)
app.command()(generate)
app.command()(evaluate)


@app.callback()
def start(_version: VersionOption = False) -> None:
    """Accept the options that precede a command."""


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
