"""`lift-server`: the commands of the coordinator. Only the start itself loads torch."""

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

from lift.commands import LogFormatOption, VersionOption, console_of, log_lines, run_command
from lift.config.plan import Plan
from lift.config.server import ServerConfig
from lift.errors import EXIT_CODES, ConfigError
from lift.generator.card import bundle_folder
from lift_server.preflight import Verdict, run_checks
from lift_server.rounds.decision import decide
from lift_server.sites import certificates, provisioning, roster
from lift_server.sites.certificates import CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE
from lift_server.sites.provisioning import CONFIG_FILE, load_settings
from lift_server.trial.command import try_federation
from lift_server.watch.board import show
from lift_server.watch.rounds_file import RoundsFile
from lift_server.watch.status import STATUS_FILE
from lift_server.watch.status_view import describe, is_alive, read_status

if TYPE_CHECKING:
    from lift.audit.documents import TrainingAudit
    from lift_server.release.key import ReleaseKey

PROGRAM = "lift-server"
# the kind of problem to fix first decides the exit code
_WORST_FIRST: Final = ("config", "version", "connection", "data", "quorum")
_PIPE_WIDTH: Final = 120

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Coordinate a federation: admit sites, run the rounds, release the result.",
)
app.command("try")(try_federation)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help=f"Folder that holds {CONFIG_FILE}.")]


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help=f"Settings (YAML). Default: {CONFIG_FILE} in this folder.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved plan and its privacy cost, then exit."),
    ] = False,
    epsilon: Annotated[
        float | None,
        typer.Option(help="With --dry-run: print the noise multiplier that this epsilon needs."),
    ] = None,
    log_format: LogFormatOption = "text",
    _version: VersionOption = False,
) -> None:
    """Without a command: start or resume the federation, and run until it ends.

    Run the same command again to resume.
    """
    if context.invoked_subcommand is not None:
        if config is not None or dry_run or log_format != "text":
            raise click.UsageError(
                "--config, --dry-run and --log-format start the server; omit "
                f"'{context.invoked_subcommand}'"
            )
        return
    path = config or Path(CONFIG_FILE)
    with log_lines(PROGRAM, log_format):
        settings = ServerConfig.from_yaml(path).under(path.absolute().parent)
        if dry_run:
            sys.stdout.write(json.dumps(_dry_run(settings, epsilon), indent=2) + "\n")
            return
        # torch and flwr take seconds: a typo must not wait for them
        from lift_server.app import serve

        serve(settings, console_of(log_format, "lift_server.terminal"), log_format)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create.")],
    host: Annotated[
        list[str],
        typer.Option(help="Host name or IP address that sites connect to. May be repeated."),
    ],
    name: Annotated[str, typer.Option(help="Name of the federation.")],
) -> None:
    """Create certificates, an empty roster of sites and a commented server.yaml."""
    provisioning.init_folder(folder, host, name)
    config = load_settings(folder)
    _write(
        f"created: {folder}",
        f"address: {config.address}",
        f"certificate authority: {certificates.ca_fingerprint(config.certificates)}",
        f"keep secret: {config.certificates / CA_KEY_FILE} (makes certificates), "
        f"{config.certificates / SERVER_KEY_FILE}",
    )
    _next(
        f"edit {shlex.quote(str(folder / CONFIG_FILE))}; lift-server release-key {_quoted(folder)} "
        "--output KEYS, on an offline medium; then for each site: "
        f"lift-server add-site {_quoted(folder)} NAME SITE.PUB"
    )


@app.command("add-site")
def add_site(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    public_key: Annotated[
        Path, typer.Argument(metavar="PUBKEY", help="The site.pub file from the site.")
    ],
    patients: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Patients that the site declares. The server refuses a higher claim, and the "
            "quorum counts this number. Give it again to change it.",
        ),
    ] = None,
) -> None:
    """Admit one site and write its kit. Other sites are not affected.

    A removed site can be admitted again. Its old key works only if no server was running after
    the removal. Otherwise the site must enroll again, and you admit its new key.
    """
    config = load_settings(folder)
    done = roster.add_site(config, name, public_key, patients=patients)
    said = {
        "new": f"admitted: {name}",
        "unchanged": f"{name} is already admitted with this key; its kit was written again",
        "same_key": f"admitted again, with its old key: {name}\n"
        "if the server refuses this key, the site must enroll again; then admit its new key",
        "new_key": f"admitted again, with a new key: {name}",
    }
    _write(
        said[done.change],
        f"key: {done.fingerprint}",
        f"kit: {done.kit}",
        "declared patients: "
        + ("none: what it claims is taken" if done.patients is None else str(done.patients)),
        "compare both fingerprints with the site by telephone; certificate authority: "
        f"{done.ca_fingerprint}",
    )
    _next(
        f"send the folder {shlex.quote(str(done.kit))} to the site (nothing in it is secret); "
        "a running server includes the site from its next round"
    )


