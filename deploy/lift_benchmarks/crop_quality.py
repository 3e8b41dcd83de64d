"""`make bench-crop`: what a generator of half width that is cropped to the mask loses.

Networks are trained equally long on the same PHANTOM patients; the PSNR is that of other
patients, the same for all. Statistics over the picture see the whole picture, those over the mask
its box.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from lift.commands import run_command

PROGRAM: Final = "bench-crop"
RESULT: Final = "crop-quality.json"
_NETWORKS: Final = {
    "w32_picture": (32, "picture"),
    "w16_mask": (16, "mask"),
    "w16_picture": (16, "picture"),
}
_REFERENCE: Final = "w32_picture"
# the most that a plan allows: on these phantoms it is the whole picture
_WHOLE_MARGIN: Final = 64
_MARGIN: Final = 4
_SETTINGS: Final[dict[str, Any]] = {
    "source": ["t1n", "t1c", "t2w"],
    "target": "t2f",
    "cohorts": [
        {
            "layout": "phantom",
            "scanner": scanner,
            "patients": 20,
            "seed": seed,
            "corruption": False,
            "in_plane_mm": 3.0,
        }
        for scanner, seed in (("north", 31), ("harbour", 32))
    ],
    "batch_slices": 8,
    "loss": "l2",
    "validation_share": 0.3,
    "seed": 5,
    "threads": 1,
    "checkpoint_steps": 25,
    "training_data": "PHANTOM volumes of a benchmark",
    "licence": "Apache-2.0",
}
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _report(name: str, step: int, total: int, loss: float) -> None:
    if step % _SETTINGS["checkpoint_steps"] == 0:
        sys.stderr.write(f"{name}: step {step} of {total}, loss {loss:.5f}\n")


@app.command()
def crop_quality(
    output: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("out/crop-quality"),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each network.")] = 400,
) -> None:
    """Train the networks one after the other and compare their PSNR on the same patients.

    Takes minutes. Run the same command again to resume.
    """
    # torch reads its environment when it is imported, and `main` sets it
    import torch

    from lift.config.generator import PretrainConfig
    from lift.device import fix_threads
    from lift.files import write_json
    from lift.generator.pretraining import read_patients, train_on_arrays, validation_psnr_db
    from lift.generator.training_slices import split_by_subject
    from lift.metrics.intervals import paired_difference

    fix_threads(_SETTINGS["threads"])
    cpu = torch.device("cpu")
    psnr_db: dict[str, list[float]] = {}
    for name, (width, over) in _NETWORKS.items():
        network = {
            "name": "unet",
            "n_source": 3,
            "width": width,
            "multipliers": [1, 2, 4, 8],
            "normalise_over": over,
        }
        margin = _WHOLE_MARGIN if over == "picture" else _MARGIN
        config = PretrainConfig.from_data(
            _SETTINGS
            | {"network": network, "steps": steps, "preprocessing": {"crop_margin": margin}},
            PROGRAM,
        )
        patients = read_patients(config, output / "phantoms")
        _, held_out = split_by_subject(patients, config.validation_share, config.seed)
        work = output / f"{name}-{steps}"
        work.mkdir(parents=True, exist_ok=True)
        trained = train_on_arrays(
            config, patients, work=work, device=cpu, report=partial(_report, name)
        )
        psnr_db[name] = [
            validation_psnr_db(trained.network, patient, config, cpu) for patient in held_out
        ]
        differences = {
            other: paired_difference(found, psnr_db[_REFERENCE], seed=0).interval
            for other, found in psnr_db.items()
            if other != _REFERENCE
        }
        write_json(
            output / RESULT,
            {
                "phantom": True,
                "steps": steps,
                "psnr_db": psnr_db,
                "minus_" + _REFERENCE: {
                    other: {"mean": found.value, "low": found.low, "high": found.high}
                    for other, found in differences.items()
                },
            },
        )
        for other, found in differences.items():
            sys.stdout.write(
                f"{other} - {_REFERENCE}: {found.value:+.3f} dB [{found.low:+.3f}, "
                f"{found.high:+.3f}], {len(psnr_db[other])} PHANTOM patients, {steps} steps\n"
            )


def main() -> None:
    """Run the program."""
    run_command(app, PROGRAM)


if __name__ == "__main__":
    main()
