"""What is trained beside a federation: each site alone, all patients in one place, some steps more.

Each of these is a row that a hospital could have without the others, or a bound. Trained mixers
are kept in a folder and taken from there again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lift.config.plan import Plan
from lift.generator.features import Features, Person
from lift.generator.networks import FrozenGenerator
from lift.mixer.z_filter import fit
from lift.tasks.paired.building import plan_mixer, start_values
from lift.tasks.paired.local import LEARNING_RATE, local_steps, train_alone
from lift.tasks.paired.methods import main_row
from lift.tasks.paired.predictions import sum_of_equations
from lift.tasks.paired.site_cohort import SiteCohort
from lift_simulation.baselines import read_baseline, write_baseline
from lift_simulation.progress import Reporter

Values = dict[str, Tensor]


@dataclass
class Rivals:
    """Mixers by the site that they are for.

    Attributes:
        local_only: trained alone, without curves.
        local_curves: trained alone, under its patients' curves.
        local_steps: the run's mixer after some more steps at the site.
        local_longer: `local_curves` after as many steps more: the fair rival of `local_steps`.
        centralised: trained on all sites' patients in one place; None if not requested.
    """

    local_only: dict[str, Values] = field(default_factory=dict)
    local_curves: dict[str, Values] = field(default_factory=dict)
    local_steps: dict[str, Values] = field(default_factory=dict)
    local_longer: dict[str, Values] = field(default_factory=dict)
    centralised: Values | None = None


class RivalTraining:
    """Trains a run's rivals, or reads those that are there.

    Args:
        plan: the run's plan.
        generator: the frozen generator.
        folder: for the trained mixers.
        compare: the rows that were asked for.
        measured: sites whose patients are measured.
        joined: sites that take part in the federation.
        reporter: shows progress.
    """

    def __init__(
        self,
        plan: Plan,
        generator: FrozenGenerator,
        folder: Path,
        *,
        compare: Collection[str],
        measured: Sequence[str],
        joined: Sequence[str],
        reporter: Reporter,
    ) -> None:
        self._plan = plan
        self._generator = generator
        self._folder = folder
        self._compare = compare
        self._measured = measured
        self._joined = joined
        self._reporter = reporter

    def train(self, cohorts: Mapping[str, SiteCohort], finished: Values) -> Rivals:
        """All rivals of a finished mixer.

        Args:
            cohorts: site -> its patients.
            finished: the federated mixer.
        """
        rivals = Rivals()
        if {"local_only", "local_curves"} & set(self._compare):
            with self._reporter.stage("local_only"):
                for name in self._measured:
                    if patients := cohorts[name].by_person("train"):
                        self._train_locally(rivals, name, patients)
        if "centralised" in self._compare:
            with self._reporter.stage("centralised"):
                everyone = [f for name in self._joined for f in cohorts[name].by_person("train")]
                rivals.centralised = self._train_alone(
                    self._plan, "centralised", "centralised", everyone
                )
        if "local_steps" in self._compare:
            with self._reporter.stage("local_steps"):
                self._train_on(rivals, cohorts, finished)
        return rivals

    def _train_locally(self, rivals: Rivals, site: str, patients: Sequence[list[Features]]) -> None:
        """What a site trains alone: without curves, and with its patients' own where the plan's
        mixer has them.
        """
        if "local_only" in self._compare:
            plain = _plain(self._plan)
            rivals.local_only[site] = self._train_alone(
                plain, f"local_{site}", site, [as_is(one) for one in patients]
            )
        if "local_curves" in self._compare and main_row(self._plan) != "federated":
            rivals.local_curves[site] = self._train_alone(
                self._plan, f"local_curves_{site}", site, patients
            )

    def _train_on(
        self, rivals: Rivals, cohorts: Mapping[str, SiteCohort], finished: Values
    ) -> None:
        """The run's mixer after some more steps at each site that took part.

        What a site trained alone gets as many: else the gain could be that of more training.
        """
        joined = [name for name in self._measured if name in self._joined]
        kinds: list[tuple[str, dict[str, Values], dict[str, Values]]] = [
            ("steps", dict.fromkeys(joined, finished), rivals.local_steps),
            ("longer", rivals.local_curves, rivals.local_longer),
        ]
        total = sum(len(starts) for _, starts, _ in kinds)
        done = 0
        for kind, starts, kept in kinds:
            for name, start in starts.items():
                if patients := cohorts[name].by_person("train"):
                    kept[name] = self._stepped(f"local_{kind}_{name}", start, patients, name)
                done += 1
                self._reporter.step("local steps", done, total)

    def _stepped(self, label: str, start: Values, patients: Sequence[Person], site: str) -> Values:
        """A mixer after as many more steps as the run had."""
        steps = self._plan.total_steps
        # what was trained by other settings of the local steps is trained again
        digest = f"{self._plan.digest()} {steps} {LEARNING_RATE:g}"

        def trained() -> Values:
            mixer = plan_mixer(self._plan, self._generator)
            return local_steps(mixer, start, patients, self._plan, steps, LEARNING_RATE, site)

        return self._kept(label, digest, trained)

    def _train_alone(self, plan: Plan, label: str, site: str, patients: Sequence[Person]) -> Values:
        """A federation of one on one set of patients.

        The same rounds; a site alone takes the steps that it takes in the federation, the
        `centralised` training as many as all sites together.
        """

        def trained() -> Values:
            mixer = plan_mixer(plan, self._generator)
            start = start_values(plan, self._generator, fitted(patients, plan))
            return train_alone(
                mixer,
                start,
                patients,
                _centralised(plan, len(self._joined)) if site == "centralised" else plan,
                site,
                report=lambda done, total: self._reporter.step(label, done, total),
            )

        return self._kept(label, plan.digest(), trained)

    def _kept(self, label: str, digest: str, train: Callable[[], Values]) -> Values:
        """What was trained before by the same settings, or is trained now."""
        path = self._folder / f"{label}.safetensors"
        values = read_baseline(path, digest)
        if values is None:
            values = train()
            write_baseline(path, values, digest)
        return values


def as_is(volumes: Sequence[Features]) -> list[Features]:
    """Volumes with the generator's own prediction."""
    return [features.seen_with(None) for features in volumes]


def fitted(patients: Sequence[Person], plan: Plan) -> Tensor:
    """The taps of the z-filter of some training patients, (6,)."""
    return fit(sum_of_equations(patients), plan.mixer.ridge)


def _plain(plan: Plan) -> Plan:
    """The plan whose mixer learns the contrast too."""
    mixer = plan.mixer.model_copy(update={"contrast": "none"})
    return plan.model_copy(update={"mixer": mixer})


def _centralised(plan: Plan, sites: int) -> Plan:
    """The plan with the steps of all sites together."""
    training = plan.training.model_copy(update={"steps": plan.training.steps * sites})
    return plan.model_copy(update={"training": training})
