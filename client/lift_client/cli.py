"""`lift-client`: the commands of a hospital."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import click
import typer

from lift.commands import LogFormatOption, VersionOption, log_lines, run_command
from lift.errors import EXIT_CODES, ConfigError, RecordError

if TYPE_CHECKING:
    from lift.config.site import SiteConfig
    from lift_client.check.verdict import Verdict
    from lift_client.gate.journal import Line, Reading

PROGRAM = "lift-client"
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="The hospital's side of a federation. It opens no port to the outside and receives no "
    "code. A journal records everything that leaves.",
)
_SITE_HELP = "Settings of the site (YAML)."
SiteOption = Annotated[Path | None, typer.Option("--site", help=_SITE_HELP)]
_KINDS: Final = {
    "statistics": "statistics",
    "train": "mixer update",
    "guard": "verdict",
    "failure": "failure notice",
    "card": "data card",
    "note": "(note)",
}
_PIPE_WIDTH: Final = 160
# the kind of problem to fix first decides the exit code
_WORST_FIRST: Final = ("config", "version", "connection", "policy", "data")


@app.callback(invoke_without_command=True)
def start(
    ctx: typer.Context,
    site: SiteOption = None,
    log_format: LogFormatOption = "text",
    _version: VersionOption = False,
) -> None:
    """Without a command: join the federation, train, and reconnect until the run ends.

    Run the same command again to resume.
    """
    ctx.obj = site
    if ctx.invoked_subcommand is not None:
        if log_format != "text":
            raise click.UsageError(
                f"--log-format is for the running client; omit it for '{ctx.invoked_subcommand}'"
            )
        return
    with log_lines(PROGRAM, log_format):
        config = _settings(_site_file(site))
        # torch and flwr take seconds: a typo must not wait for them
        from lift_client.app import serve

        serve(config, log_format)


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(help="Name of this site, as agreed with the coordinator.")],
    folder: Annotated[Path, typer.Option(help="Folder for the files.")] = Path(),
) -> None:
    """Create the key and the settings of this site. Only the public key leaves it."""
    from lift_client.enrolment import enrol

    made = enrol(folder, name)
    sys.stdout.write(
        f"private key: {made.key}  (stays here; mode 0600)\n"
        f"public key:  {made.public}  (for the coordinator)\n"
        f"settings:    {made.settings}\n"
        f"fingerprint: {made.fingerprint}\n"
    )
    _next(
        f"set data.root and choose policy.privacy_modes in {made.settings.name}, send "
        f"{made.public.name} to the coordinator, and compare the fingerprint by telephone; put the "
        f"kit that you receive into '{made.settings.parent / 'kit'}', then run: "
        f"{PROGRAM} check --site {made.settings}"
    )


@app.command()
def check(
    ctx: typer.Context,
    site: SiteOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip admission, device, generator and data.")
    ] = False,
    timed: Annotated[
        bool,
        typer.Option("--time", help="Also time one patient and a few training steps."),
    ] = False,
    images: Annotated[
        bool,
        typer.Option("--images", help="Also check the volumes of every patient. Takes minutes."),
    ] = False,
    share_card: Annotated[
        bool,
        typer.Option("--share-card", help="Also show the data card, and share it if you agree."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Share the card without asking, for scripts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Run all preflight checks and print one result per line. Changes nothing.

    --images reads each patient and prints a verdict (use, use with a warning, veto) and what to
    do. The reports stay in the work folder. Unchanged files are not read again. The data card
    holds rounded counts of what was found. It is sent only after --share-card, and the journal
    records it.
    """
    from lift_client.check.preflight import run_checks

    if share_card and not (yes or sys.stdin.isatty()):
        raise click.UsageError("--share-card asks on a terminal; add --yes in a script")
    path = _site_file(site, ctx)
    verdicts = []
    ask = None if quick else _admission_check(path)
    for verdict in run_checks(path, quick=quick, timed=timed, admission_check=ask):
        verdicts.append(verdict)
        if not as_json:
            sys.stdout.write(_verdict_text(verdict))
            sys.stdout.flush()
    looked = None
    if images or share_card:
        from lift_client.check import image_command

        looked = image_command.look(_settings(path), as_json=as_json)
    if looked is not None:
        verdicts.append(looked.verdict)
        if not as_json:
            sys.stdout.write(_verdict_text(looked.verdict))
    code = exit_code(verdicts)
    if as_json:
        data: dict[str, object] = {"checks": [vars(verdict) for verdict in verdicts]}
        if looked is not None:
            data["patients"] = looked.patients
            data["card"] = None if looked.card is None else looked.card.model_dump(mode="json")
        _write_json({"exit_code": code} | data)
    if looked is not None and looked.card is not None:
        image_command.offer(
            _settings(path), looked.card, share_it=share_card, yes=yes, as_json=as_json
        )
    if code == 0:
        _next(f"{PROGRAM} --site {path}")
    else:
        _next("fix the problems, starting at the top, and run the same command again")
    return code


