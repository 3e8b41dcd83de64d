"""What a site could use: its rows, simplest first, and what it chooses among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lift.config.plan import Plan
from lift.metrics.intervals import person_means
from lift.mixer.base import Mixer
from lift.mixer.curves import ChosenCurves
from lift.tasks.paired.calibration import Calibration, calibrated
from lift.tasks.paired.choice import STRENGTHS, USES, Choice, choose
from lift.tasks.paired.contrast import SiteContrast, others_of
from lift.tasks.paired.methods import (
    Method,
    blended,
    main_row,
    no_mixer,
    with_curves,
    with_mixer,
    z_filter,
)
from lift.tasks.paired.predictions import patient_psnr_db, site_contrast
from lift.tasks.paired.site_cohort import SiteCohort
from lift_client.session import SiteSession
from lift_client.tasks.paired import PairedWork, paired_work
from lift_server.rounds.finished import FinishedRun
from lift_simulation.tasks.rivals import Rivals, Values, as_is, fitted


@dataclass(frozen=True)
class Alone:
    """What a site has without any other site, in closed form; None if not requested.

    Attributes:
        contrast: its patients' curve equations.
        taps: of a z-filter fitted there, (6,).
        taps_under_curves: likewise on the prediction under the site's curves.
    """

    contrast: SiteContrast | None
    taps: Tensor | None
    taps_under_curves: Tensor | None


class SiteRows:
    """The rows of every site of one finished federation.

    Args:
        plan: the run's plan.
        sessions: site -> its session.
        compare: the rows that were asked for.
        pairs: training patients to which a site that joined afterwards fits its curves.
        mixer: an instance of the plan's.
        finished: the federated run.
        rivals: what was trained beside the federation.
    """

    def __init__(
        self,
        plan: Plan,
        sessions: Mapping[str, SiteSession],
        *,
        compare: Collection[str],
        pairs: int,
        mixer: Mixer,
        finished: FinishedRun,
        rivals: Rivals,
    ) -> None:
        self._plan = plan
        self._main = main_row(plan)
        self._sessions = sessions
        self._compare = compare
        self._pairs = pairs
        self._mixer = mixer
        self._finished = finished
        self._rivals = rivals

    def curves_at(self, site: str, *, without: Collection[str] = ()) -> Tensor | None:
        """A site's curves under the run's mixer, fitted without some validation patients."""
        return self._work(site).site_curves(self._finished.shared, without=without)

    def alone_at(self, cohort: SiteCohort) -> Alone:
        """What a site has without any other site, in closed form."""
        training = cohort.by_person("train")
        taps = under_curves = None
        contrast = None
        if "curves" in self._compare and cohort.persons("train", "validation"):
            contrast = site_contrast(cohort)
        if training and "z_filter_local" in self._compare:
            taps = fitted([as_is(person) for person in training], self._plan)
        if training and contrast is not None:
            curves = contrast.chosen(None).curves
            seen = [[features.seen_with(curves) for features in one] for one in training]
            under_curves = fitted(seen, self._plan)
        return Alone(contrast, taps, under_curves)

    def at_site(
        self,
        cohort: SiteCohort,
        alone: Alone,
        *,
        curves: Tensor | None,
        without: Collection[str] = (),
    ) -> dict[str, Method]:
        """The rows of what a site could use, simplest first.

        Args:
            cohort: the site's.
            alone: what it has by itself.
            curves: the site's under the run's mixer.
            without: validation patients to which no curves may be fitted.
        """
        name = cohort.site
        mixer, rivals = self._mixer, self._rivals
        methods: dict[str, Method] = {"no_mixer": no_mixer}
        if alone.taps is not None:
            methods["z_filter_local"] = z_filter(alone.taps)
        if alone.contrast is not None:
            by_itself = alone.contrast.chosen(None, without=without).curves
            methods["curves"] = with_curves(by_itself)
            if alone.taps_under_curves is not None:
                methods["curves_z_filter"] = with_curves(by_itself, then=alone.taps_under_curves)
        methods[self._main] = with_mixer(mixer, self._finished.mixer, curves=curves)
        if name in rivals.local_steps:
            methods["local_steps"] = with_mixer(mixer, rivals.local_steps[name], curves=curves)
        if name in rivals.local_only:
            methods["local_only"] = with_mixer(mixer, rivals.local_only[name])
        if name in rivals.local_curves:
            own = self._work(name).site_curves({}, without=without)
            methods["local_curves"] = with_mixer(mixer, rivals.local_curves[name], curves=own)
            if name in rivals.local_longer:
                longer = rivals.local_longer[name]
                methods["local_longer"] = with_mixer(mixer, longer, curves=own)
        return methods

    def choose(self, cohort: SiteCohort, alone: Alone) -> Choice:
        """What a site uses, by its validation patients: curves are fitted without each of them.

        Where there are too few it is the run's mixer, which nothing speaks against.
        """
        figures: dict[str, list[float]] = {}
        people = [cohort.patients[patient].subject for patient in cohort.split.validation]
        for patient, person in zip(cohort.split.validation, people, strict=True):
            features = cohort.features[patient]
            left_out = {person}
            curves = self.curves_at(cohort.site, without=left_out)
            own = self.at_site(cohort, alone, curves=curves, without=left_out)
            for name, method in self.options(own).items():
                psnr_db = patient_psnr_db(features, method(features))
                figures.setdefault(name, []).append(psnr_db)
        by_person = {name: person_means(found, people) for name, found in figures.items()}
        return choose(by_person, otherwise=self._main)

    def calibrate(self, cohort: SiteCohort) -> Calibration:
        """As `lift calibrate` does at a hospital that took no part, from its first patients."""
        persons = dict(list(cohort.persons("train").items())[: self._pairs])
        mixer, finished = self._mixer, self._finished
        mixer.load_values(finished.mixer)
        if self._plan.mixer.contrast == "none":
            return Calibration(ChosenCurves(None, None, {}), Choice("mixer", {}, 0), len(persons))
        shared = {name: tensor.numpy() for name, tensor in finished.shared.items()}
        return calibrated(
            {name: as_is(volumes) for name, volumes in persons.items()},
            mixer,
            finished.taps,
            others_of(shared, None, len(self._plan.task.source)),
            affine=self._plan.mixer.contrast == "affine",
        )

    def options(self, rows: Mapping[str, Method]) -> dict[str, Method]:
        """The rows of a site, simplest first, and after the run's mixer its steps toward no mixer.

        A step costs as much as the mixer: it is taken where the mixer itself is clearly too much.
        """
        options: dict[str, Method] = {}
        for name, method in rows.items():
            options[name] = method
            if name == self._main:
                options |= self._steps(method)
        return options

    def uses(self, rows: Mapping[str, Method], curves: Tensor | None) -> dict[str, Method]:
        """What a site that joined afterwards may use, in the order of `USES`."""
        main = rows[self._main]
        return {
            "no_mixer": no_mixer,
            "calibrated curves": with_curves(curves),
            "calibrated curves + z_filter": with_curves(curves, then=self._finished.taps),
            self._main: main,
            **self._steps(main),
        }

    def _steps(self, main: Method) -> dict[str, Method]:
        """The run's mixer, some of its way."""
        return {f"{self._main} x {part:g}": blended(main, part) for part in STRENGTHS}

    def gain_over(self, cohort: SiteCohort, reference: Values) -> list[float]:
        """PSNR of the run's mixer over that of other numbers, of each validation person, dB."""
        gains = []
        for patient in cohort.split.validation:
            features = cohort.features[patient]
            # curves that this patient had no part in
            curves = self.curves_at(cohort.site, without={cohort.patients[patient].subject})
            ours = with_mixer(self._mixer, self._finished.mixer, curves=curves)
            theirs = with_mixer(self._mixer, reference)
            psnr = [patient_psnr_db(features, method(features)) for method in (ours, theirs)]
            gains.append(psnr[0] - psnr[1])
        return person_means(
            gains, [cohort.patients[patient].subject for patient in cohort.split.validation]
        )

    def _work(self, site: str) -> PairedWork:
        return paired_work(self._sessions[site], self._plan)


def named(choice: Choice, names: Sequence[str]) -> Choice:
    """A choice among `lift.tasks.paired.choice.USES` under the names of the run's rows."""
    names_of = dict(zip((use.name for use in USES), names, strict=True))
    figures = {names_of[name]: value for name, value in choice.psnr_db.items()}
    return Choice(names_of[choice.method], figures, choice.patients)
