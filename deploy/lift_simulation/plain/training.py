"""Trains the plain networks on the patients of a federation; what is finished is kept.

`federated` is FedAvg of the whole network in this process, with the aggregation of the server and
weights by patients: no message is written. `private` is the same with the noise of `patient-local`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.config.simulation import PlainNetworkName, RivalsSettings
from lift.files import write_json
from lift.generator.features import Features
from lift.privacy.accounting import noise_multiplier_for
from lift.privacy.costs import epsilon_after
from lift.privacy.noise import SecureStream
from lift.records.rows import PRIVATE
from lift.strict_json import parse_json
from lift.tasks.paired.methods import Floats, Method
from lift.tasks.paired.predictions import patient_psnr_db
from lift.tasks.paired.private.training import train_round_privately
from lift.tasks.paired.site_cohort import SiteCohort
from lift_server.rounds.aggregation import mean_update, site_weights
from lift_simulation.baselines import read_baseline, write_baseline
from lift_simulation.plain.curve import Advance, Mode, Pace, Trained, Values, rounds_of, train
from lift_simulation.plain.networks import (
    PlainNetwork,
    PlainSliceUNet,
    PlainUNet,
    predict_in_windows,
)
from lift_simulation.progress import Reporter

OVERLAP: Final = 0.25
"""Of windows, as a share of a side: of the curve and of held-out patients."""
LOCAL: Final = "local"
_VERSION: Final = 1
_WIDTH: Final[Mapping[PlainNetworkName, int]] = {"unet_3d": 32, "unet_3d_half": 16, "unet_25d": 32}
_MODES: Final[Mapping[str, Mode]] = {
    "centralised": "pooled",
    LOCAL: "pooled",
    "federated": "fedavg",
    PRIVATE: "fedavg",
}
_OF_NOISE: Final = {"epsilon", "delta", "clip_norm", "sampling_rate"}
Persons = Mapping[str, Sequence[list[Features]]]
"""SITE -> its training patients, each with all volumes."""


@dataclass(frozen=True)
class TrainedNetwork:
    """One row.

    Attributes:
        network: which.
        mode: how it was trained.
        values: site -> what is used there.
        steps: of all sites together.
        kept_steps: of the kept state.
        stopped: by a plateau, or by the budget.
        training_cpu_s: processor seconds at one site; of `centralised`, in the one place.
        sent_bytes: from a site in a round; None where nothing is sent.
        epsilon: of `private`.
    """

    network: PlainNetworkName
    mode: str
    values: Mapping[str, Values]
    steps: int
    kept_steps: int
    stopped: str
    training_cpu_s: float
    sent_bytes: int | None
    epsilon: float | None

    @property
    def row(self) -> str:
        """Its name in the tables."""
        return f"{self.network}_{self.mode}"


def build(name: PlainNetworkName, n_source: int, seed: int) -> PlainNetwork:
    """A new network with its initial numbers."""
    kind = PlainSliceUNet if name == "unet_25d" else PlainUNet
    return kind(_WIDTH[name], n_source, seed=seed)


class PlainTraining:
    """Trains a run's plain networks, or reads those that are there.

    Args:
        plan: the run's plan: task, loss, seed, weights of the sites.
        settings: of the networks.
        networks: which.
        folder: for what is finished.
        joined: sites that take part in the federation.
        measured: sites whose patients are measured.
        reporter: shows progress.
        device: of the training.
    """

    def __init__(
        self,
        plan: Plan,
        settings: RivalsSettings,
        networks: Sequence[PlainNetworkName],
        folder: Path,
        *,
        joined: Sequence[str],
        measured: Sequence[str],
        reporter: Reporter,
        device: torch.device,
    ) -> None:
        self._device = device
        self._plan = plan
        self._settings = settings
        self._networks = networks
        self._folder = folder
        self._joined = joined
        self._measured = measured
        self._reporter = reporter
        self._epsilon = settings.epsilon or _epsilon_of(plan)

    def train(self, cohorts: Mapping[str, SiteCohort]) -> list[TrainedNetwork]:
        """All rows; none of `local` where no site that is measured takes part.

        Args:
            cohorts: site -> its patients.
        """
        patients = {
            name: [_as_is(person) for person in cohorts[name].by_person("train")]
            for name in self._joined
        }
        patients = {name: found for name, found in patients.items() if found}
        watched = {name: cohorts[name].part("validation") for name in self._joined}
        modes = [*self._settings.modes, *([] if self._epsilon is None else [PRIVATE])]
        return [
            self._row(network, mode, patients, watched)
            for mode in modes
            for network in self._networks
            if mode != LOCAL or set(patients) & set(self._measured)
        ]

    def _row(
        self,
        network: PlainNetworkName,
        mode: str,
        patients: Persons,
        watched: Mapping[str, Sequence[Features]],
    ) -> TrainedNetwork:
        if mode == LOCAL:
            parts = {
                site: self._one(network, mode, {site: found}, watched[site], site=site)
                for site, found in patients.items()
                if site in self._measured
            }
        else:
            everyone = [features for found in watched.values() for features in found]
            one = self._one(network, mode, patients, everyone)
            parts = dict.fromkeys(self._measured, one)
        values = {site: found for site, (found, _) in parts.items()}
        records = [record for _, record in parts.values()]
        sites = len(patients) if _MODES[mode] == "fedavg" else 1
        some = next(iter(values.values()))
        return TrainedNetwork(
            network=network,
            mode=mode,
            values=values,
            steps=max(record["steps"] for record in records),
            kept_steps=max(record["kept"] for record in records),
            stopped="plateau" if all(r["stopped"] == "plateau" for r in records) else "budget",
            training_cpu_s=max(record["advance_s"] for record in records) / sites,
            sent_bytes=update_bytes(some) if _MODES[mode] == "fedavg" else None,
            epsilon=self._epsilon if mode == PRIVATE else None,
        )

    def _one(
        self,
        name: PlainNetworkName,
        mode: str,
        patients: Persons,
        watched: Sequence[Features],
        *,
        site: str = "",
    ) -> tuple[Values, dict[str, Any]]:
        """The numbers of one training, and how it went."""
        label = "_".join(part for part in (name, mode, site) if part)
        digest = self._digest(name, mode, sorted(patients))
        path = self._folder / f"{label}.safetensors"
        told = path.with_suffix(".json")
        values = read_baseline(path, digest)
        if values is not None and told.is_file():
            self._reporter.line(f"{label}: kept")
            return values, parse_json(told.read_bytes())
        with self._reporter.stage(label):
            trained = self._trained(name, mode, label, patients, watched)
        record = {
            "steps": trained.curve[-1].steps,
            "kept": trained.kept,
            "stopped": trained.stopped,
            "core_s": round(trained.core_s, 2),
            "advance_s": round(trained.advance_s, 2),
            "curve": [asdict(point) for point in trained.curve],
        }
        # the numbers last: they say that the training is finished
        write_json(told, record)
        write_baseline(path, trained.values, digest)
        last = trained.curve[-1]
        self._reporter.line(
            f"  {last.steps} steps, {trained.stopped}, validation "
            + ", ".join(f"{point.psnr_db:.2f}" for point in trained.curve)
            + f" dB, kept {trained.kept}"
        )
        return trained.values, record

    def _trained(
        self,
        name: PlainNetworkName,
        mode: str,
        label: str,
        patients: Persons,
        watched: Sequence[Features],
    ) -> Trained:
        own = self._settings.of(name)
        plan = network_plan(self._plan, self._settings, name)
        network = build(name, len(plan.task.source), plan.seed).to(self._device)
        steps = own.steps if mode != LOCAL else max(1, own.steps // len(self._joined))
        pace: Pace = self._settings
        keep_best = bool(watched)
        if mode == PRIVATE:
            advance, steps = self._private_rounds(network, patients, plan, own.steps)
            # a choice by validation patients would be a release of its own
            pace = self._settings.model_copy(update={"checkpoint_steps": steps})
            keep_best = False
        else:
            everyone = {site: list(found) for site, found in patients.items()}
            advance = rounds_of(_MODES[mode], network, everyone, plan, pace)
        seen = watched or [f for found in patients.values() for person in found for f in person]

        def curve(values: Values) -> float:
            network.load_values(values)
            predict = partial(predict_in_windows, network, size=own.window, overlap=OVERLAP)
            return sum(patient_psnr_db(f, predict(f)) for f in seen) / len(seen)

        return train(
            advance,
            network.values(),
            curve,
            pace,
            most_steps=steps,
            keep_best=keep_best,
            report=lambda done: self._reporter.step(label, min(done, steps), steps),
        )

    def _private_rounds(
        self, network: PlainNetwork, patients: Persons, plan: Plan, budget: int
    ) -> tuple[Advance, int]:
        """Rounds in which every site adds its noise, and the steps of all sites in all rounds."""
        rounds = max(1, budget // (len(patients) * self._settings.local_steps))
        privacy = private_section(
            self._plan,
            self._settings,
            {site: len(found) for site, found in patients.items()},
            rounds * self._settings.local_steps,
        )
        training = plan.training.model_copy(update={"steps": self._settings.local_steps})
        federation = plan.federation.model_copy(update={"rounds": rounds})
        own = plan.model_copy(
            update={"training": training, "federation": federation, "privacy": privacy}
        )
        weights = site_weights(
            {site: privacy.patients_of(site) for site in patients}, own.aggregation
        )
        stream = SecureStream()

        def advance(index: int, values: Values) -> tuple[Values, int]:
            ends = {
                site: train_round_privately(
                    network,
                    values,
                    found,
                    own,
                    privacy,
                    round_index=index,
                    site=site,
                    stream=stream,
                ).values
                for site, found in patients.items()
            }
            mean = mean_update(ends, weights)
            steps = self._settings.local_steps * len(ends)
            return {name: tensor.float() for name, tensor in mean.items()}, steps

        return advance, rounds * self._settings.local_steps * len(patients)

    def _digest(self, name: PlainNetworkName, mode: str, sites: Sequence[str]) -> str:
        """Of all that a training depends on: other networks' settings are no part of it."""
        shared = self._settings.model_dump(mode="json", exclude={"modes", *_WIDTH})
        if mode != PRIVATE:
            shared = {key: value for key, value in shared.items() if key not in _OF_NOISE}
        own = self._settings.of(name).model_dump(mode="json")
        parts = [_VERSION, self._plan.digest(), name, mode, own, shared, sites]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def predictor(network: PlainNetwork, values: Values, window: tuple[int, int, int]) -> Method:
    """What predicts a volume with these numbers."""

    def method(features: Features) -> Floats:
        network.load_values(values)
        return predict_in_windows(network, features, window, overlap=OVERLAP)

    return method


