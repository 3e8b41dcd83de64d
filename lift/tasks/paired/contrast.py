"""A site's contrast: the curves applied before the mixer, and the shared sums.

In training a patient is seen with curves of that patient alone: nothing of another one enters a
gradient. Afterwards a site uses one set of curves, fitted to its training and validation patients
and shrunk toward all sites' patients. Equations are summed over sites once; fitted curves stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.config.plan import Plan
from lift.errors import DataError
from lift.files import write_atomically
from lift.generator.features import Features
from lift.mixer.curves import (
    KNOTS,
    ChosenCurves,
    CurveEquations,
    choose_curves,
    fit_curves,
    mean_equations,
    total_equations,
)
from lift.mixer.z_filter import SCALE
from lift.tasks.paired.choice import USES, Use
from lift.wire.names import CURVE_SUMS, POOLED_CURVES

FEWEST_PATIENTS: Final = 5
"""Training patients of a site that shares its sums; one with fewer shares none."""
POOLED_FILE: Final = "pooled-curves.safetensors"
"""Beside a finished mixer: the sums of all sites that shared theirs, for those that join later."""
CURVES_FILE: Final = "site-curves.safetensors"
"""In a site's work folder: its curves. They stay there."""
Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class SiteContrast:
    """The curve equations of a site's patients (a patient with several volumes counts once).

    Attributes:
        train: by training patient.
        validation: by validation patient.
        affine: fit a gain and an offset in place of curves.
    """

    train: Mapping[str, CurveEquations]
    validation: Mapping[str, CurveEquations]
    affine: bool = False

    @classmethod
    def of(
        cls,
        train: Mapping[str, Sequence[CurveEquations]],
        validation: Mapping[str, Sequence[CurveEquations]],
        *,
        affine: bool = False,
    ) -> Self:
        """From the equations of each patient's volumes."""
        return cls(
            {name: mean_equations(volumes) for name, volumes in train.items()},
            {name: mean_equations(volumes) for name, volumes in validation.items()},
            affine,
        )

    def own(self, patient: str) -> Tensor:
        """The curves of one training patient alone, (f,): how training sees it."""
        return fit_curves(self.train[patient], affine=self.affine)

    def chosen(
        self, others: CurveEquations | None, *, without: Collection[str] = ()
    ) -> ChosenCurves:
        """The site's curves.

        Args:
            others: sums over the other sites' patients; None: they shared none.
            without: patients who are left out, as those on whom the curves are judged must be.
        """
        people = {**self.train, **self.validation}
        fitted = [equations for name, equations in people.items() if name not in without]
        return choose_curves(fitted, others, affine=self.affine)

    def shared(self, patients: int) -> CurveEquations | None:
        """The sums over training patients as they leave, for a rounded number of patients.

        Hat functions add up to 1, so a plain sum would tell how many patients it is of: what
        leaves is their mean, times the number that the site tells. None below
        `FEWEST_PATIENTS`.
        """
        count = len(self.train)
        if count < FEWEST_PATIENTS:
            return None
        total = total_equations(list(self.train.values()))
        return CurveEquations(
            _units(total.a * (patients / count)) / SCALE,
            _units(total.b * (patients / count)) / SCALE,
            patients,
        )


def own_curves_view(
    patients: Mapping[str, Sequence[Features]], contrast: SiteContrast
) -> dict[str, list[Features]]:
    """Training patients as training sees them: each under its own curves."""
    return {
        name: [features.seen_with(contrast.own(name)) for features in volumes]
        for name, volumes in patients.items()
    }


def to_arrays(equations: CurveEquations | None) -> Arrays:
    """A site's sums as tensors of its answer to round 0; none where it shares none."""
    if equations is None:
        return {}
    units = (_units(part).long().numpy() for part in (equations.a, equations.b))
    return dict(zip(CURVE_SUMS, units, strict=True))


def fingerprint(equations: CurveEquations) -> int:
    """By which a site knows its own part of a sum again: 63 bits of SHA-256."""
    content = b"".join(array.tobytes() for array in to_arrays(equations).values())
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


def pooled_arrays(parts: Sequence[CurveEquations]) -> dict[str, Tensor]:
    """All sites' sums as they are kept and sent; none where no site shared any.

    They do not depend on the order of `parts`, and name no site: one that came after round 0
    must not take its own from a sum that it is no part of.
    """
    if not parts:
        return {}
    total = total_equations(parts)
    count = torch.tensor([total.patients], dtype=torch.float64)
    known = torch.tensor(sorted(fingerprint(part) for part in parts))
    return dict(zip(POOLED_CURVES, (total.a, total.b, count, known), strict=True))


