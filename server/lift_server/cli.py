"""`lift-server`: the coordinator's commands. All but the start itself answer without torch."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import click
import typer
from rich.console import Console

from lift.commands import VersionOption, run_command
from lift.config.plan import Plan
from lift.config.server import ServerConfig
from lift.errors import EXIT_CODES
from lift.generator.card import bundle_folder, check_task
from lift_server.preflight import Verdict, run_checks
from lift_server.sites import certificates, provisioning, roster
from lift_server.sites.certificates import CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE
from lift_server.sites.provisioning import CONFIG_FILE, load_settings
from lift_server.watch.board import show
from lift_server.watch.rounds_file import RoundsFile
from lift_server.watch.status_view import describe

if TYPE_CHECKING:
    from lift.audit.documents import TrainingAudit
    from lift_server.release.key import ReleaseKey

PROGRAM = "lift-server"
# the first of these that a problem has is the one to mend first: it decides the exit code
_WORST_FIRST: Final = ("config", "version", "connection", "data", "quorum")
_PIPE_WIDTH: Final = 120

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Coordinate a federation: admit sites, run the rounds, ship the result.",
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help=f"Folder of {CONFIG_FILE}.")]


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help=f"Settings (YAML); default: {CONFIG_FILE} here.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved plan, with its privacy cost, and stop."),
    ] = False,
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="With --dry-run: say which noise multiplier this plan needs for this epsilon."
        ),
    ] = None,
    _version: VersionOption = False,
) -> None:
    """Start the federation, or resume it, and stay until it ends.

    Run the same command again to resume.
    """
    if context.invoked_subcommand is not None:
        if config is not None or dry_run:
            raise click.UsageError(
                f"--config and --dry-run start the server: leave out '{context.invoked_subcommand}'"
            )
        return
    path = config or Path(CONFIG_FILE)
    settings = ServerConfig.from_yaml(path).under(path.absolute().parent)
    if dry_run:
        sys.stdout.write(json.dumps(_dry_run(settings, epsilon), indent=2) + "\n")
        return
    from lift_server.app import serve  # torch and flwr take seconds: a typo must not wait for them

    serve(settings, Console(stderr=True))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    host: Annotated[
        list[str],
        typer.Option(help="Name or IP address that sites dial; repeat it for further ones."),
    ],
    name: Annotated[str, typer.Option(help="Name of the federation.")],
) -> None:
    """Make certificates, an empty roster of sites and a commented server.yaml."""
    provisioning.init_folder(folder, host, name)
    config = load_settings(folder)
    _write(
        f"made: {folder}",
        f"address: {config.address}",
        f"certificate authority: {certificates.ca_fingerprint(config.certificates)}",
        f"keep secret: {config.certificates / CA_KEY_FILE} (makes certificates), "
        f"{config.certificates / SERVER_KEY_FILE}",
    )
    _next(
        f"edit {shlex.quote(str(folder / CONFIG_FILE))}; lift-server release-key {_quoted(folder)} "
        "--output KEYS, on a medium that stays offline; then for each site: "
        f"lift-server add-site {_quoted(folder)} NAME SITE.PUB"
    )


@app.command("add-site")
def add_site(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The site's name.")],
    public_key: Annotated[
        Path, typer.Argument(metavar="PUBKEY", help="The site.pub that the site sent.")
    ],
) -> None:
    """Admit one site and write its kit; nothing of any other site changes.

    A removed site can be admitted again. With the key it had this works as long as no server
    was running after the removal; else let the site enroll anew and admit the new key.
    """
    config = load_settings(folder)
    done = roster.add_site(config, name, public_key)
    said = {
        "new": f"admitted: {name}",
        "unchanged": f"{name} is admitted with this key already; its kit was written anew",
        "same_key": f"admitted again, with the key it had: {name}\n"
        "if the server refuses this key, let the site enroll anew and admit the new one",
        "new_key": f"admitted again, with a new key: {name}",
    }
    _write(
        said[done.change],
        f"key: {done.fingerprint}",
        f"kit: {done.kit}",
        "compare both fingerprints with the site by telephone; the authority's: "
        f"{done.ca_fingerprint}",
    )
    _next(
        f"send the folder {shlex.quote(str(done.kit))} to the site (nothing in it is secret); "
        "a running server takes the site from its next round"
    )


@app.command("remove-site")
def remove_site(
    folder: Folder, name: Annotated[str, typer.Argument(help="The site's name.")]
) -> None:
    """Remove one site: a running server refuses it from the next round."""
    changed = roster.remove_site(load_settings(folder), name)
    _write(f"removed: {name}" if changed else f"{name} was removed before; nothing was changed")
    _next(f"lift-server check {_quoted(folder)}   # is the quorum still within reach?")


@app.command()
def renew(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or IP address; default: those of the present certificate."),
    ] = None,
) -> None:
    """Make a new server certificate from the same authority: every kit stays good."""
    config = load_settings(folder)
    made = certificates.renew_server_certificate(config.certificates, host or _hosts(config))
    _write(
        f"valid until: {made.not_valid_after_utc:%Y-%m-%d}",
        f"hosts: {', '.join(certificates.certificate_hosts(made))}",
    )
    _next("stop the server and start it again: it reads the certificate at its start")


@app.command()
def check(folder: Folder) -> None:
    """Test everything that a start needs, one verdict each; nothing is changed."""
    verdicts: list[Verdict] = []
    for verdict in run_checks(folder, datetime.now(UTC)):
        verdicts.append(verdict)
        lines = [f"{verdict.check:<14} {verdict.verdict:<8} {verdict.detail}"]
        lines += [f"{'':<23} {line}" for line in verdict.fix.splitlines()]
        _write(*lines)
    problems = [verdict for verdict in verdicts if verdict.verdict == "problem"]
    if problems:
        _next(f"mend what is marked `problem`, then: lift-server check {_quoted(folder)}")
        labels = [verdict.label for verdict in problems]
        first = next((label for label in _WORST_FIRST if label in labels), labels[0])
        raise typer.Exit(EXIT_CODES[first].number)
    _next(f"lift-server --config {shlex.quote(str(folder / CONFIG_FILE))}")


@app.command()
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the running federation: its round, each site with its last contact, certificates."""
    config = load_settings(folder)
    now = datetime.now(UTC)
    rounds = RoundsFile(config.output)
    shown = describe(config, now, rounds)
    shown["next"] = str(shown["next"]).replace("DIR", _quoted(folder))
    if as_json:
        sys.stdout.write(json.dumps(shown, indent=2, allow_nan=False) + "\n")
        return
    console = Console(
        width=None if sys.stdout.isatty() else _PIPE_WIDTH, markup=False, highlight=False
    )
    show(console, config.name, shown, now, rounds.read().lines)
    _next(shown["next"])


