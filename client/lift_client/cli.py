"""`lift-client`: everything that a hospital types."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import click
import typer

from lift.commands import VersionOption, run_command
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
    help="A hospital's side of a federation: nothing listens to the outside, no code arrives, "
    "and a journal shows what left.",
)
_SITE_HELP = "The site's settings (YAML)."
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
# the kind of problem that is to be mended first decides the exit code
_WORST_FIRST: Final = ("config", "version", "connection", "policy", "data")


@app.callback(invoke_without_command=True)
def start(ctx: typer.Context, site: SiteOption = None, _version: VersionOption = False) -> None:
    """Join the federation, train, stay up and reconnect; without a command below.

    To resume, run the same command again.
    """
    ctx.obj = site
    if ctx.invoked_subcommand is not None:
        return
    config = _settings(_site_file(site))
    # torch and flwr take seconds: a typo must not wait for them
    from lift_client.app import serve

    serve(config)


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(help="Name of this site, as agreed with the coordinator.")],
    folder: Annotated[Path, typer.Option(help="Where the files go.")] = Path(),
) -> None:
    """Make this site's key and settings here; only the public half of the key leaves."""
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
        f"kit that comes back into '{made.settings.parent / 'kit'}', then: "
        f"{PROGRAM} check --site {made.settings}"
    )