@app.command("remove-site")
def remove_site(
    folder: Folder, name: Annotated[str, typer.Argument(help="Name of the site.")]
) -> None:
    """Remove one site. A running server refuses it from the next round."""
    changed = roster.remove_site(load_settings(folder), name)
    _write(f"removed: {name}" if changed else f"{name} is already removed; nothing was changed")
    _next(f"lift-server check {_quoted(folder)}   # can the quorum still be reached?")


@app.command("go-on")
def go_on(
    folder: Folder,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE", help="Leave this site out for the rest of the run."),
    ] = None,
) -> None:
    """Let a server go on that waits because a round missed its quorum.

    Without an option the same sites are asked again. A site that is left out stays admitted: the
    next run asks it again. Nothing that it contributed before is taken back.
    """
    config = load_settings(folder)
    found = read_status(config)
    if found is None or found.phase != "decision" or not is_alive(found):
        raise ConfigError(
            "no server waits for a decision",
            where=str(config.state / STATUS_FILE),
            seen="it is not running"
            if found is None or not is_alive(found)
            else f"it is in phase '{found.phase}'",
            remedy="See `lift-server status`. A server that ended goes on by the command that "
            "started it; `remove-site` removes a site for good.",
        )
    known = roster.Roster.read(config.sites).admitted_keys
    unknown = sorted(set(without or ()) - set(known))
    if unknown:
        raise ConfigError(
            "cannot go on without a site that is not admitted",
            where="--without",
            seen=f"{', '.join(unknown)}; admitted: {', '.join(sorted(known))}",
            remedy="Nothing was changed. Give a name of an admitted site.",
        )
    decide(config.state, without or ())
    _write("the server goes on" + (f" without {', '.join(without)}" if without else ""))
    _next(f"lift-server status {_quoted(folder)}")


@app.command()
def renew(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Host name or IP address. Default: those of the current certificate."),
    ] = None,
) -> None:
    """Create a new server certificate from the same authority. All kits stay valid."""
    config = load_settings(folder)
    made = certificates.renew_server_certificate(config.certificates, host or _hosts(config))
    _write(
        f"valid until: {made.not_valid_after_utc:%Y-%m-%d}",
        f"hosts: {', '.join(certificates.certificate_hosts(made))}",
    )
    _next("restart the server: it reads the certificate when it starts")


@app.command()
def check(folder: Folder) -> None:
    """Run all preflight checks of the server and print one result per line. Changes nothing."""
    verdicts: list[Verdict] = []
    for verdict in run_checks(folder, datetime.now(UTC)):
        verdicts.append(verdict)
        lines = [f"{verdict.check:<14} {verdict.verdict:<8} {verdict.detail}"]
        lines += [f"{'':<23} {line}" for line in verdict.fix.splitlines()]
        _write(*lines)
    problems = [verdict for verdict in verdicts if verdict.verdict == "problem"]
    if problems:
        _next(f"fix what is marked `problem`, then run: lift-server check {_quoted(folder)}")
        labels = [verdict.label for verdict in problems]
        first = next((label for label in _WORST_FIRST if label in labels), labels[0])
        raise typer.Exit(EXIT_CODES[first].number)
    _next(f"lift-server --config {shlex.quote(str(folder / CONFIG_FILE))}")


