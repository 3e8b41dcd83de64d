"""`lift audit`: what an attacker learns of a patient from what was released."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from lift.config.site import SiteConfig

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Privacy audits of a released mixer, and of the training that made it.",
)
Mixer = Annotated[
    Path, typer.Argument(metavar="MIXER", help="A run's folder, or its mixer.safetensors.")
]
_PIPE_WIDTH = 110


@app.command()
def patients(
    mixer: Mixer,
    site: Annotated[Path, typer.Option(help="The site's settings (YAML).")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the signed result.")
    ] = Path("audit.json"),
    generated: Annotated[
        int, typer.Option(min=8, help="Unconditional: how many volumes are generated and searched.")
    ] = 96,
    references: Annotated[
        int,
        typer.Option(min=2, help="Paired: reference mixers, an even number; more see more."),
    ] = 4,
) -> None:
    """At a site: can its own patients be told from others by the released mixer?

    Membership inference for a paired mixer, copy detection for one that makes new volumes. The
    result holds AUC and TPR of each attack and nothing of a single patient; it is signed with the
    site's key, and leaves when you send it to the coordinator.

    Of a mixer that noise protects, the figures are shown here and no file is written: they are
    exact, and epsilon does not count them.
    """
    from lift.audit.documents import write_signed
    from lift.audit.patients import audit_patients
    from lift.keys import read_key
    from lift.release.check import mixer_file

    config = SiteConfig.from_yaml(site).under(site.parent)
    # before hours are spent
    key = read_key(config.key)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        found = audit_patients(
            config, mixer_file(mixer), generated=generated, references=references, report=report
        )
    if found.may_leave:
        write_signed(output, found.audit, key)
    table = Table(title=f"{found.audit.site}: {found.audit.kind}", caption=found.audit.caveat)
    for heading in ("attack", "AUC", "95%", "TPR", "at FPR", "patients"):
        table.add_column(heading)
    for attack, row in found.audit.attacks.items():
        table.add_row(
            attack,
            f"{row.auc:.2f}",
            f"{row.auc_low:.2f} to {row.auc_high:.2f}",
            f"{row.tpr:.2f}",
            f"{row.fpr_of_tpr:.2f}",
            f"{row.members} or more trained on, {row.others} or more held out",
        )
    screen = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    screen.print(table)
    copies = found.audit.copies
    if copies is not None:
        screen.print(
            f"copies: {copies.copies:.0%} of {copies.generated} generated volumes are nearer to a "
            f"training patient than nearly all held-out ones are; the same of held-out patients, "
            f"which is no copying: {copies.copies_of_held_out:.0%}. Nearer to training patients: "
            f"{copies.nearer_training:.2f}; by chance {copies.chance_low:.2f} to "
            f"{copies.chance_high:.2f}"
        )
    for attack, row in found.audit.attacks.items():
        if row.auc_low > 0.5:
            console.print(f"warning: {attack} tells training patients from others", highlight=False)
    if found.concern:
        console.print(f"warning: {found.concern}", highlight=False, soft_wrap=True)
    if not found.may_leave:
        console.print(
            f"nothing was written to {output}: noise protects the patients of this mixer, and "
            "these figures of theirs are exact. Epsilon does not count them, so they stay here. "
            "The coordinator audits the training instead, without patients.",
            highlight=False,
            soft_wrap=True,
        )
        return
    sys.stdout.write(f"{output}\n")
    console.print(
        "next: read the file; it holds what stands above and no more. Send it to the coordinator "
        "if your hospital agrees.",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def training(
    mixer: Mixer,
    generator: Annotated[
        Path | None, typer.Option(help="The mixer's bundle, if it does not ship with us.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the result as JSON here.")
    ] = None,
) -> None:
    """Does private training do what it claims? With invented patients, on any machine.

    Canaries take part or not by a coin; who sees what training releases guesses the coins. The
    more guesses are right, the larger the epsilon that the training must have had.
    """
    from lift.audit.training import training_audit
    from lift.errors import PrivacyError
    from lift.files import write_json
    from lift.generator.card import shipped_bundle
    from lift.mixer.finished import read_mixer

    finished = read_mixer(mixer)
    bundle = generator or shipped_bundle(finished.plan.generator_fingerprint)
    found = training_audit(finished.plan, bundle)
    data = found.model_dump(mode="json")
    if output is not None:
        write_json(output, data)
    sys.stdout.write(json.dumps(data, indent=2) + "\n")
    if not found.passed:
        raise PrivacyError(
            "the training did not pass its audit",
            where=found.audited,
            seen=f"epsilon is at least {found.epsilon_lower_bound:.2f}; "
            f"{found.claimed_epsilon:.2f} was claimed; {found.noise_seen}",
            remedy="Noise, sampling or clipping do less than they say. Please report it. A right "
            f"pipeline fails once in {1 / (1 - found.confidence):.0f} times: run it again.",
        )