@app.command()
def check(
    ctx: typer.Context,
    site: SiteOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out admission, device, generator and data.")
    ] = False,
    timed: Annotated[
        bool,
        typer.Option("--time", help="Also time one patient and a few training steps."),
    ] = False,
    images: Annotated[
        bool,
        typer.Option("--images", help="Also look at every patient's volumes; takes minutes."),
    ] = False,
    share_card: Annotated[
        bool,
        typer.Option("--share-card", help="Also show the data card, and share it if you agree."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Share the card without asking: for scripts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Test everything that could keep this site out; one verdict each; nothing is changed.

    With --images each patient is read and judged: use, use with a warning, veto, with what to do.
    Reports stay in the work folder, and unchanged files are not looked at again. The data card
    counts what was seen, rounded; it leaves only after --share-card, and stands in the journal.
    """
    from lift_client.check.preflight import run_checks

    if share_card and not (yes or sys.stdin.isatty()):
        raise click.UsageError("--share-card asks at a terminal; in a script, add --yes")
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
        _next("mend the problems, the topmost first, and run the same command again")
    return code


@app.command()
def journal(
    ctx: typer.Context,
    site: SiteOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only say whether the journal is whole.")
    ] = False,
    head: Annotated[
        bool, typer.Option("--head", help="Print number of lines and last hash, to write down.")
    ] = False,
    expect: Annotated[
        str | None,
        typer.Option(help="A hash written down earlier (at least 16 digits): is it still there?"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what left this site, for what, and whether the journal is whole."""
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
            "start sets it aside and notes it\n"
        )
    # the lines before the damage are shown first: they still stand
    if reading.problem is not None:
        raise reading.problem
    if not as_json and not head:
        since = "" if found is None else f"; line {found} has the expected hash"
        sys.stdout.write(f"whole: {len(reading.lines)} lines, none changed or missing{since}\n")
    _next(
        f"write the last hash down outside this machine ({PROGRAM} journal --site {path} --head) "
        "and compare it later with --expect"
    )


@app.command()
def report(
    ctx: typer.Context,
    site: SiteOption = None,
    mixer: Annotated[
        Path | None,
        typer.Option(help="mixer.safetensors of the coordinator; default: the last one judged."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default: WORK/report.")
    ] = None,
    local_only: Annotated[
        bool,
        typer.Option("--local-only", help="Also train on this site alone, to compare; takes long."),
    ] = False,
    phantom: Annotated[
        bool, typer.Option("--phantom", help="Say on every figure that the volumes are phantoms.")
    ] = False,
) -> None:
    """Write this hospital's own report, with its own images. It never leaves: nothing is sent.

    The site's held-out patients, through every method: tables, pictures, a viewer to scroll in.
    """
    from rich.console import Console

    from lift_client.own.progress import shown
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
    _next("look at it here; it holds patients' images and must not leave the hospital")


@app.command()
def choose(
    ctx: typer.Context,
    site: SiteOption = None,
    mixer: Annotated[
        Path | None,
        typer.Option(help="mixer.safetensors of the coordinator; default: the last one judged."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--local-steps",
            min=0,
            max=10_000,
            help="Also try the mixer after so many steps on this site's patients; 0: do not; "
            "default: as many as the run had.",
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Also try a mixer of this site alone; takes as long as a run."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Choose what this site translates with, by its own validation patients; nothing is sent.

    From simplest to richest: no mixer, the site's curves, the z-filter, the mixer, parts of it, and
    what is trained here. It stays the mixer unless something simpler is better on these patients,
    or something else by more than its standard error. `lift translate --curves` follows it.
    """
    from rich.console import Console

    from lift_client.own.choice_view import show
    from lift_client.own.choosing import choose_model
    from lift_client.own.progress import shown

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
        typer.Option("--create", help="Make the cohort's ledger, once, and mark its data."),
    ] = False,
    adopt: Annotated[
        Path | None,
        typer.Option(help="File of a ledger that counts for this site's data from now on."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only say whether the ledger is whole.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="What would this plan cost? A plan or a dry run's output.")
    ] = None,
    lower: Annotated[float | None, typer.Option(help="A lower cap on epsilon.")] = None,
    raise_: Annotated[
        float | None, typer.Option("--raise", help="A higher cap on epsilon; needs a reason.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why the cap changes; kept for ever.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what was told about the patients: each release, epsilon so far, what is left."""
    if sum([create, adopt is not None, lower is not None, raise_ is not None]) > 1:
        raise click.UsageError("give one of --create, --adopt, --lower and --raise")
    config = _settings(_site_file(site, ctx))
    from lift_client.gate import ledger_view

    cap = lower if raise_ is None else raise_
    if create:
        sys.stdout.write(ledger_view.create(config))
    elif adopt is not None:
        sys.stdout.write(ledger_view.take_over(config, adopt))
    elif cap is not None:
        if not reason:
            raise click.UsageError("a change of the cap needs a --reason")
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
    """Say with this site's key that the hospital looked at a release: approvals/SITE.json.

    The release is checked first, with the kit's certificate. Nothing is sent: hand the file over.
    """
    from datetime import UTC, datetime

    from lift_client.approval import approve

    config = _settings(_site_file(site, ctx))
    sys.stdout.write(f"approved: {approve(config, folder, datetime.now(UTC))}\n")
    _next("send this file to the coordinator, who puts it into the release's folder `approvals`")


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """0 without a problem, else the code of the problem that is to be mended first."""
    labels = [verdict.label for verdict in verdicts if verdict.status == "problem"]
    first = [label for label in _WORST_FIRST if label in labels]
    return EXIT_CODES[[*first, *labels][0]].number if labels else 0


def _settings(path: Path) -> SiteConfig:
    from lift.config.site import SiteConfig

    return SiteConfig.from_yaml(path).under(path.parent)


def _site_file(site: Path | None, ctx: typer.Context | None = None) -> Path:
    """`--site` of the command, or the one before it: `lift-client --site F check` is meant well."""
    chosen = site or (ctx.obj if ctx is not None else None)
    if not isinstance(chosen, Path):
        raise ConfigError(
            "no settings given",
            where="--site",
            seen="the option is missing",
            remedy=f"Name the site's settings: --site site.yaml. A new site begins with: "
            f"{PROGRAM} enroll NAME",
        )
    return chosen


def _admission_check(path: Path) -> Callable[[], str | None]:
    """Asks the server of the site's kit; to be called when settings and kit were found good."""

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
    """Number of the line whose hash begins so."""
    if not re.fullmatch(r"[0-9a-f]{16,64}", expect.lower()):
        raise ConfigError(
            "cannot compare the hash",
            where="--expect",
            seen="it is not 16 to 64 hexadecimal digits",
            remedy="Give the hash as `--head` printed it, or at least its first 16 digits.",
        )
    for line in reading.lines:
        if line.hash.startswith(expect.lower()):
            return line.number
    raise RecordError(
        "the journal is not the one that the hash was written down from",
        where=str(file),
        seen=f"none of its {len(reading.lines)} lines has the hash {expect[:16]}...",
        remedy="Keep the folder as it is, and show it to the security officer: the journal was "
        "cut off or rewritten, or the hash is of another site.",
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
    for heading in ("no.", "when (UTC)", "what", "run", "round", "numbers", "kB", "to whom", "why"):
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
    console.print(f"{sum(line.bytes for line in lines) / 1000:,.1f} kB in all", highlight=False)


def _write_json(data: object) -> None:
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def _next(text: str) -> None:
    # beside the result: stdout stays what scripts read
    sys.stderr.write(f"next: {text}\n")


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)