@app.command()
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the running federation: round, sites with last contact, certificates."""
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
        int | None, typer.Option(min=1, max=65535, help="Port to use instead of page_port.")
    ] = None,
) -> None:
    """Serve only the live page, for a run that has ended or has its page switched off.

    A running server serves its own page. This command reads the same files and changes nothing.
    """
    from lift_server.watch.live.app import serve_page
    from lift_server.watch.live.process import page_url

    config = load_settings(folder)
    if port is not None:
        config = config.model_copy(update={"page_port": port})
    if config.page_port is not None:
        sys.stderr.write(f"live page: {page_url(config)}  (Ctrl-C stops it)\n")
    serve_page(config)


@app.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    audit: Annotated[
        list[Path] | None,
        typer.Option(help="Result of `lift audit patients` from one site. Repeat for each site."),
    ] = None,
    without_audit: Annotated[
        bool,
        typer.Option(
            "--without-audit", help="Release without the missing audits. The bundle states this."
        ),
    ] = False,
    release_key: Annotated[
        Path | None,
        typer.Option(
            metavar="KEYS",
            help="Also sign it, with the folder made by `release-key`. Default: sign it later.",
        ),
    ] = None,
) -> None:
    """Create the release bundle of the finished mixer, with a manifest of all files.

    It needs an audit from every site that contributed to the mixer. Under patient-level privacy it
    accepts no audits from sites, since their figures are exact. It then audits the training with
    invented patients, which takes a few minutes.
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
            "not signed yet: read RELEASE.txt, then on the machine with the release key run: "
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
        Path,
        typer.Option("--output", "-o", metavar="KEYS", help="Folder to create. Keep it offline."),
    ],
) -> None:
    """Create the key that signs releases, certified by the authority of this federation.

    It needs ca.key. Keep the folder on an offline medium. `export` and `sign-release` need it; the
    server never does.
    """
    from lift_server.release.key import RELEASE_KEY_FILE, make_release_key

    config = load_settings(folder)
    made = make_release_key(config.certificates, output, config.name)
    _write(
        f"keep secret, and offline: {output / RELEASE_KEY_FILE}",
        f"valid until: {made.certificate.not_valid_after_utc:%Y-%m-%d}",
        f"release key: {made.fingerprint}",
    )
    _next("read this fingerprint to every site by telephone, then move ca.key offline again")


@app.command("sign-release")
def sign_release_folder(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder made by `export`.")],
    release_key: Annotated[
        Path, typer.Option(metavar="KEYS", help="Folder made by `release-key`.")
    ],
) -> None:
    """Sign a release whose files match its manifest. Works without a network."""
    from lift_server.release.key import read_release_key, sign_release

    key = read_release_key(release_key)
    sign_release(release, key)
    _signed(release, key)


@app.command()
def withdraw(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="Name of the site, removed or not.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="NOTICE", help="File to create (.json).")
    ],
    release_key: Annotated[
        Path, typer.Option(metavar="KEYS", help="Folder made by `release-key`.")
    ],
    release: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Release made with the site. Repeat for each. Default: all in the coordinator's "
            "folder.",
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option(help="One sentence, which everybody may read. Nothing about patients.")
    ] = "",
) -> None:
    """Write a signed notice that a site, or a patient of it, has withdrawn.

    It names the releases whose run counted an update of the site, and says nothing about patients.
    Send it to everyone who has such a release: `lift verify-release --notices` shows it. It does
    not remove the site: see `remove-site`.
    """
    from lift_server.release.key import check_release_key, read_release_key
    from lift_server.release.notice import write_notice

    config, now = load_settings(folder), datetime.now(UTC)
    key = read_release_key(release_key)
    check_release_key(key, config.certificates, now)
    made = write_notice(
        config,
        site,
        output,
        key,
        releases=release or (),
        searched=folder,
        reason=reason,
        now=now,
    )
    _write(
        f"notice: {output}",
        *(f"names: {path}, manifest {digest}" for path, digest in made.named.items()),
        *(f"does not name: {path}, made without {site}" for path in made.others),
    )
    _next("send this file to every site, and to everyone who has one of these releases")


def main() -> None:
    """Entry point."""
    run_command(app, PROGRAM)


def _dry_run(config: ServerConfig, epsilon: float | None) -> dict[str, object]:
    """Return the resolved plan and what a run would send. Starts nothing."""
    from lift.device import resolve_device
    from lift.tasks.describe import describe_dry_run
    from lift.tasks.registry import open_generator

    cpu = resolve_device("cpu")
    generator, plan = open_generator(config.plan, config.generator, device=cpu)
    sites = list(roster.Roster.read(config.sites).admitted_keys)
    return describe_dry_run(plan, generator, sites, epsilon=epsilon)


def _signed(release: Path, key: ReleaseKey) -> None:
    _write(f"signed: {release}", f"release key: {key.fingerprint}")
    _next(f"run: lift verify-release {_quoted(release)} --ca ca.pem, then send the folder")


def _hosts(config: ServerConfig) -> Sequence[str]:
    """Return the hosts of the current certificate and the address that sites connect to."""
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