def network_plan(plan: Plan, settings: RivalsSettings, name: PlainNetworkName) -> Plan:
    """The plan under which a network is trained: loss, seed and weights are the run's."""
    own = settings.of(name)
    training = plan.training.model_copy(
        update={
            "window": own.window,
            "patients_per_step": settings.patients_per_step,
            "learning_rate": own.learning_rate,
        }
    )
    return plan.model_copy(update={"training": training})


def private_section(
    plan: Plan, settings: RivalsSettings, patients: Mapping[str, int], steps: int
) -> PatientGradients:
    """The noise under which `steps` steps of each site cost the asked epsilon, as the plan counts.

    Args:
        plan: of the run; its public numbers and its delta go first.
        settings: of the networks.
        patients: site -> training patients, where the plan has no public numbers.
        steps: of each site.

    Raises:
        ValueError: no epsilon is asked for.
    """
    target = settings.epsilon or _epsilon_of(plan)
    if target is None:
        raise ValueError("no epsilon is asked for")
    own = plan.privacy if isinstance(plan.privacy, PatientGradients) else None
    delta = settings.delta if own is None else own.delta
    return PatientGradients(
        mode="patient-local",
        delta=delta,
        public_patients=dict(patients) if own is None else own.public_patients,
        clip_norm=settings.clip_norm,
        noise_multiplier=noise_multiplier_for(target, delta, q=settings.sampling_rate, steps=steps),
        sampling_rate=settings.sampling_rate,
    )


def update_bytes(values: Values) -> int:
    """An update of these numbers as it would travel: float32 with the header of safetensors."""
    return len(safetensors.torch.save(values))


def _epsilon_of(plan: Plan) -> float | None:
    """The plan's epsilon, where it adds noise to gradients of patients."""
    if not isinstance(plan.privacy, PatientGradients):
        return None
    return epsilon_after(plan, plan.federation.rounds)


def _as_is(volumes: Sequence[Features]) -> list[Features]:
    return [features.seen_with(None) for features in volumes]