@app.command()
def page(
    folder: Folder,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Another port than page_port.")
    ] = None,
) -> None:
    """Serve the live page alone, of a run that is over or whose page is switched off.

    A running server serves its own page; this one reads the same files and changes none.
    """
    from lift_server.watch.live.app import serve_page
    from lift_server.watch.live.process import page_url

    config = load_settings(folder)
    if port is not None:
        config = config.model_copy(update={"page_port": port})
    if config.page_port is not None:
        sys.stderr.write(f"live page: {page_url(config)}  (Ctrl-C ends it)\n")
    serve_page(config)


@app.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    audit: Annotated[
        list[Path] | None,
        typer.Option(help="A site's `lift audit patients`; once for each site."),
    ] = None,
    without_audit: Annotated[
        bool,
        typer.Option(
            "--without-audit", help="Release although audits are missing; the bundle says so."
        ),
    ] = False,
    release_key: Annotated[
        Path | None,
        typer.Option(
            metavar="KEYS",
            help="Sign it too, with the folder of `release-key`; default: `sign-release` later.",
        ),
    ] = None,
) -> None:
    """Make the release bundle of the finished mixer, with a manifest of every file.

    It needs an audit of every site that the mixer learned from. Under patient-level privacy it
    takes none, since their figures are exact: training is audited here, with invented patients;
    that takes some minutes.
    """
    config = load_settings(folder)
    key = None
    if release_key is not None:
        from lift_server.release.key import check_release_key, read_release_key

        key = read_release_key(release_key)
        check_release_key(key, config.certificates, datetime.now(UTC))
    from lift_server.release.export import (
        export_run,  # torch takes seconds: a typo must not wait for it
    )

    def audit_training(plan: Plan) -> TrainingAudit:
        from lift.audit.training import training_audit

        sys.stderr.write("auditing the training with invented patients ...\n")
        return training_audit(plan, bundle_folder(config.generator))

    sums = export_run(
        config,
        output,
        audits=audit or (),
        without_audit=without_audit,
        audit_training=audit_training,
    )
    _write(f"exported: {output}", *sums)
    if key is None:
        _next(
            "nobody can check it yet: read RELEASE.txt, then on the machine of the release key: "
            f"lift-server sign-release {_quoted(output)} --release-key KEYS"
        )
        return
    from lift_server.release.key import sign_release

    sign_release(output, key)
    _signed(output, key)


