"""A simulated unconditional run: decoder, federation, baselines, evidence.

The same command resumes: the decoder, rounds and baselines that are there are kept, and a
finished run is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from lift.config.plan import Plan
from lift.config.privacy import NoPrivacy
from lift.config.simulation import SimulationConfig
from lift.config.site import SiteSettings
from lift.errors import ConfigError
from lift.files import write_atomically
from lift.generator.card import CARD_FILE, bundle_folder
from lift.metrics.distribution import EVALUATION_SEED
from lift.records.rounds import ROUNDS_FILE, RoundRecord
from lift.report.page import write_report
from lift.tasks.registry import with_generator
from lift.tasks.unconditional.bundle import load_decoder
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.drifting.statistics import Sums
from lift.tasks.unconditional.learning import (
    load_trajectory,
    plan_mapper,
    settings_of,
    statistics_loss,
    train_mapper_round,
)
from lift.tasks.unconditional.moments import (
    TrajectorySums,
    fit_gaussian,
    form_of,
    patient_moments,
    trajectory,
)
from lift.tasks.unconditional.pretraining import pretrain_decoder, read_public_volumes
from lift.tasks.unconditional.public_gaussian import public_gaussian
from lift.tasks.unconditional.style import kept_with_mixer
from lift.tracking.base import About
from lift.tracking.run import Tracking
from lift_client.session import SiteSession
from lift_client.tasks.unconditional import UnconditionalWork
from lift_server.release.results import write_finished_mixer
from lift_server.rounds.finished import FinishedRun
from lift_simulation.baselines import read_baseline
from lift_simulation.federation import federate
from lift_simulation.progress import Reporter
from lift_simulation.sites import copies_for_sites, site_devices
from lift_simulation.tasks.generated import Evidence
from lift_simulation.tasks.opening import begin_run
from lift_simulation.tasks.record import RecordFile

Values = dict[str, Tensor]


def simulate_unconditional(
    config: SimulationConfig, out: Path, reporter: Reporter, tracking: Tracking, *, command: str
) -> Path:
    """Run it, or finish it, and return the path of its report.

    Raises:
        CheckpointError: the folder holds the run of other settings.
        LiftError: see the message.
    """
    record = RecordFile(out, config, command)
    if record.complete:
        reporter.line(f"this run is already complete: {out}")
        return out / "report.html"
    reporter.seconds.update(record.seconds)
    devices = site_devices(config)
    decoder = open_decoder(config, out, devices[config.sites[0].name], reporter)
    decoders = copies_for_sites(
        decoder, devices, lambda device: open_decoder(config, out, device, reporter)
    )
    plan = with_generator(config.plan, decoder)
    sites = begin_run(config, plan, decoder, out, record, reporter)
    tracking.begin(About(config.name, plan.digest(), config.phantom), out / ROUNDS_FILE)
    run = _Run(config, plan, decoder, out, reporter, tracking.round_done)
    with reporter.stage("features"):
        run.open(sites, decoders)
    record.keep_seconds(reporter.seconds)
    finished = run.federations(
        lambda result: write_finished_mixer(
            out / "mixer.safetensors", plan, result, phantom=config.phantom
        )
    )
    record.keep_seconds(reporter.seconds)
    shipped = finished["federated"].shipped
    trained = {name: _trained(result) for name, result in finished.items()}
    trained |= run.alone()
    if public := _public_gaussian(config, plan, decoder, out, reporter):
        trained["public_gaussian"] = public
    record.keep_seconds(reporter.seconds)
    with reporter.stage("evaluation"):
        evidence = Evidence(
            plan,
            decoder,
            run.works,
            count=config.generated_volumes,
            report=reporter.step,
        )
        table = evidence.table(trained)
        table.write(out)
        tracking.finished(table)
        released = _on_gaussian(finished["federated"].mixer, finished["federated"])
        evidence.write_samples(out / "synthesis", released, config.written_volumes)
    record.finish_unconditional(run.works, finished, reporter.seconds)
    with reporter.stage("report"):
        report = write_report(out)
    record.finish_unconditional(run.works, finished, reporter.seconds)
    if shipped is not None:
        reporter.line(shipped.sentence)
    return report


def _public_gaussian(
    config: SimulationConfig, plan: Plan, decoder: FrozenDecoder, out: Path, reporter: Reporter
) -> Values:
    """The Gaussian of the decoder's own public volumes: what there is without any hospital.

    Of the volumes where the run made its decoder, else of the bundle's public moments. Empty where
    there are none, or a sketch is wanted, which they cannot give.
    """
    settings = settings_of(plan)
    if settings.trajectory != "gaussian":
        return {}
    form = form_of(settings.gaussian, decoder)
    if config.pretrain is None:
        moments = decoder.public.moments
        if moments is None or form.columns:
            return {}
        return public_gaussian(moments, form).tensors() | plan_mapper(plan, decoder).values()
    with reporter.stage("public_gaussian"):
        by_subject: dict[str, list[Tensor]] = {}
        for volume in read_public_volumes(config.pretrain, out / "generator.work"):
            found = by_subject.setdefault(volume.subject, [])
            found.append(trajectory(volume.body, decoder, form))
        found_moments = [patient_moments(volumes, form) for volumes in by_subject.values()]
        gaussian = fit_gaussian(sum(found_moments, start=TrajectorySums.zero(form)))
    return gaussian | plan_mapper(plan, decoder).values()


def _trained(run: FinishedRun) -> Values:
    """What was trained, released or not, the Gaussian below it, and the sites' styles."""
    return _on_gaussian(run.trained, run)


