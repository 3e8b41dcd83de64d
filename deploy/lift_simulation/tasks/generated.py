"""The rows of an unconditional run: real, reconstructed, random and generated volumes compared.

All have one field of view and one grid, that of the generated volumes
(`lift.tasks.unconditional.grid.same_view`), before anything is measured, reconstructed or
shuffled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lift.config.plan import Plan
from lift.errors import DataError
from lift.metrics.descriptors import FREQUENCIES
from lift.metrics.distribution import distribution_figures, evaluation_encoder, quality
from lift.metrics.judge import classifier_figures
from lift.metrics.neighbours import nearest_figures
from lift.metrics.reference import Reference
from lift.metrics.table import MetricValue
from lift.metrics.volume_sets import ImageVolume, MeasuredSet, measure_volumes
from lift.randomness import derive_seed
from lift.records.metrics import FieldOfView, Measure, Metrics, SiteFigures, Spectra, Table
from lift.report.read import STYLE_FOLDER
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.grid import BodyVolume, same_view
from lift.tasks.unconditional.learning import Trajectory, plan_mapper, settings_of
from lift.tasks.unconditional.sampling import (
    decoded,
    generate_volume,
    latent_mapper,
    write_generated,
)
from lift.tasks.unconditional.style import MEAN, stated_style, styles_of
from lift.triplanar.groups import GroupLayout
from lift.wire.names import GAUSSIAN, only
from lift_client.tasks.unconditional import UnconditionalWork

REAL: Final = "real_train"
HELD_OUT: Final = "held_out"
_FEWEST_HELD_OUT: Final = 4
_HALVES: Final = 100
_OF_A_STYLE: Final = 6


class Evidence:
    """Compares every method's volumes with held-out ones, of all sites and of each.

    Args:
        plan: of the run.
        decoder: frozen.
        works: site -> its work, for its patients.
        count: generated volumes of each method.
        report: called with what is being done, the sets done and their number.

    Raises:
        DataError: too few held-out patients.
    """

    def __init__(
        self,
        plan: Plan,
        decoder: FrozenDecoder,
        works: Mapping[str, UnconditionalWork],
        *,
        count: int,
        report: Callable[[str, int, int], None],
    ) -> None:
        self._plan = plan
        self._decoder = decoder
        self._count = count
        self._report = report
        settings = settings_of(plan)
        pixel = decoder.card.network.pixel_mm
        self._spacing_mm = (settings.slice_spacing_mm, pixel, pixel)
        self._training = {
            name: [self._seen(work, p) for p in work.split.train] for name, work in works.items()
        }
        # one volume of each person: nobody counts twice
        self._held_out = {
            name: [self._seen(work, p) for p in _first_of_each(work)]
            for name, work in works.items()
        }
        everyone = [v for volumes in self._training.values() for v in volumes]
        held_out = [v for volumes in self._held_out.values() for v in volumes]
        if len(held_out) < _FEWEST_HELD_OUT:
            raise DataError(
                "cannot compare new volumes with held-out ones",
                where="plan.split",
                seen=f"{len(held_out)} held-out volumes; at least {_FEWEST_HELD_OUT} are needed",
                remedy="Lower split.train or add patients; the mixer is trained and kept.",
            )
        trained_on = decoder.public.projection.layout
        layout = GroupLayout(
            trained_on.axial,
            trained_on.coronal,
            trained_on.sagittal,
            windows=2,
            step_mm=trained_on.step_mm,
            pixel_mm=pixel,
        )
        self._layout = layout
        self._encoder = evaluation_encoder()
        self._everyone = everyone
        training = self._measured(everyone)
        self._training_set = training
        digest = decoder.public.encoder.digest
        # one space for all comparisons, fitted on what is neither generated nor held out
        first = Reference(
            self._measured(held_out), training=training, training_encoder_digest=digest
        )
        self._references = {"": first} | {
            name: Reference(
                self._measured(volumes),
                standardisation=first.standardisation,
                training_encoder_digest=digest,
            )
            for name, volumes in self._held_out.items()
            if len(volumes) >= _FEWEST_HELD_OUT
        }
        self._shown = held_out
        # a distance between few volumes is larger: all rows count equally many
        self._size = min(count, len(everyone), len(held_out))

    def table(self, trained: Mapping[str, Mapping[str, Tensor]]) -> Metrics:
        """`metrics.json`: every row against the held-out volumes of all sites and of each.

        Args:
            trained: method -> the mapper's numbers.
        """
        rows = self._rows(trained)
        seed = derive_seed(self._plan.seed, "intervals")
        held_out = self._references[""].real
        pooled = {HELD_OUT: _entries(nearest_figures(held_out, self._training_set))}
        spectra = {HELD_OUT: _spectrum(held_out)}
        sites: dict[str, dict[str, Table]] = {n: {} for n in self._references if n}
        for made, (method, volumes) in enumerate(rows.items(), start=1):
            own = method == REAL
            measured = self._training_set if own else self._measured(volumes)
            for name, reference in self._references.items():
                figures = distribution_figures(
                    measured,
                    reference,
                    seed=seed,
                    # intervals and copies take most of the time: the pooled table alone has them
                    training=None if own or name else self._training_set,
                    size=None if name else self._size,
                    halves=0 if name else _HALVES,
                )
                if name:
                    sites[name][method] = _entries(figures)
                else:
                    figures |= classifier_figures(measured, reference.real, seed=seed)
                    pooled[method] = _entries(figures) | _counts(measured, reference)
            spectra[method] = _spectrum(measured)
            self._report("evaluation", made, len(rows))
        return Metrics(
            sites={
                name: SiteFigures(patients=len(self._held_out[name]), methods=methods)
                for name, methods in sites.items()
            },
            pooled=pooled,
            field_of_view=FieldOfView(
                slices=settings_of(self._plan).slices, slice_spacing_mm=self._spacing_mm[0]
            ),
            spectra=Spectra(
                cycles_per_mm=tuple((FREQUENCIES / self._spacing_mm[0]).tolist()), power_db=spectra
            ),
        )

    def write_samples(self, folder: Path, released: Mapping[str, Tensor], count: int) -> None:
        """Some new volumes of what ships, and as many held-out real ones, as NIfTI.

        Where sites' styles are known, a few of each style too: the same volumes but for it.
        """
        mapper = latent_mapper(self._plan, self._decoder, released)
        spacing = self._spacing_mm[0]
        for index in range(count):
            made = self._generated(mapper, index)
            path = folder / "generated" / f"volume-{index:04d}.nii.gz"
            write_generated(path, made, self._decoder, self._plan, spacing)
        known = styles_of(released, self._decoder)
        for name in (*known, MEAN) if known else ():
            style = stated_style(name, mapper, released, self._decoder)
            for index in range(min(count, _OF_A_STYLE)):
                made = self._generated(mapper, index, style)
                path = folder / f"{STYLE_FOLDER}{name}" / f"volume-{index:04d}.nii.gz"
                write_generated(path, made, self._decoder, self._plan, spacing)
        real = self._shown
        step = max(1, len(real) // max(1, count))
        for index, volume in enumerate(real[::step][:count]):
            voxels = volume.voxels[0, 0].numpy()
            path = folder / "held-out" / f"volume-{index:04d}.nii.gz"
            write_generated(path, voxels, self._decoder, self._plan, volume.spacing_mm[0])

    def _rows(self, trained: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Sequence[BodyVolume]]:
        controls = {
            "independent_slices": self._independent(),
            "shuffled_subjects": self._shuffled(),
        }
        rows: dict[str, Sequence[BodyVolume]] = {
            REAL: self._everyone,
            "reconstruction": self._reconstructed(self._everyone),
        }
        # before anything is learned: the Gaussian, or a free mapper's random start
        start = plan_mapper(self._plan, self._decoder).values()
        gaussian = only(trained["federated"], GAUSSIAN)
        mappers = {"gaussian" if gaussian else "untrained": start | gaussian, **trained}
        if gaussian and self._plan.federation.rounds == 0:
            # nothing was trained: these would be the same volumes once more
            del mappers["federated"]
        for name, values in mappers.items():
            mapper = latent_mapper(self._plan, self._decoder, values)
            rows[name] = [self._volume(self._generated(mapper, i)) for i in range(self._count)]
        return rows | controls

    def _generated(self, mapper: Trajectory, index: int, style: Tensor | None = None) -> np.ndarray:
        settings = settings_of(self._plan)
        return generate_volume(
            mapper,
            self._decoder,
            seed=derive_seed(self._plan.seed, "evaluation"),
            index=index,
            slices=settings.slices,
            slice_spacing_mm=settings.slice_spacing_mm,
            style=style,
        )

    def _seen(self, work: UnconditionalWork, patient: str) -> BodyVolume:
        """One patient's volume as generated ones lie."""
        slices = settings_of(self._plan).slices
        return same_view(work.body(patient), slices, self._spacing_mm[0])

    def _volume(self, slices: np.ndarray) -> BodyVolume:
        return BodyVolume(torch.from_numpy(slices)[None, None], self._spacing_mm)

    def _reconstructed(self, volumes: Sequence[BodyVolume]) -> list[BodyVolume]:
        """The nearest volumes that the frozen decoder can make of real ones: its ceiling."""
        made = []
        for volume in volumes:
            latents = self._decoder.latents_of(volume.voxels[0, 0])
            stack = np.concatenate(list(decoded(self._decoder, latents)))
            made.append(BodyVolume(torch.from_numpy(stack)[None, None], volume.spacing_mm))
        return made

    def _independent(self) -> list[BodyVolume]:
        """Every slice from a latent of its own: what the decoder makes without a mapper."""
        generator = torch.Generator().manual_seed(derive_seed(self._plan.seed, "independent"))
        made = []
        for _ in range(self._count):
            latents = self._decoder.draw_slices(settings_of(self._plan).slices, generator)
            with torch.no_grad():
                voxels = self._decoder(latents[None].to(self._decoder.device)).cpu()
            made.append(BodyVolume(voxels, self._spacing_mm))
        return made

    def _shuffled(self) -> list[BodyVolume]:
        """Real training slices at their places along the body, each of another patient."""
        rng = np.random.default_rng(derive_seed(self._plan.seed, "shuffled"))
        real = torch.cat([volume.voxels for volume in self._everyone])[:, 0]
        places = torch.arange(real.shape[1])
        made = []
        for _ in self._everyone:
            owners = torch.from_numpy(rng.integers(len(real), size=len(places)))
            made.append(BodyVolume(real[owners, places][None, None], self._spacing_mm))
        return made

    def _measured(self, volumes: Sequence[BodyVolume]) -> MeasuredSet:
        images = (ImageVolume(v.voxels[0, 0].clamp(0, 1), v.spacing_mm) for v in volumes)
        return measure_volumes(images, layout=self._layout, encoder=self._encoder)


def _first_of_each(work: UnconditionalWork) -> list[str]:
    """The first examination of every test person."""
    first: dict[str, str] = {}
    for one in work.split.test:
        first.setdefault(work.patients[one].subject, one)
    return list(first.values())


def _entries(figures: Mapping[str, MetricValue]) -> Table:
    return {metric: Measure(**asdict(figure)) for metric, figure in figures.items()}


def _spectrum(measured: MeasuredSet) -> tuple[float, ...]:
    """Mean power along depth by band, in dB."""
    return tuple(round(float(db), 3) for db in measured.spectra_db.mean(axis=0))


def _counts(measured: MeasuredSet, reference: Reference) -> Table:
    found = quality(measured, reference)
    counts = {"reversed_volumes": found.reversed, "flat_volumes": found.flat}
    return {
        name: Measure(value=count, n=found.volumes, low=None, high=None, unit="")
        for name, count in counts.items()
    }
