"""`lift audit`: measure what an attacker learns about a patient from a release."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lift.config.site import SiteConfig

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Audit the privacy of a released mixer and of its training.",
)
Mixer = Annotated[
    Path, typer.Argument(metavar="MIXER", help="Folder of a run, or its mixer.safetensors.")
]
_PIPE_WIDTH = 110


@app.command()
def patients(
    site: Annotated[Path, typer.Option(help="Settings of the site (YAML).")],
    mixer: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MIXER]",
            help="Folder of a run, or its mixer.safetensors. Default: the mixer that this site "
            "judged last.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the signed result.")
    ] = Path("audit.json"),
    generated: Annotated[
        int, typer.Option(min=8, help="Unconditional: number of volumes to generate and search.")
    ] = 96,
    references: Annotated[
        int,
        typer.Option(
            min=2, help="Paired: even number of reference mixers. More are more sensitive."
        ),
    ] = 4,
) -> None:
    """At a site: test whether the released mixer reveals which patients it was trained on.

    Runs membership inference for a paired mixer, and copy detection for a mixer that generates new
    volumes. The result holds AUC and TPR of each attack, and nothing about a single patient. It is
    signed with the key of the site. You send it to the coordinator yourself.

    For a mixer that is protected by noise, the figures are only printed and no file is written:
    they are exact, and epsilon does not count them.
    """
    from lift.audit.documents import write_signed
    from lift.audit.patients import audit_patients
    from lift.keys import read_key
    from lift.progress import shown
    from lift.release.check import mixer_file

    config = SiteConfig.from_yaml(site).under(site.parent)
    # before hours are spent
    key = read_key(config.key)
    console = Console(stderr=True)
    with shown(console) as progress:
        found = audit_patients(
            config,
            None if mixer is None else mixer_file(mixer),
            generated=generated,
            references=references,
            report=progress,
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
            f"copies: {copies.copies:.0%} of {copies.generated} generated volumes are closer to a "
            f"training patient than nearly all held-out patients are. For comparison, the same "
            f"share for held-out patients: {copies.copies_of_held_out:.0%}. Share closer to "
            f"training patients: {copies.nearer_training:.2f}; by chance "
            f"{copies.chance_low:.2f} to {copies.chance_high:.2f}"
        )
    for attack, row in found.audit.attacks.items():
        if row.auc_low > 0.5:
            console.print(f"warning: {attack} identifies training patients", highlight=False)
    if found.concern:
        console.print(f"warning: {found.concern}", highlight=False, soft_wrap=True)
    if not found.may_leave:
        console.print(
            f"nothing was written to {output}: noise protects the patients of this mixer, but "
            "these figures are exact. Epsilon does not count them, so they stay here. "
            "The coordinator audits the training instead, without patients.",
            highlight=False,
            soft_wrap=True,
        )
        return
    sys.stdout.write(f"{output}\n")
    console.print(
        "next: read the file; it holds only what is printed above. Send it to the coordinator "
        "if your hospital agrees.",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def training(
    mixer: Mixer,
    generator: Annotated[
        Path | None, typer.Option(help="Bundle of the mixer, if it is not a shipped one.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the result to this JSON file.")
    ] = None,
) -> None:
    """Test on invented patients whether private training keeps its claimed epsilon.

    Each canary (an invented patient) takes part with probability 1/2. An attacker sees what the
    training releases and guesses which canaries took part. More correct guesses prove a larger
    epsilon. The noise is measured too: a few percent less than claimed are found. Runs on any
    machine.
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
    Console(stderr=True).print(found.noise_seen, highlight=False, soft_wrap=True)
    if not found.passed:
        raise PrivacyError(
            "the training did not pass its audit",
            where=found.audited,
            seen=f"epsilon is at least {found.epsilon_lower_bound:.2f}; "
            f"{found.claimed_epsilon:.2f} was claimed; {found.noise_seen}",
            remedy="Noise, sampling or clipping do less than claimed. Please report it. A correct "
            f"pipeline fails once in {1 / (1 - found.confidence):.0f} times: run it again first.",
        )
