"""The command of `lift` that compares volumes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

T = TypeVar("T")


class Protocol(StrEnum):
    """The rules of which challenge the metrics follow."""

    MR = "mr"
    CT = "ct"


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
    from lift.metrics.files import evaluate_folders

    result = evaluate_folders(
        predicted, target, mask=mask, protocol=protocol.value, subjects=subjects
    )
    if _told_as_json(result, output):
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
    if _told_as_json(result, output):
        return
    table = Table(title="generated against real volumes", caption="\n".join(notes(result)))
    for heading in ("metric", "generated", "real, by halves", "ideal"):
        table.add_column(heading)
    for row in table_rows(result):
        table.add_row(*row)
    Console().print(table)


def _told_as_json(result: Mapping[str, Any], output: Path | None) -> bool:
    """Write the file that is asked for, and JSON into a pipe; False: a person wants a table."""
    from lift.files import write_json

    if output is not None:
        write_json(output, result)
    if sys.stdout.isatty():
        return False
    sys.stdout.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
    return True


def _needed(option: str, value: T | None) -> T:
    if value is None:
        raise click.UsageError(f"Missing option '{option}'.")
    return value