@app.command()
def phantom(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to create. It must hold nothing.")
    ],
    layout: Annotated[
        Literal["brats", "synthrad", "bids", "table"],
        typer.Option(
            help="Layout of the files. synthrad: MR and CT; the others: four MR channels."
        ),
    ] = "brats",
    patients: Annotated[int, typer.Option(min=1, max=999, help="Number of phantom patients.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed. Another seed gives other phantoms.")] = 0,
    scanner: Annotated[
        Literal["north", "harbour", "valley", "public"],
        typer.Option(help="Simulated scanner. public: each patient has a scanner of its own."),
    ] = "north",
) -> None:
    """Write phantom volumes, to try a site without patients. Prints the lines for site.yaml.

    The volumes are simulated from the MNI152 atlas, and are marked as phantoms. No patient was
    scanned.
    """
    from rich.console import Console

    from lift.progress import shown
    from lift_client.phantoms import write_phantoms

    with shown(Console(stderr=True)) as progress:
        lines = write_phantoms(
            folder,
            layout,
            patients=patients,
            seed=seed,
            scanner=scanner,
            progress=lambda done, total: progress("phantom patients", done, total),
        )
    sys.stdout.write(lines)
    _next(f"put these lines into site.yaml in place of `data`, then run: {PROGRAM} check")


