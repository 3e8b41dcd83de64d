"""A segmenter of real targets that judges predicted ones: is what a reader looks for still there?

The segmenter is trained once, on real targets of training patients. It is then asked to segment
each row's prediction for a held-out patient, and the real target (row `real`). A row above that one
is easier to segment than a real volume, which is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from lift.cohort.preprocessing import Prepared
from lift.cohort.split import Part
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import Plan
from lift.config.segmentation import SegmentationSettings
from lift.config.site import SiteSettings
from lift.errors import ConfigError
from lift.randomness import derive_seed
from lift.tasks.paired.methods import Floats, HeldOut
from lift.tasks.paired.site_cohort import SiteCohort, prepare_patient
from lift_simulation.baselines import read_baseline, write_baseline
from lift_simulation.labels import label_slices, write_tissue_labels
from lift_simulation.progress import Reporter
from lift_simulation.segmenter import (
    Source,
    Stack,
    build_segmenter,
    dice,
    predict,
    stack_of,
    train_segmenter,
)

_FILE: Final = "segmenter.safetensors"
_LEAST_DICE: Final = 0.1
"""On real targets: below it the segmenter has not learned the label, and judges nothing."""


class SegmentationJudge:
    """Trains the segmenter of one federation, or reads it, and gives Dice coefficients.

    Args:
        settings: labels and segmenter.
        sites: site -> its settings.
        plan: the federation's plan.
        phantoms: site -> its phantom cohort, for `tissue`.
        folder: of the federation; holds the trained segmenter.
        labels: where phantoms' labels are written.
        reporter: shows progress.
        device: of the segmenter.

    Raises:
        ConfigError: `tissue` is asked of sites that are no phantoms.
    """

    def __init__(
        self,
        settings: SegmentationSettings,
        sites: Mapping[str, SiteSettings],
        plan: Plan,
        phantoms: Mapping[str, PhantomCohortConfig],
        *,
        folder: Path,
        labels: Path,
        reporter: Reporter,
        device: torch.device,
    ) -> None:
        if settings.tissue and set(phantoms) != set(sites):
            real = sorted(set(sites) - set(phantoms))
            raise ConfigError(
                "only phantoms have a truth of their own",
                where="segmentation.tissue",
                seen=f"{settings.tissue}; no phantoms: {', '.join(real)}",
                remedy="Give segmentation.labels. Nothing was started.",
            )
        self._settings = settings
        self._sites = sites
        self._plan = plan
        self._phantoms = phantoms
        self._folder = folder
        self._labels = labels
        self._reporter = reporter
        self._device = device
        self._trained = False
        self._network: nn.Module | None = None

    def train(self, cohorts: Mapping[str, SiteCohort]) -> None:
        """Train on the real targets of all training patients, or read what was trained.

        A segmenter that does not find the label on real targets of validation patients (training
        patients, where there are none) is told to the reporter and not used.
        """
        settings = self._settings
        network = build_segmenter(settings.segmenter, self._seed)
        path = self._folder / _FILE
        digest = f"{self._plan.digest()} {settings.canonical_json()}"
        values = read_baseline(path, digest)
        if values is None:
            with self._reporter.stage("segmenter"):
                network = train_segmenter(
                    [Source(list(self._stacks(cohorts, "train")), 1.0)],
                    settings.segmenter,
                    seed=self._seed,
                    augmented=True,
                    device=self._device,
                    report=lambda step: self._reporter.step(
                        "segmenter", step, settings.segmenter.steps
                    ),
                )
            values = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
            write_baseline(path, values, digest)
        else:
            network.load_state_dict(values)
        network.to(self._device).eval()
        self._trained = True
        found = self._found(network, cohorts, "validation")
        found = found or self._found(network, cohorts, "train")
        mean = sum(found) / len(found) if found else 0.0
        if mean >= _LEAST_DICE:
            self._network = network
        else:
            self._reporter.line(
                f"segmenter: Dice {mean:.2f} on {len(found)} real targets: it has not learned the "
                "label, so there is no column dice. Change segmentation.segmenter: a lower "
                "learning_rate, more steps"
            )

    def _found(
        self, network: nn.Module, cohorts: Mapping[str, SiteCohort], part: Part
    ) -> list[float]:
        """Dice on the real targets of some patients, of those with a label."""
        return [
            dice(predict(network, stack), stack.label)
            for stack in self._stacks(cohorts, part)
            if bool(stack.label.any())
        ]

    def _stacks(self, cohorts: Mapping[str, SiteCohort], part: Part) -> Iterator[Stack]:
        """Real targets with their labels, one patient after the other."""
        for name in sorted(cohorts):
            for patient in getattr(cohorts[name].split, part):
                yield self._stack(name, patient, cohorts[name])

    def dice(self, held_out: HeldOut, predictions: Mapping[str, Floats]) -> dict[str, float]:
        """Dice of what the segmenter finds in each prediction; nothing without a label to find.

        Nor with a segmenter that has not learned it.

        Args:
            held_out: the patient.
            predictions: row -> (z, 1, h, w), normalised; the real target is one.
        """
        if not self._trained:
            raise ValueError("train comes first")
        network = self._network
        if network is None:
            return {}
        prepared = held_out.prepared
        label = self._label(held_out.site, held_out.patient, prepared)
        if not bool(label.any()):
            return {}
        return {
            row: dice(predict(network, self._seen(volume, prepared, label)), label)
            for row, volume in predictions.items()
        }

    @property
    def _seed(self) -> int:
        return derive_seed(self._plan.seed, "segmenter")

    def _stack(self, site: str, patient: str, cohort: SiteCohort) -> Stack:
        prepared = prepare_patient(cohort, patient, self._plan, self._sites[site].data.root)
        if prepared.target is None:
            raise ValueError("a training patient needs a target")
        return self._seen(prepared.target, prepared, self._label(site, patient, prepared))

    def _seen(self, target: Floats, prepared: Prepared, label: Tensor) -> Stack:
        """A target as the segmenter sees it: nothing outside the mask."""
        voxels = np.clip(np.asarray(target), 0.0, 1.0)
        return stack_of(
            torch.from_numpy(np.array(voxels[:, 0])), label, torch.from_numpy(prepared.mask[:, 0])
        )

    def _label(self, site: str, patient: str, prepared: Prepared) -> Tensor:
        if self._settings.tissue:
            phantom, tissue = self._phantoms[site], self._settings.tissue
            folder = write_tissue_labels(phantom, self._labels / site, tissue)
            path = folder / f"{patient}.nii.gz"
        else:
            pattern = self._settings.labels.replace("{site}", site)
            path = Path(pattern.replace("{patient}", patient))
        return torch.from_numpy(label_slices(prepared, path))