def _on_gaussian(values: Values, run: FinishedRun) -> Values:
    return values | kept_with_mixer(run.shared)


def open_decoder(
    config: SimulationConfig, out: Path, device: torch.device, reporter: Reporter
) -> FrozenDecoder:
    """The run's frozen decoder; one that the settings pretrain is made first, in OUT/generator.

    Raises:
        ConfigError: it sees with the evaluation's encoder.
        LiftError: see the message.
    """
    if config.pretrain is not None:
        folder = out / "generator"
        if not (folder / CARD_FILE).is_file():
            with reporter.stage("generator"):
                pretrain_decoder(
                    config.pretrain,
                    folder,
                    work=out / "generator.work",
                    device=device,
                    report=lambda step, total, _: reporter.step("slice decoder", step, total),
                )
    elif config.generator is not None:
        folder = bundle_folder(config.generator)
    decoder = load_decoder(
        folder, expected_fingerprint=config.plan.generator_fingerprint, device=device
    )
    if decoder.card.features.encoder_seed == EVALUATION_SEED:
        raise ConfigError(
            "training and evaluation would see with the same encoder",
            where="encoder_seed",
            seen=f"{EVALUATION_SEED} is the evaluation's",
            remedy="Pre-train the decoder with another encoder_seed.",
        )
    return decoder