@app.command()
def journal(
    ctx: typer.Context,
    site: SiteOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only verify that the journal is complete.")
    ] = False,
    head: Annotated[
        bool, typer.Option("--head", help="Print the number of lines and the last hash.")
    ] = False,
    expect: Annotated[
        str | None,
        typer.Option(help="Check that the journal still holds this earlier hash (16+ digits)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what left this site and why, and verify the journal."""
    path = _site_file(site, ctx)
    from lift_client.gate.journal import JOURNAL_FILE, read_journal

    file = _settings(path).folder / JOURNAL_FILE
    reading = read_journal(file)
    found = None if expect is None or reading.problem else _expected(expect, reading, file)
    if as_json:
        _write_json(_journal_json(reading))
    elif head and not reading.problem:
        sys.stdout.write(f"{len(reading.lines)} {reading.last_hash}\n")
    elif not (head or verify or expect is not None):
        _show(reading.lines)
    if reading.unfinished:
        sys.stderr.write(
            f"warning: a crash cut off the last line ({len(reading.unfinished)} bytes); the next "
            "start moves it to a separate file and records this\n"
        )
    # the lines before the damage are shown first: they still stand
    if reading.problem is not None:
        raise reading.problem
    if not as_json and not head:
        since = "" if found is None else f"; line {found} has the expected hash"
        sys.stdout.write(f"complete: {len(reading.lines)} lines, none changed or missing{since}\n")
    _next(
        f"write down the last hash outside this machine ({PROGRAM} journal --site {path} --head) "
        "and compare it later with --expect"
    )


@app.command()
def report(
    ctx: typer.Context,
    site: SiteOption = None,
    mixer: Annotated[
        Path | None,
        typer.Option(help="mixer.safetensors from the coordinator. Default: the last one judged."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder. Default: WORK/report.")
    ] = None,
    local_only: Annotated[
        bool,
        typer.Option("--local-only", help="Also train on this site alone, to compare. Takes long."),
    ] = False,
    phantom: Annotated[
        bool, typer.Option("--phantom", help="Mark every figure as made from phantom volumes.")
    ] = False,
) -> None:
    """Write a report for this hospital, with its own images. Nothing is sent.

    It shows the held-out patients of the site with every method, in tables, pictures and a viewer.
    """
    from rich.console import Console

    from lift.progress import shown
    from lift_client.own.report import write_own_report

    config = _settings(_site_file(site, ctx))
    with shown(Console(stderr=True)) as progress:
        path = write_own_report(
            config,
            mixer=mixer,
            output=output,
            local_only=local_only,
            phantom=phantom,
            command=shlex.join([PROGRAM, *sys.argv[1:]]),
            progress=progress,
        )
    sys.stdout.write(f"report: {path}\n")
    _next("read it here; it holds images of patients and must not leave the hospital")


@app.command()
def choose(
    ctx: typer.Context,
    site: SiteOption = None,
    mixer: Annotated[
        Path | None,
        typer.Option(help="mixer.safetensors from the coordinator. Default: the last one judged."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--local-steps",
            min=0,
            max=10_000,
            help="Also try the mixer after this many training steps on this site's patients. "
            "0: do not. Default: as many as the run had.",
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Also try a mixer trained on this site alone. Takes as long as a run."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Choose the model that this site translates with, on its validation patients. Sends nothing.

    Candidates, from simplest to richest: no mixer, the curves of the site, the z-filter, the
    mixer, parts of the mixer, and what is trained here. The mixer is kept unless a simpler
    candidate is better on these patients, or another candidate is better by more than its standard
    error. `lift translate --curves` uses the choice.
    """
    from rich.console import Console

    from lift.progress import shown
    from lift_client.own.choice_view import show
    from lift_client.own.choosing import choose_model

    config = _settings(_site_file(site, ctx))
    with shown(Console(stderr=True)) as progress:
        chosen = choose_model(config, mixer=mixer, steps=steps, local=local, progress=progress)
    show(chosen, as_json=as_json)
    _next(f"lift translate ... --mixer MIXER --curves {chosen.curves}")


@app.command()
def ledger(
    ctx: typer.Context,
    site: SiteOption = None,
    create: Annotated[
        bool,
        typer.Option("--create", help="Create the ledger of the cohort, once, and mark its data."),
    ] = False,
    adopt: Annotated[
        Path | None,
        typer.Option(help="Use this ledger file for the site's data from now on."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only verify that the ledger is complete.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="Print the cost of this plan (a plan or dry-run output).")
    ] = None,
    lower: Annotated[float | None, typer.Option(help="Lower the cap on epsilon to this.")] = None,
    raise_: Annotated[
        float | None, typer.Option("--raise", help="Raise the cap on epsilon. Needs --reason.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Reason for the new cap, recorded.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show the privacy budget: every release, epsilon spent and left."""
    if sum([create, adopt is not None, lower is not None, raise_ is not None]) > 1:
        raise click.UsageError("give only one of --create, --adopt, --lower and --raise")
    config = _settings(_site_file(site, ctx))
    from lift_client.gate import ledger_view

    cap = lower if raise_ is None else raise_
    if create:
        sys.stdout.write(ledger_view.create(config))
    elif adopt is not None:
        sys.stdout.write(ledger_view.take_over(config, adopt))
    elif cap is not None:
        if not reason:
            raise click.UsageError("a change of the cap needs --reason")
        upwards = raise_ is not None
        sys.stdout.write(ledger_view.change_cap(config, cap, reason, upwards=upwards))
    else:
        ledger_view.show(config, as_json=as_json, only_verify=verify, plan=plan)


@app.command("approve-release")
def approve_release(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the release.")],
    site: SiteOption = None,
) -> None:
    """Sign a release with this site's key, as reviewed by the hospital. Writes approvals/SITE.json.

    The release is first checked with the certificate of the kit. Nothing is sent: you send the
    file yourself.
    """
    from datetime import UTC, datetime

    from lift_client.approval import approve

    config = _settings(_site_file(site, ctx))
    sys.stdout.write(f"approved: {approve(config, folder, datetime.now(UTC))}\n")
    _next("send this file to the coordinator, who adds it to the folder `approvals` of the release")


@app.command()
def withdraw(
    ctx: typer.Context,
    patient: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATIENT]",
            help="Name of the person or of one examination, as in the data folder or its table.",
        ),
    ] = None,
    site: SiteOption = None,
    reason: Annotated[
        str, typer.Option(help="Reason, recorded in the journal. It must not name the patient.")
    ] = "",
    gone: Annotated[
        bool, typer.Option("--gone", help="Accept a name whose files were deleted before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be removed.")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Show the keyed hashes and dates of all withdrawals.")
    ] = False,
) -> None:
    """Withdraw a patient: leave out all examinations from now on, and remove what is kept of them.

    It removes cached features, the place in the split, stored answers, reports on images, the own
    report and entries of the log. It prints which runs and approved releases used the patient.
    Stop the client first. The files in the data folder are yours to delete. Nothing is sent.
    """
    if (patient is None) != list_:
        raise click.UsageError("give a patient, or --list")
    config = _settings(_site_file(site, ctx))
    from lift.cohort.withdrawn import read_withdrawn

    if patient is None:
        from lift_client.own.withdrawal_view import listed

        sys.stdout.write("".join(f"{line}\n" for line in listed(read_withdrawn(config.folder))))
        return
    from datetime import UTC, datetime

    from lift_client.own.withdrawal_view import described
    from lift_client.own.withdrawing import withdraw as withdraw_patient

    done = withdraw_patient(
        config, patient, now=datetime.now(UTC), reason=reason, gone=gone, dry_run=dry_run
    )
    sys.stdout.write("".join(f"{line}\n" for line in described(done, dry_run=dry_run)))
    if not dry_run:
        _next(
            "delete the patient's files, and copies in backups and in reports written elsewhere; "
            "if a release used the patient, tell the coordinator that this site withdrew a "
            "patient (not who); then start the client again"
        )


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return 0 without a problem, else the exit code of the problem to fix first."""
    labels = [verdict.label for verdict in verdicts if verdict.status == "problem"]
    first = [label for label in _WORST_FIRST if label in labels]
    return EXIT_CODES[[*first, *labels][0]].number if labels else 0


def _settings(path: Path) -> SiteConfig:
    from lift.config.site import SiteConfig

    return SiteConfig.from_yaml(path).under(path.parent)


def _site_file(site: Path | None, ctx: typer.Context | None = None) -> Path:
    """Return `--site` of the command, or the one before it, as in `lift-client --site F check`."""
    chosen = site or (ctx.obj if ctx is not None else None)
    if not isinstance(chosen, Path):
        raise ConfigError(
            "no settings given",
            where="--site",
            seen="the option is missing",
            remedy=f"Give the settings of the site: --site site.yaml. A new site starts with: "
            f"{PROGRAM} enroll NAME",
        )
    return chosen


def _admission_check(path: Path) -> Callable[[], str | None]:
    """Return a check that asks the server. Call it once settings and kit are known to be valid."""

    def ask() -> str | None:
        from lift.config.kit import CA_FILE
        from lift.protocol.flower.admission import admission_problem  # flwr takes a second
        from lift_client.enrolment import read_kit

        config = _settings(path)
        kit = read_kit(config.kit, site=config.name)
        return admission_problem(kit.address, config.kit / CA_FILE, config.key)

    return ask


def _verdict_text(verdict: Verdict) -> str:
    text = f"{verdict.status:<8} {verdict.check:<19} {verdict.detail}\n"
    return text + (f"{'':28} fix: {verdict.fix}\n" if verdict.fix else "")


def _expected(expect: str, reading: Reading, file: Path) -> int:
    """Return the number of the line whose hash starts with `expect`."""
    if not re.fullmatch(r"[0-9a-f]{16,64}", expect.lower()):
        raise ConfigError(
            "cannot compare the hash",
            where="--expect",
            seen="it is not 16 to 64 hexadecimal digits",
            remedy="Give the hash that `--head` printed, or at least its first 16 digits.",
        )
    for line in reading.lines:
        if line.hash.startswith(expect.lower()):
            return line.number
    raise RecordError(
        "the journal does not contain this hash",
        where=str(file),
        seen=f"none of its {len(reading.lines)} lines has the hash {expect[:16]}...",
        remedy="Leave the folder unchanged and show it to the security officer. The journal was "
        "truncated or rewritten, or the hash belongs to another site.",
    )


def _journal_json(reading: Reading) -> dict[str, object]:
    problem = reading.problem
    return {
        "whole": problem is None,
        "problem": None if problem is None else {"line": problem.line, "seen": problem.seen},
        "unfinished_bytes": len(reading.unfinished),
        "count": len(reading.lines),
        "last_hash": reading.last_hash,
        "lines": [line.model_dump(mode="json") for line in reading.lines],
    }


def _show(lines: Sequence[Line]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not lines:
        sys.stdout.write("nothing has left this site yet\n")
        return
    table = Table(box=SIMPLE, title="What left this site")
    for heading in (
        "no.",
        "when (UTC)",
        "what",
        "run",
        "round",
        "numbers",
        "kB",
        "receiver",
        "purpose",
    ):
        table.add_column(
            heading, justify="right" if heading in {"no.", "round", "numbers", "kB"} else "left"
        )
    for line in lines:
        cells = (
            str(line.number),
            line.time[:19].replace("T", " "),
            _KINDS[line.kind],
            line.run[:12],
            str(line.round) if line.run else "",
            f"{line.numbers:,}",
            f"{line.bytes / 1000:,.1f}",
            line.receiver,
            line.purpose,
        )
        table.add_row(*map(Text, cells))
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    console.print(table)
    console.print(f"{sum(line.bytes for line in lines) / 1000:,.1f} kB in total", highlight=False)


def _write_json(data: object) -> None:
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def _next(text: str) -> None:
    # beside the result: stdout stays what scripts read
    sys.stderr.write(f"next: {text}\n")


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)
