"""Options and checks that several commands of `lift` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lift.errors import ConfigError

if TYPE_CHECKING:
    from lift.mixer.finished import FinishedMixer

CaOption = Annotated[
    Path | None,
    typer.Option(help="ca.pem of the federation. Require a release that its key has signed."),
]
MixerOption = Annotated[
    Path, typer.Option(help="mixer.safetensors, or the folder of a run or a release.")
]
GeneratorOption = Annotated[
    Path | None,
    typer.Option(help="Bundle folder. Default: the bundle of the run, or a shipped one."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N", help="Device. auto: the GPU if there is one, else the CPU."
    ),
]


def check_kind(finished: FinishedMixer, needed: str, other: str) -> None:
    """Refuse a mixer of another task.

    Args:
        finished: the mixer.
        needed: kind of the command's task.
        other: the command for the other kind.
    """
    kind = finished.plan.task.kind
    if kind != needed:
        raise ConfigError(
            "the mixer belongs to another command",
            where="--mixer",
            seen=f"its task is {kind}; needed: {needed}",
            remedy=f"Use `lift {other}`.",
        )