@app.command("release-key")
def make_key(
    folder: Folder,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="KEYS", help="Folder to make, kept offline.")
    ],
) -> None:
    """Make the key that signs releases, and nothing else, under this federation's authority.

    It needs ca.key. Keep the folder on a medium that stays offline: `export` and `sign-release`
    need it, the server never does.
    """
    from lift_server.release.key import RELEASE_KEY_FILE, make_release_key

    config = load_settings(folder)
    made = make_release_key(config.certificates, output, config.name)
    _write(
        f"keep secret, and offline: {output / RELEASE_KEY_FILE}",
        f"valid until: {made.certificate.not_valid_after_utc:%Y-%m-%d}",
        f"release key: {made.fingerprint}",
    )
    _next("read this fingerprint to every site, by telephone; then put ca.key offline again")


@app.command("sign-release")
def sign_release_folder(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder that `export` made.")],
    release_key: Annotated[
        Path, typer.Option(metavar="KEYS", help="Folder that `release-key` made.")
    ],
) -> None:
    """Sign a release whose files fit its manifest; works on a machine without network."""
    from lift_server.release.key import read_release_key, sign_release

    key = read_release_key(release_key)
    sign_release(release, key)
    _signed(release, key)


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)


def _dry_run(config: ServerConfig, epsilon: float | None) -> dict[str, object]:
    """The resolved plan and what a run would send, without starting anything."""
    from lift.device import resolve_device
    from lift.tasks.describe import describe_dry_run
    from lift.tasks.registry import load_generator, with_generator

    generator = load_generator(
        bundle_folder(config.generator),
        expected_fingerprint=config.plan.generator_fingerprint,
        device=resolve_device("cpu"),
    )
    plan = with_generator(config.plan, generator)
    check_task(generator.card, plan.task, plan.preprocessing)
    sites = list(roster.Roster.read(config.sites).admitted_keys)
    return describe_dry_run(plan, generator, sites, epsilon=epsilon)


def _signed(release: Path, key: ReleaseKey) -> None:
    _write(f"signed: {release}", f"release key: {key.fingerprint}")
    _next(f"lift verify-release {_quoted(release)} --ca ca.pem, then send the folder")


def _hosts(config: ServerConfig) -> Sequence[str]:
    """What the server's certificate is for now, and the address that sites dial."""
    address = certificates.address_host(config.address)
    path = config.certificates / SERVER_FILE
    present = (
        certificates.certificate_hosts(certificates.read_certificate(path)) if path.exists() else ()
    )
    return (address, *present)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _write(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _next(text: str) -> None:
    # advice, not the result
    sys.stderr.write(f"next: {text}\n")
