"""One federation with its baselines, and every method's numbers on the held-out patients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from lift.cohort.preprocessing import Prepared
from lift.config.plan import Plan
from lift.config.simulation import PlainNetworkName, RivalsSettings
from lift.config.site import SiteSettings
from lift.generator.networks import FrozenGenerator
from lift.metrics.table import PatientMetrics
from lift.mixer.base import Mixer
from lift.mixer.z_filter import NormalEquations, fit, person_equations
from lift.records.metrics import Costs
from lift.records.rounds import RoundRecord
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.choice import Choice
from lift.tasks.paired.methods import (
    Floats,
    HeldOut,
    Method,
    main_row,
    measure,
    with_curves,
    with_mixer,
    z_median,
)
from lift.tasks.paired.predictions import mixed, patient_equations
from lift.tasks.paired.site_cohort import SiteCohort, prepare_patient
from lift_client.session import SiteSession
from lift_client.tasks.paired import paired_work
from lift_server.rounds.finished import FinishedRun
from lift_simulation.federation import federate
from lift_simulation.plain.cost import THREE_PLANES
from lift_simulation.plain.planes import three_planes
from lift_simulation.plain.training import PlainTraining, TrainedNetwork, build, predictor
from lift_simulation.progress import Reporter
from lift_simulation.tasks.controls import REAL, control_predictions
from lift_simulation.tasks.costs import row_costs
from lift_simulation.tasks.participation import Participation
from lift_simulation.tasks.rivals import Rivals, RivalTraining, Values
from lift_simulation.tasks.segmentation import SegmentationJudge
from lift_simulation.tasks.site_rows import SiteRows, named

SYNTHESIS_ROWS: Final = ("no_mixer", "z_median", "z_filter")
"""Rows that are written as volumes, beside the run's own mixer."""


@dataclass(frozen=True)
class Afterwards:
    """Sites that join after the training.

    Attributes:
        sites: their names.
        pairs: training patients to which each site fits its curves.
        alone: no other site's patients are measured.
    """

    sites: Collection[str] = ()
    pairs: int = 3
    alone: bool = False


@dataclass(frozen=True)
class Beside:
    """What else is compared, and with which costs; it needs the generator's folder.

    Attributes:
        networks: plain networks.
        settings: of these.
        bundle: the generator's folder.
    """

    networks: tuple[PlainNetworkName, ...]
    settings: RivalsSettings
    bundle: Path


@dataclass
class FoldResult:
    """What one federation gives to the run's tables.

    Attributes:
        metrics: site -> method -> examination -> figures.
        cross_site: trained at -> tested at -> examination -> figures of local-only mixers.
        finished: the federated run.
        cohorts: site -> cohort.
        local_gain_db: site -> federated minus local-only PSNR of each validation patient.
        choices: site -> what it uses.
        calibrated_from: site that joined afterwards -> patients to which its curves were fitted.
        synthesis: predictions to be written, by held-out patient and method.
        costs: of the rows, where plain networks or three planes were compared.
    """

    metrics: dict[str, dict[str, dict[str, PatientMetrics]]]
    cross_site: dict[str, dict[str, dict[str, PatientMetrics]]]
    finished: FinishedRun
    cohorts: dict[str, SiteCohort]
    local_gain_db: dict[str, list[float]]
    choices: dict[str, Choice] = field(default_factory=dict)
    calibrated_from: dict[str, int] = field(default_factory=dict)
    synthesis: list[tuple[HeldOut, dict[str, Floats]]] = field(default_factory=list)
    costs: Costs | None = None


