"""Standard scales of the rule `nyul`, learned on the public volumes of a pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lift.cohort.normalisation import learn_landmarks
from lift.cohort.patients import Patient
from lift.cohort.preprocessing import values_inside
from lift.config.generator import PretrainConfig
from lift.config.plan import NyulRule, Plan
from lift.generator.pretraining import read_public

PERCENTILES: Final[tuple[float, ...]] = NyulRule.model_fields["percentiles"].default


def landmark_rules(config: PretrainConfig, work: Path) -> dict[str, NyulRule]:
    """A rule for every channel of a pre-training, with the mean landmarks of its cohorts.

    Args:
        config: which public cohorts; its mask rule counts, its normalisation does not.
        work: phantom cohorts are written there; may be deleted afterwards.

    Raises:
        DataError: a cohort gives no usable patient, or one is bad and `on_bad_file` is `stop`.
    """
    config = config.model_copy(
        update={"preprocessing": config.preprocessing.model_copy(update={"normalisation": {}})}
    )
    found = read_public(config, work, _percentiles)
    return {
        name: NyulRule(landmarks=learn_landmarks([one[name] for one in found]))
        for name in (*config.source, config.target)
    }


def _percentiles(
    patient: Patient, plan: Plan, root: Path, _prefix: str
) -> dict[str, NDArray[np.float64]]:
    return {
        name: np.percentile(values.astype(np.float64), PERCENTILES)
        for name, values in values_inside(patient, plan, root=root).items()
    }