class _Run:
    def __init__(
        self,
        config: SimulationConfig,
        plan: Plan,
        decoder: FrozenDecoder,
        out: Path,
        reporter: Reporter,
        on_round: Callable[[RoundRecord], None],
    ) -> None:
        self._on_round = on_round
        self._config = config
        self._plan = plan
        self._decoder = decoder
        self._out = out
        self._reporter = reporter
        self._sessions: dict[str, SiteSession] = {}
        self.works: dict[str, UnconditionalWork] = {}

    def open(
        self, sites: Mapping[str, SiteSettings], decoders: Mapping[str, FrozenDecoder]
    ) -> None:
        """Read every site's volumes; each site has its decoder."""
        for name, settings in sorted(sites.items()):
            folder = self._out / "sites" / name
            session = SiteSession(settings, decoders[name], folder, report=self._reporter.step)
            # a budget that does not cover the run is known before any volume is read
            session.admit(self._plan)
            work = session.work(self._plan)
            assert isinstance(work, UnconditionalWork)  # noqa: S101  # the plan is checked
            self._sessions[name] = session
            self.works[name] = work
            for refusal in work.refusals:
                self._reporter.line(refusal.reason.render(f"site {name}"))

    def federations(self, release: Callable[[FinishedRun], None]) -> dict[str, FinishedRun]:
        """The plan's federation, and where asked the same with samples that stay at the sites.

        Args:
            release: called with the federation's result as soon as its rounds have ended.
        """
        with self._reporter.stage("federated"):
            found = {"federated": self._federate(self._plan, self._out)}
        release(found["federated"])
        if "federated_samples" in self._config.compare:
            own = settings_of(self._plan).model_copy(
                update={"attraction": "samples", "loss": "drift"}
            )
            # trained on the samples themselves: for comparison, and without noise
            plan = self._plan.model_copy(
                update={"unconditional": own, "privacy": NoPrivacy(mode="none")}
            )
            with self._reporter.stage("federated_samples"):
                found["federated_samples"] = self._federate(plan, self._out / "federated_samples")
        return found

    def alone(self) -> dict[str, Values]:
        """Each site's own mapper, and one that is trained on all sites' sums in one place."""
        trained: dict[str, Values] = {}
        sums = {name: work.sums() for name, work in self.works.items()}
        moments = {name: work.moments() for name, work in self.works.items()}
        if "local_only" in self._config.compare:
            with self._reporter.stage("local_only"):
                for name, own in sums.items():
                    if own.patients:
                        gaussian = self._gaussian([moments[name]])
                        trained[f"local_only:{name}"] = self._train(
                            f"local_{name}", name, own, gaussian
                        )
        if "centralised" in self._config.compare:
            with self._reporter.stage("centralised"):
                total = sum(sums.values(), start=Sums.zero(self._decoder.public.projection))
                gaussian = self._gaussian(list(moments.values()))
                trained["centralised"] = self._train("centralised", "centralised", total, gaussian)
        return trained

    def _gaussian(self, moments: Sequence[TrajectorySums | None]) -> Values:
        """The Gaussian of some sites' moments; empty where the plan has none."""
        form = form_of(settings_of(self._plan).gaussian, self._decoder)
        found = [one for one in moments if one is not None]
        return fit_gaussian(sum(found, start=TrajectorySums.zero(form))) if found else {}

    def _train(self, label: str, site: str, sums: Sums, gaussian: Values) -> Values:
        rounds = self._plan.federation.rounds
        mapper = plan_mapper(self._plan, self._decoder)
        values = mapper.values()
        if rounds == 0:
            return gaussian | values
        path = self._out / "baselines" / f"{label}.safetensors"
        digest = self._plan.digest()
        stored = read_baseline(path, digest)
        if stored is not None:
            return gaussian | stored
        load_trajectory(mapper, gaussian | values)
        loss = statistics_loss(self._plan, self._decoder.public, sums)
        for round_index in range(1, rounds + 1):
            values = train_mapper_round(
                mapper,
                values,
                self._decoder,
                loss,
                self._plan,
                round_index=round_index,
                site=site,
            ).values
            self._reporter.step(label, round_index, rounds)
        write_atomically(path, save(values, metadata={"plan_digest": digest}))
        return gaussian | values

    def _federate(self, plan: Plan, folder: Path) -> FinishedRun:
        def round_done(record: RoundRecord) -> None:
            self._reporter.round_done(record)
            # a comparison's rounds are no part of the federation's record
            if plan is self._plan:
                self._on_round(record)

        return federate(
            plan,
            self._decoder,
            self._sessions,
            folder,
            on_round=round_done,
            with_guard=plan is self._plan,
            watch=lambda handlers, records: self._reporter.federation(
                handlers, plan.federation.rounds, records
            ),
        )