class Fold:
    """Runs one federation and its baselines in `folder`, resuming what is already there.

    The sites compute with their own copies of the generator, `generators`, where these are given;
    all else is computed with `generator`.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteSettings],
        plan: Plan,
        generator: FrozenGenerator,
        folder: Path,
        *,
        compare: tuple[str, ...],
        reporter: Reporter,
        generators: Mapping[str, FrozenGenerator] | None = None,
        afterwards: Afterwards = Afterwards(),
        participation: Participation | None = None,
        on_round: Callable[[RoundRecord], None] | None = None,
        judge: SegmentationJudge | None = None,
        beside: Beside | None = None,
    ) -> None:
        self._beside = beside
        self._late = afterwards
        self._judge = judge
        self._participation = participation
        self._on_round = on_round
        self._sites = dict(sorted(sites.items()))
        self._joined = [name for name in self._sites if name not in afterwards.sites]
        self._measured = [
            name for name in self._sites if name in afterwards.sites or not afterwards.alone
        ]
        self._plan = plan
        self._main = main_row(plan)
        self._generator = generator
        self._folder = folder
        self._compare = compare
        self._reporter = reporter
        self._sessions = {
            name: SiteSession(
                settings,
                generator if generators is None else generators[name],
                folder / "sites" / name,
                report=reporter.step,
            )
            for name, settings in self._sites.items()
        }

    def run(self, *, synthesis_patients: int) -> FoldResult:
        """Train every method, measure all of them on the held-out patients."""
        for name in self._joined:
            # a budget that does not cover the run is known before any data is read
            self._sessions[name].admit(self._plan)
        with self._reporter.stage("features"):
            cohorts = {
                name: paired_work(session, self._plan).cohort
                for name, session in self._sessions.items()
            }
        for name, cohort in cohorts.items():
            for refusal in cohort.refusals:
                self._reporter.line(refusal.reason.render(f"site {name}"))
        with self._reporter.stage("federated"):
            finished = self._federate(self._plan, self._folder)
        control: FinishedRun | None = None
        control_plan = _with_mixer(self._plan, "control_2d")
        if "control_2d" in self._compare and self._plan.mixer.kind == "pyramid":
            # it has zrefine's reach in the plane and at most its size: no rival of this one
            self._reporter.line("control_2d is sized beside zrefine: left out beside pyramid")
        elif "control_2d" in self._compare:
            with self._reporter.stage("control_2d"):
                control = self._federate(control_plan, self._folder / "control_2d", guard=False)
        rivals = RivalTraining(
            self._plan,
            self._generator,
            self._folder / "baselines",
            compare=self._compare,
            measured=self._measured,
            joined=self._joined,
            reporter=self._reporter,
        ).train(cohorts, finished.mixer)
        if self._judge is not None:
            self._judge.train({name: cohorts[name] for name in self._joined})
        plain = self._plain_networks(cohorts)
        for session in self._sessions.values():
            session.close()
        with self._reporter.stage("evaluation"):
            result = self._evaluate(
                cohorts, finished, control, control_plan, rivals, plain, synthesis_patients
            )
        if self._beside is not None and (plain or THREE_PLANES in self._compare):
            with self._reporter.stage("costs"):
                result.costs = self._costs(self._beside, cohorts, finished, plain)
        return result

    def _plain_networks(self, cohorts: Mapping[str, SiteCohort]) -> list[TrainedNetwork]:
        if self._beside is None or not self._beside.networks:
            return []
        return PlainTraining(
            self._plan,
            self._beside.settings,
            self._beside.networks,
            self._folder / "plain",
            joined=self._joined,
            measured=self._measured,
            reporter=self._reporter,
            device=self._generator.device,
        ).train(cohorts)

    def _costs(
        self,
        beside: Beside,
        cohorts: Mapping[str, SiteCohort],
        finished: FinishedRun,
        plain: Sequence[TrainedNetwork],
    ) -> Costs | None:
        """Measured on the largest test volume, and on the training patients of the largest site."""
        tested = [
            (cohorts[name].features[patient].mask.size, name, patient)
            for name in self._measured
            for patient in cohorts[name].split.test
        ]
        if not tested:
            return None
        _, name, patient = max(tested)
        people = max((cohorts[name].by_person("train") for name in self._joined), key=len)
        return row_costs(
            self._plan,
            self._generator,
            beside.bundle,
            self._prepared(cohorts[name], patient),
            finished,
            people,
            plain,
            beside.settings,
            main=self._main,
            compared=self._compare,
        )

    def _federate(self, plan: Plan, folder: Path, *, guard: bool = True) -> FinishedRun:
        repeated = self._participation

        def round_done(record: RoundRecord) -> None:
            self._reporter.round_done(record)
            # the control's rounds are no part of the federation's record
            if self._on_round is not None and plan is self._plan:
                self._on_round(record)

        return federate(
            plan,
            self._generator,
            {name: self._sessions[name] for name in self._joined},
            folder,
            on_round=round_done,
            with_guard=guard,
            watch=lambda handlers, records: self._reporter.federation(
                handlers, plan.federation.rounds, records
            ),
            replay=None if repeated is None else repeated.replayed,
            asked=None if repeated is None else repeated.asked,
        )

    def _evaluate(
        self,
        cohorts: Mapping[str, SiteCohort],
        finished: FinishedRun,
        control: FinishedRun | None,
        control_plan: Plan,
        rivals: Rivals,
        plain: Sequence[TrainedNetwork],
        synthesis_patients: int,
    ) -> FoldResult:
        mixer = plan_mixer(self._plan, self._generator)
        # the control takes other features than most mixers
        flats = {}
        flat, refit = mixer, finished.taps
        if control is not None:
            flats = {
                name: paired_work(session, control_plan).cohort
                for name, session in self._sessions.items()
            }
            flat = plan_mixer(control_plan, self._generator)
            refit = self._refit(flats, flat, control.mixer)
        rows = SiteRows(
            self._plan,
            self._sessions,
            compare=self._compare,
            pairs=self._late.pairs,
            mixer=mixer,
            finished=finished,
            rivals=rivals,
        )
        result = FoldResult({}, {}, finished, dict(cohorts), {})
        total = sum(len(cohorts[name].split.test) for name in self._measured)
        done = 0
        for name in self._measured:
            cohort = cohorts[name]
            alone = rows.alone_at(cohort)
            calibration = None
            if name in self._late.sites:
                calibration = rows.calibrate(cohort)
                result.calibrated_from[name] = calibration.patients
                curves = calibration.chosen.curves
            else:
                curves = rows.curves_at(name)
            own = rows.at_site(cohort, alone, curves=curves)
            if calibration is None:
                options = rows.options(own)
                choice = rows.choose(cohort, alone)
            else:
                options = rows.uses(own, curves)
                choice = named(calibration.choice, list(options))
            result.choices[name] = choice
            methods = {
                "z_median": z_median,
                # on what the mixer is given: what a network adds to such a filter
                "z_filter": with_curves(curves, then=finished.taps),
                **own,
                "chosen": options[choice.method],
            }
            controls: dict[str, Method] = {}
            if control is not None:
                controls["control_2d"] = with_mixer(flat, control.mixer, curves=curves)
                controls["control_2d_z_filter"] = with_mixer(
                    flat, control.mixer, curves=curves, then=refit
                )
            if rivals.centralised is not None:
                methods["centralised"] = with_mixer(mixer, rivals.centralised, curves=curves)
            methods |= self._plain_methods(plain, name)
            if name in rivals.local_only and calibration is None:
                result.local_gain_db[name] = rows.gain_over(cohort, rivals.local_only[name])
            for patient in cohort.split.test:
                held_out = HeldOut(
                    name, patient, cohort.features[patient], self._prepared(cohort, patient)
                )
                predictions = {m: method(held_out.features) for m, method in methods.items()}
                for m, method in controls.items():
                    predictions[m] = method(flats[name].features[patient])
                if "controls" in self._compare:
                    other = self._somebody_else(cohorts, name, patient)
                    predictions |= control_predictions(held_out.prepared, other)
                if THREE_PLANES in self._compare:
                    predictions[THREE_PLANES] = three_planes(
                        self._generator, held_out.features, held_out.prepared.spacing_mm
                    )
                for m, figures in self._measured_all(held_out, predictions).items():
                    result.metrics.setdefault(name, {}).setdefault(m, {})[patient] = figures
                if "cross_site" in self._compare:
                    self._cross(result, held_out, mixer, rivals.local_only)
                kept = sum(h.site == name for h, _ in result.synthesis)
                if kept < synthesis_patients:
                    written = {m: predictions[m] for m in (*SYNTHESIS_ROWS, self._main)}
                    result.synthesis.append((held_out, written))
                done += 1
                self._reporter.step("held-out patients", done, total)
        return result

    def _somebody_else(
        self, cohorts: Mapping[str, SiteCohort], site: str, patient: str
    ) -> Prepared | None:
        """The next held-out person of the measured sites; None where there is nobody else."""
        everyone = [
            (name, one, cohorts[name].subject_of[one])
            for name in self._measured
            for one in cohorts[name].split.test
        ]
        names = [(name, one) for name, one, _ in everyone]
        person = (site, cohorts[site].subject_of[patient])
        place = names.index((site, patient))
        for name, one, subject in [*everyone[place + 1 :], *everyone[:place]]:
            if (name, subject) != person:
                return self._prepared(cohorts[name], one)
        return None

    def _plain_methods(self, plain: Sequence[TrainedNetwork], site: str) -> dict[str, Method]:
        """The rows of the plain networks at a site: evidence, and no option of the site's."""
        if self._beside is None:
            return {}
        return {
            one.row: predictor(
                build(one.network, len(self._plan.task.source), self._plan.seed).to(
                    self._generator.device
                ),
                one.values[site],
                self._beside.settings.of(one.network).window,
            )
            for one in plain
            if site in one.values
        }

    def _measured_all(
        self, held_out: HeldOut, predictions: Mapping[str, Floats]
    ) -> dict[str, PatientMetrics]:
        """The figures of every method on one patient; methods are measured side by side."""
        with ThreadPoolExecutor(self._plan.threads) as pool:
            found = pool.map(lambda p: measure(held_out, p, self._plan), predictions.values())
            figures = dict(zip(predictions, found, strict=True))
        if self._judge is None:
            return figures
        judged = {**predictions, REAL: np.asarray(held_out.prepared.target)}
        for name, value in self._judge.dice(held_out, judged).items():
            figures[name] = {**figures.get(name, {}), "dice": value}
        return figures

    def _cross(
        self,
        result: FoldResult,
        held_out: HeldOut,
        mixer: Mixer,
        trained: Mapping[str, Values],
    ) -> None:
        for trained_at in self._sites:
            if trained_at not in trained:
                continue
            row = result.cross_site.setdefault(trained_at, {}).setdefault(held_out.site, {})
            if trained_at == held_out.site:
                own = result.metrics[held_out.site]["local_only"][held_out.patient]
                row[held_out.patient] = {m: own[m] for m in ("psnr_db", "dz_corr") if m in own}
                continue
            prediction = with_mixer(mixer, trained[trained_at])(held_out.features)
            row[held_out.patient] = measure(held_out, prediction, self._plan, brief=True)

    def _refit(
        self, cohorts: Mapping[str, SiteCohort], flat: Mixer, values: Mapping[str, Tensor]
    ) -> Tensor:
        """The z-filter fitted on top of the 2D control, on the training patients."""
        flat.load_values(values)
        total = NormalEquations.zero()
        for cohort in cohorts.values():
            for person in cohort.by_person("train"):
                found = [patient_equations(one, mixed(flat, one)) for one in person]
                total = total + person_equations(found)
        return fit(total, self._plan.mixer.ridge)

    def _prepared(self, cohort: SiteCohort, patient: str) -> Prepared:
        return prepare_patient(cohort, patient, self._plan, self._sites[cohort.site].data.root)


def _with_mixer(plan: Plan, kind: str) -> Plan:
    mixer = plan.mixer.model_copy(update={"kind": kind})
    return plan.model_copy(update={"mixer": mixer})
