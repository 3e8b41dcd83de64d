"""Commands of `lift` that make and export bundles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from lift.cli.options import CaOption, DeviceOption, GeneratorOption, check_kind

if TYPE_CHECKING:
    from lift.config.decoder import DecoderCard
    from lift.config.generator import GeneratorCard


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


def export_bundle(
    mixer: Annotated[
        Path, typer.Argument(help="mixer.safetensors, or the folder of a run or a release.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the MONAI bundle, new or empty.")
    ],
    generator: GeneratorOption = None,
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
    check_kind(finished, "paired", "generate")
    bundle = generator or known_bundle(mixer, finished.plan.generator_fingerprint)
    export_monai_bundle(output, mixer, bundle, ca=ca)
    sys.stdout.write(f"{output}\n")