def others_of(
    shared: Mapping[str, np.ndarray], own: CurveEquations | None, sources: int
) -> CurveEquations | None:
    """The sums of all other sites' patients, from those of all and what this site shared.

    Args:
        shared: what the server sent; without curves it gives None.
        own: what this site shared; it is taken away if it is a part of those sums.
        sources: source channels of the plan.

    Raises:
        ValueError: the sums have another form, are not finite, or are fewer patients' than this
            site's own.
    """
    if not any(name in shared for name in POOLED_CURVES):
        return None
    size = KNOTS * (1 + sources)
    shapes = ((size, size), (size,), (1,))
    arrays = [np.asarray(shared[name]) if name in shared else np.zeros(0) for name in POOLED_CURVES]
    parts = arrays.pop()
    for array, shape in zip(arrays, shapes, strict=True):
        if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
            raise ValueError("the sums of all sites' curves have another form")
    if parts.ndim != 1 or parts.dtype != np.int64:
        raise ValueError("the sums of all sites' curves have another form")
    a, b = (torch.from_numpy(np.array(array)) for array in arrays[:2])
    total = CurveEquations(a, b, round(float(arrays[2][0])))
    is_part = own is not None and fingerprint(own) in parts.tolist()
    rest = total - own if is_part and own is not None else total
    if rest.patients < 0:
        raise ValueError("the sums of all sites' curves are of fewer patients than this site's")
    return rest if rest.patients else None


@dataclass(frozen=True)
class OwnMixer:
    """A mixer that a site trained itself and chose, in a file next to its curves.

    Attributes:
        method: how it came about, in words.
        digest: SHA-256 of the file.
    """

    method: str
    digest: str


@dataclass(frozen=True)
class SiteModel:
    """The site's own part of its model, in addition to the shared mixer.

    Attributes:
        curves: the site's, (f,), float64.
        use: what of the mixer.
        own: the mixer that takes the place of the shared one, if any.
    """

    curves: Tensor
    use: Use = field(default_factory=Use)
    own: OwnMixer | None = None

    @property
    def name(self) -> str:
        """What this site uses, as a reader meets it."""
        return self.use.name if self.own is None else self.own.method


def write_site_curves(
    path: Path,
    chosen: ChosenCurves,
    use: Use,
    shared: Mapping[str, np.ndarray],
    plan: Plan,
    *,
    own: OwnMixer | None = None,
) -> None:
    """Keep a site's curves for translations at this site, and what they came from; mode 0600.

    Args:
        path: file.
        chosen: the site's curves.
        use: what of the mixer this site uses.
        shared: what the server sent of all sites.
        plan: the run's plan.
        own: the mixer of its own that it uses; software that does not know of such reads `use`.

    Raises:
        OSError: the disk refuses.
    """
    size = KNOTS * (1 + len(plan.task.source))
    curves = torch.zeros(size).double() if chosen.curves is None else chosen.curves
    metadata = {
        "plan_digest": plan.digest(),
        "weight": str(chosen.weight),
        "use": use.name,
    }
    if own is not None:
        metadata |= {"own_mixer": own.digest, "own_method": own.method}
    sums = {
        name: torch.from_numpy(np.array(shared[name])) for name in POOLED_CURVES if name in shared
    }
    content = safetensors.torch.save({"curves": curves, **sums}, metadata=metadata)
    write_atomically(path, content, mode=0o600)


def write_pooled_curves(path: Path, shared: Mapping[str, Tensor], plan: Plan) -> bool:
    """Keep the sums of all sites for hospitals that join later; nothing where no site shared any.

    Args:
        path: file; it reveals what every site of the run knows.
        shared: what the server sent to all sites.
        plan: the run's plan.

    Returns:
        Whether there was anything to write.
    """
    sums = {name: shared[name].contiguous() for name in POOLED_CURVES if name in shared}
    if not sums:
        return False
    content = safetensors.torch.save(sums, {"plan_digest": plan.digest()})
    write_atomically(path, content, mode=0o600)
    return True


def read_shared_sums(path: Path, plan: Plan) -> dict[str, np.ndarray]:
    """The sums of all sites in a file of pooled or a site's curves; none without such a file."""
    try:
        with safetensors.safe_open(path, framework="np") as stream:
            if (stream.metadata() or {}).get("plan_digest") != plan.digest():
                return {}
            known = set(stream.keys())
            return {name: stream.get_tensor(name) for name in POOLED_CURVES if name in known}
    except (OSError, safetensors.SafetensorError):
        return {}


def read_site_model(path: Path, sources: int) -> SiteModel:
    """A site's curves, and what of the mixer it uses.

    Raises:
        DataError: the file is not one of a site's curves, or of another number of sources.
    """
    size = KNOTS * (1 + sources)
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            curves: Tensor = stream.get_tensor("curves").double()
            metadata = stream.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        curves, metadata = torch.zeros(0), {}
    if curves.shape != (size,) or not torch.isfinite(curves).all():
        raise DataError(
            "cannot read a site's curves",
            where=path.name,
            seen=f"{curves.numel()} finite numbers; {size} are needed for {sources} sources"
            if curves.numel()
            else "it is not a file of curves",
            remedy=f"Give the {CURVES_FILE} that the site's work folder holds after a run of "
            "this mixer.",
        )
    use = next((use for use in USES if use.name == metadata.get("use")), Use())
    digest = metadata.get("own_mixer")
    own = None if digest is None else OwnMixer(metadata.get("own_method", "own mixer"), digest)
    return SiteModel(curves, use, own)


def _units(values: Tensor) -> Tensor:
    """In whole units of 1 / `SCALE`, float64."""
    return (values * SCALE).round()
