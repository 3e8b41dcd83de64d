"""The running server: child process, sites, rounds and record. The same command resumes."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from types import FrameType

from rich.console import Console, RenderableType

from lift.config.plan import Plan
from lift.config.server import ServerConfig
from lift.device import fix_threads, resolve_device
from lift.errors import CheckpointError, ConfigError, QuorumError
from lift.files import close_folder, held_alone
from lift.generator.base import Generator
from lift.logs import LogFormat, log_to_file
from lift.privacy.costs import describe_privacy, summary
from lift.protocol.flower.apps import Connected
from lift.protocol.flower.children import keep_loopback_direct
from lift.protocol.flower.coordinator import Coordinator, SuperLink, make_secret
from lift.protocol.flower.superlink import SuperLinkSettings
from lift.protocol.health import health_service
from lift.protocol.messages import Kind
from lift.protocol.transport import Transport
from lift.records.rounds import ROUNDS_FILE, RoundRecord, SiteStatistics, clips_told
from lift.records.run import FEDERATION, RunRecord, SiteRecord, loss_record, read_run_record
from lift.tasks.describe import describe_run
from lift.tasks.registry import open_generator, task_of
from lift.tracking.base import About
from lift.tracking.run import Tracking
from lift_server.release.privacy_record import epsilon_by_site
from lift_server.release.results import (
    gain_record,
    most_bytes,
    shipped_record,
    site_metrics,
    verdicts,
    write_finished_mixer,
)
from lift_server.rounds.decision import forget_decision, sites_left_out, take_decision
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.ledger_heads import HEADS_FILE, LedgerHeads
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.noised import NOISED_FOLDER
from lift_server.rounds.store import RunStore
from lift_server.sites.certificates import certificate_notices
from lift_server.sites.roster import Roster
from lift_server.tasks.registry import run_task
from lift_server.watch.board import board, live_board
from lift_server.watch.live.process import live_page
from lift_server.watch.rounds_file import RoundsFile
from lift_server.watch.status import STATUS_FILE, StatusFile
from lift_server.watch.status_view import describe

logger = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.3


def serve(config: ServerConfig, console: Console, log_format: LogFormat = "text") -> None:
    """Run the federation to its end, or from its last checkpoint to its end.

    Args:
        config: the server's settings.
        console: takes what the operator is told.
        log_format: of the lines of the log file.

    Raises:
        LiftError: see the message; nothing that was finished is lost.
    """
    keep_loopback_direct()
    signal.signal(signal.SIGTERM, _stop)
    close_folder(config.state)
    with (
        held_alone(config.state / "lock", _already_running(config.state)),
        log_to_file(config.state / "log.txt", log_format),
        Tracking(
            config.tracking,
            config.output,
            say=partial(console.print, markup=False, highlight=False, soft_wrap=True),
        ) as tracking,
    ):
        cpu = resolve_device("cpu")
        generator, plan = open_generator(config.plan, config.generator, device=cpu)
        fix_threads(plan.threads)
        _Server(config, plan, generator, console, tracking).run()


class _Server:
    def __init__(
        self,
        config: ServerConfig,
        plan: Plan,
        generator: Generator,
        console: Console,
        tracking: Tracking,
    ) -> None:
        self._tracking = tracking
        self._config = config
        self._plan = plan
        self._generator = generator
        self._console = console
        self._status = StatusFile(config.state / STATUS_FILE, plan.federation.rounds)
        self._online: dict[str, Connected] = {}
        self._rounds_file = RoundsFile(config.output)

    def run(self) -> None:
        config, plan = self._config, self._plan
        record = _read_record(config.output, plan)
        if record is not None and record.complete:
            self._say(f"this run is already complete: {config.output}")
            # the report is written last: a server that was killed there has none
            if not (config.output / "report.html").is_file():
                self._report()
            return
        record = self._begun(record)
        record.write(config.output)
        self._tracking.begin(
            About(config.name, plan.digest(), config.phantom), config.output / ROUNDS_FILE
        )
        self._say(f"{config.name}: {plan.federation.rounds} rounds; answers to {config.address}")
        self._say(summary(self._privacy()))
        for notice in certificate_notices(config.certificates, datetime.now(UTC)):
            logger.warning("event=certificate_notice %s", notice)
            self._say(f"certificate: {notice}")
        self._name_undeclared()
        settings = self._settings()
        make_secret(Path(settings.secret))
        superlink = SuperLink(settings, config.state / "superlink.log")
        finished: list[FinishedRun] = []
        try:
            with (
                health_service(config.health_port),
                live_page(config, self._say),
                superlink.running(),
            ):
                coordinator = Coordinator(superlink, settings)

                def main(transport: Transport) -> None:
                    finished.append(self._rounds(transport, coordinator))

                coordinator.admit(self._roster())
                with self._status.kept(), live_board(self._console, self._look):
                    coordinator.run(
                        main,
                        on_sites=partial(self._see, coordinator),
                        on_answer=self._status.answered,
                    )
                coordinator.close()
        except BaseException:
            self._status.end("stopped")
            raise
        self._finish(record, finished[0])
        self._status.end("done")
        if finished[0].shipped is not None:
            self._say(finished[0].shipped.sentence)
        self._say(f"done: {config.output / 'mixer.safetensors'}")

    def _rounds(self, transport: Transport, coordinator: Coordinator) -> FinishedRun:
        def roster() -> list[str]:
            admitted = self._roster()
            # sites that were admitted or removed since the last check, from now on
            coordinator.admit(admitted)
            without = sites_left_out(self._config.state, self._plan.digest())
            return sorted(set(admitted) - set(without))

        self._wait_for_sites(transport, roster)
        return run_rounds(
            self._plan,
            transport,
            RunStore(self._config.output, self._plan.digest()),
            run_task(self._plan, self._generator),
            roster=roster,
            on_round=self._round_done,
            heads_file=self._config.state / HEADS_FILE,
            noised_folder=self._config.state / NOISED_FOLDER,
            on_ask=self._status.asking,
            on_missed=partial(self._await_decision, coordinator),
            declared=lambda: Roster.read(self._config.sites).declared_patients,
        )

    def _await_decision(self, coordinator: Coordinator, error: QuorumError) -> None:
        """Wait until the coordinator decides, or one of the missing sites connects anew.

        Raises:
            QuorumError: nobody decided in time, or the settings say not to wait.
        """
        state = self._config.state
        if not self._config.decision_within_s:
            raise error
        self._status.deciding()
        forget_decision(state)
        logger.error("event=quorum_missed %s", error)
        for line in (error.what, *error.seen.splitlines()):
            self._say(line)
        self._say(
            "waiting for a decision: repair a site and restart its client, or `lift-server go-on "
            "DIR --without SITE`, or Ctrl-C (the same command goes on later)"
        )
        before = coordinator.connected()
        end = monotonic() + self._config.decision_within_s
        while monotonic() < end:
            decision = take_decision(state, self._plan.digest())
            if decision is not None:
                self._say(f"goes on without: {', '.join(decision.without) or 'nobody'}")
                return
            now = coordinator.connected()
            anew = sorted(site for site in now if before.get(site) != now[site])
            if anew:
                self._say(f"connected anew: {', '.join(anew)}; the round is asked for again")
                return
            self._see(coordinator, now)
            sleep(_LOOK_EVERY_S)
        raise error

    def _wait_for_sites(self, transport: Transport, roster: Callable[[], list[str]]) -> None:
        """Until the quorum of sites is connected, at most `wait_for_sites_s`."""
        end = monotonic() + self._config.wait_for_sites_s
        said: list[str] | None = None
        while True:
            admitted = roster()
            needed = self._plan.federation.quorum_sites or len(admitted)
            here = sorted(set(transport.sites()) & set(admitted))
            missing = [site for site in admitted if site not in here]
            if admitted and len(here) >= needed:
                self._say(f"connected: {', '.join(here)}")
                return
            if missing != said:
                said = missing
                self._say(f"waiting for {needed - len(here)} of: {', '.join(missing) or 'none'}")
            if not admitted or monotonic() >= end:
                raise QuorumError(
                    "too few sites connected",
                    where="wait_for_sites_s",
                    seen=f"{len(here)} of {len(admitted)} admitted sites were connected; needed: "
                    f"{max(needed, 1)}\nmissing: {', '.join(missing) or 'no site is admitted'}",
                    remedy="Nothing was started or lost. Admit sites with `lift-server add-site`, "
                    "ask them to run `lift-client check`, and start again.",
                )
            sleep(_LOOK_EVERY_S)

    def _see(self, coordinator: Coordinator, connected: Mapping[str, Connected]) -> None:
        """Name who came and who went."""
        for site in coordinator.second_sessions():
            logger.error("event=key_used_twice site=%s", site)
            self._say(
                f"key used twice: another client came with the key of {site} and was refused; ask "
                "the site whether it runs a second one. If not, its key was copied: remove-site"
            )
        before, now = self._online, dict(connected)
        for site in sorted(now):
            if site not in before:
                logger.info("event=site_connected site=%s", site)
            elif now[site] != before[site]:
                # it was away for less than its lease
                logger.info("event=site_reconnected site=%s", site)
        for site in sorted(set(before) - set(now)):
            logger.warning("event=site_lost site=%s", site)
            self._say(f"lost: {site}")
        self._online = now
        self._status.connected(set(now))

    def _round_done(self, record: RoundRecord) -> None:
        names = sorted(record.counted)
        refused = ", ".join(f"{site} ({why})" for site, why in sorted(record.refused.items()))
        missing = f"; not counted: {refused}" if refused else ""
        # on a terminal the board shows it
        # verdicts come after the last round, and are none
        rounds = self._plan.federation.rounds
        last = record.kind == Kind.GUARD.value
        place = f"after {rounds} rounds" if last else f"round {record.round} of {rounds}"
        took = "" if record.seconds is None else f" · {record.seconds} s"
        clipped = f"; clipped: {clips_told(record)}" if record.clipped else ""
        self._say_when_piped(
            f"{place} · {record.kind} · counted: {', '.join(names) or 'none'}"
            f"{missing}{clipped}{took}"
        )
        if record.fall is not None:
            self._say(f"round {record.round}: {record.fall.sentence}")
        self._status.round_done(record)
        self._tracking.round_done(record)

    def _name_undeclared(self) -> None:
        """Warn of sites whose claimed numbers of patients nothing bounds."""
        if self._plan.protects_patients:
            return  # the plan's public numbers hold
        roster = Roster.read(self._config.sites)
        unknown = [site for site in roster.admitted_keys if site not in roster.declared_patients]
        if unknown:
            logger.warning("event=no_declared_patients sites=%s", ",".join(unknown))
            self._say(
                f"no declared number of patients: {', '.join(unknown)}; what they claim is taken "
                "for weights and quorum (`lift-server add-site DIR NAME PUBKEY --patients N`)"
            )

    def _roster(self) -> dict[str, str]:
        return Roster.read(self._config.sites).admitted_keys

    def _settings(self) -> SuperLinkSettings:
        config = self._config
        return SuperLinkSettings(
            listen_host=config.listen_host,
            listen_port=config.listen_port,
            control_port=config.control_port,
            ca=str(config.certificates / "ca.pem"),
            certificate=str(config.certificates / "server.pem"),
            key=str(config.certificates / "server.key"),
            database=str(config.state / "superlink.db"),
            secret=str(config.state / "executor.secret"),
            second_sessions=str(config.state / "second-sessions.txt"),
        )

    def _begun(self, before: RunRecord | None) -> RunRecord:
        found = describe_run(self._plan, self._generator)
        begun = RunRecord(
            plan=found.plan,
            name=self._config.name,
            kind=FEDERATION,
            phantom=self._config.phantom,
            data_statement=self._config.data_statement,
            command="lift-server --config server.yaml",
            started=(None if before is None else before.started) or _now(),
            finished=None,
            complete=False,
        )
        return begun.described(found).updated(privacy=self._privacy())

    def _finish(self, record: RunRecord, run: FinishedRun) -> None:
        out = self._config.output
        write_finished_mixer(
            out / "mixer.safetensors", self._plan, run, phantom=self._config.phantom
        )
        metrics = site_metrics(run)
        metrics.write(out)
        self._tracking.finished(metrics)
        known = run.records[0].statistics
        finished = record.updated(
            finished=_now(),
            complete=True,
            guard=verdicts(run.guard),
            **shipped_record(run.shipped),
            **gain_record(run.gain),
            loss_trend=loss_record([run.records]) if task_of(self._plan).loss_falls else None,
            epsilon_met=epsilon_by_site(self._plan, run.records),
            ledger_heads=LedgerHeads(self._config.state / HEADS_FILE).known(known),
            update_bytes=most_bytes(run.records, "train"),
            statistics_bytes=most_bytes(run.records, "statistics"),
            sites=tuple(_site(site, known[site]) for site in sorted(known)),
        )
        finished.write(out)
        self._report()

    def _report(self) -> None:
        """The run report; a fault in it must not spoil a run that is complete."""
        from lift.report.page import write_report  # pictures are needed at the end alone

        try:
            self._say(f"report: {write_report(self._config.output)}")
        except Exception:
            logger.exception("event=report_failed")
            self._say("no report: a fault of this software, see the log; the run is complete")

    def _privacy(self) -> dict[str, object]:
        return describe_privacy(self._plan, sorted(self._roster()))

    def _look(self, now: datetime) -> tuple[str, RenderableType]:
        shown = describe(self._config, now, self._rounds_file)
        return shown["summary"], board(shown, self._rounds_file.read().lines, now)

    def _say_when_piped(self, line: str) -> None:
        if not self._console.is_terminal:
            self._say(line)

    def _say(self, line: str) -> None:
        # a line of a log is not wrapped
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _read_record(out: Path, plan: Plan) -> RunRecord | None:
    """`run.json` of the run that is resumed; None for a new one.

    Raises:
        CheckpointError: the folder holds the run of another plan, or a damaged record.
    """
    try:
        record = read_run_record(out)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise CheckpointError(
            "cannot resume: run.json is damaged",
            where=str(out),
            seen="it is not the JSON that a run writes",
            remedy="Move the folder away, or choose another output.",
        ) from None
    if record.plan_digest != plan.digest():
        raise CheckpointError(
            "the output folder holds a run of another plan",
            where=str(out),
            seen=f"plan {record.plan_digest[:12]}... there, {plan.digest()[:12]}... now",
            remedy="Nothing was changed. Choose another output, or restore the plan.",
        )
    return record


def _already_running(folder: Path) -> ConfigError:
    return ConfigError(
        "a server is already running on this state folder",
        where=str(folder),
        seen="its lock is held",
        remedy="See `lift-server status`; stop that server first, or use another folder.",
    )


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the process as Ctrl-C does: the child is stopped, the record kept."""
    del number, frame
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _site(name: str, said: SiteStatistics) -> SiteRecord:
    return SiteRecord.of(
        name,
        train=said.train_patients,
        validation=said.validation_patients,
        test=said.test_patients,
        refused=said.refused_volumes,
        spacings_mm=(said.lowest_slice_spacing_mm, said.highest_slice_spacing_mm),
    )
