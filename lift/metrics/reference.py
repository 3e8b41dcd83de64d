"""Real volumes as a reference: the space of features in which sets are compared with them."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from lift.errors import ConfigError, DataError
from lift.metrics.synthrad import Floats
from lift.metrics.volume_sets import MeasuredSet
from lift.triplanar.standardise import Standardisation, fit_standardisation

FEWEST_REAL: Final = 4
"""Two halves of a real set are compared with each other, and a half has two volumes."""

_DIMENSION: Final = 24
_ROWS_PER_AXIS: Final = 4


class Reference:
    """Real volumes, and the space in which sets are compared with them.

    Without a public standardisation one is fitted, on volumes that are neither generated nor
    `real` where there are any. Fitted on `real` itself, its axes are those along which just these
    volumes differ: real against real is then further apart than new volumes of the same source
    would be (Frechet distances of 20 to 40 hippocampi: by a fifth to a third; of training
    volumes' axes: by less than a tenth).

    Args:
        real: volumes that training did not see.
        training: real volumes to fit the standardisation on; None: `real`.
        standardisation: public; nothing is fitted.
        training_encoder_digest: of the encoder that the generator was trained with, if any.

    Raises:
        DataError: too few real volumes, one is constant, or they hardly differ.
        ConfigError: training and evaluation share an encoder, or the standardisation is for
            another encoder or layout.
    """

    def __init__(
        self,
        real: MeasuredSet,
        *,
        training: MeasuredSet | None = None,
        standardisation: Standardisation | None = None,
        training_encoder_digest: str | None = None,
    ) -> None:
        if training_encoder_digest == real.encoder_digest:
            raise ConfigError(
                "cannot evaluate with the encoder of training",
                where="the feature encoder",
                seen=f"both are {real.encoder_digest[:16]}...; a generator looks best to the "
                "encoder that it was trained with",
                remedy="Train with another encoder seed.",
            )
        for role, one in {"real": real, "training": training}.items():
            if one is not None and len(one) < FEWEST_REAL:
                raise too_few(role, len(one), FEWEST_REAL)
        if real.flat.any():
            raise DataError(
                "cannot compare with these real volumes",
                where="the real set",
                seen=f"{int(real.flat.sum())} of {len(real)} are empty or constant",
                remedy="Take them out.",
            )
        self.real = real.sorted()
        self.standardisation = standardisation or fitted_on((training or real).sorted())
        self.points = self.points_of(self.real)

    def points_of(self, measured: MeasuredSet) -> Floats:
        """Standardised features of a set, (groups, volumes, windows, d).

        Raises:
            ConfigError: it was measured with another encoder or layout.
        """
        return standardised_in(measured, self.standardisation)


def too_few(role: str, seen: int, needed: int, *, where: str = "") -> DataError:
    """The refusal of a set that is too small to be one."""
    return DataError(
        f"cannot compare sets with so few {role} volumes",
        where=where or f"the {role} set",
        seen=f"{seen} {'volume' if seen == 1 else 'volumes'}; at least {needed} are needed",
        remedy="Add volumes: each figure is about a distribution. Some twenty make a useful one.",
    )


def fitted_on(*sets: MeasuredSet) -> Standardisation:
    """A standardisation of real volumes: an axis for every four rows, 24 at most.

    Raises:
        DataError: the volumes hardly differ.
    """
    first = sets[0]
    groups = range(len(first.layout.groups))
    features = [torch.cat([one.raw[group].flatten(0, 1) for one in sets]) for group in groups]
    dimension = min(_DIMENSION, len(features[0]) // _ROWS_PER_AXIS)
    try:
        return fit_standardisation(
            features, first.layout, first.encoder_digest, dimension=dimension
        )
    except DataError as error:
        raise DataError(
            "cannot compare with these real volumes",
            where=error.where,
            seen=error.seen,
            remedy="Give more, and different, real volumes.",
        ) from None


def standardised_in(measured: MeasuredSet, space: Standardisation) -> Floats:
    """Standardised features of a set, (groups, volumes, windows, d), float64.

    Raises:
        ConfigError: it was measured with another encoder or layout.
    """
    if (measured.encoder_digest, measured.layout) != (space.encoder_digest, space.layout):
        raise ConfigError(
            "cannot compare sets that were measured differently",
            where="encoder and group layout",
            seen=f"encoder {measured.encoder_digest[:16]}... with {measured.layout}; needed: "
            f"{space.encoder_digest[:16]}... with {space.layout}",
            remedy="Measure all sets with one encoder and one layout.",
        )
    return np.stack(
        [space.transform(rows.double(), group).numpy() for group, rows in enumerate(measured.raw)]
    )
