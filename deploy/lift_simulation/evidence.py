"""The rows of an unconditional run: real, reconstructed, random and generated volumes compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lift.config.plan import Plan
from lift.drifting.groups import GroupLayout
from lift.errors import DataError
from lift.metrics.generated import Comparison, SetFeatures, order_correlation
from lift.mixer.trajectory import TrajectoryMapper, slice_positions
from lift.randomness import derive_seed
from lift.unconditional.decoder import FrozenDecoder
from lift.unconditional.grid import BodyVolume
from lift.unconditional.learning import plan_mapper, settings_of
from lift.unconditional.pretraining import nearest_latents
from lift.unconditional.sampling import generate_volume, write_generated
from lift_client.unconditional import UnconditionalWork

REAL: Final = "real_train"
_PLACES: Final = 16
_FEWEST_HELD_OUT: Final = 2
Entry = dict[str, float | int | str | None]


class Evidence:
    """Compares every method's volumes with held-out ones, of all sites and of each.

    Args:
        plan: of the run.
        decoder: frozen.
        works: site -> its work, for its patients.
        count: generated volumes of each method.
        device: where slices are decoded.
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
        device: torch.device,
        report: Callable[[str, int, int], None],
    ) -> None:
        self._plan = plan
        self._decoder = decoder
        self._count = count
        self._device = device
        self._report = report
        settings = settings_of(plan)
        pixel = decoder.card.network.pixel_mm
        self._spacing_mm = (settings.slice_spacing_mm, pixel, pixel)
        self._training = {
            name: [work.body(p) for p in work.split.train] for name, work in works.items()
        }
        self._held_out = {
            name: [work.body(p) for p in work.split.test] for name, work in works.items()
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
        self._comparison = Comparison(everyone, layout)
        self._everyone = everyone
        self._references = {"": held_out} | {
            name: volumes
            for name, volumes in self._held_out.items()
            if len(volumes) >= _FEWEST_HELD_OUT
        }

    def table(self, trained: Mapping[str, Mapping[str, Tensor]]) -> dict[str, object]:
        """`metrics.json`: every row against the held-out volumes of all sites and of each.

        Args:
            trained: method -> the mapper's numbers.
        """
        references = {
            name: self._comparison.features(volumes) for name, volumes in self._references.items()
        }
        training = self._comparison.features(self._everyone)
        rows = self._rows(trained)
        seed = derive_seed(self._plan.seed, "intervals")
        pooled: dict[str, dict[str, Entry]] = {}
        sites: dict[str, dict[str, dict[str, Entry]]] = {n: {} for n in references if n}
        means = self._mean_slices()
        for made, (method, volumes) in enumerate(rows.items(), start=1):
            features = training if method == REAL else self._comparison.features(volumes)
            for name, reference in references.items():
                figures = self._comparison.figures(
                    features, reference, None if method == REAL else training, seed=seed
                )
                if name:
                    sites[name][method] = figures
                else:
                    pooled[method] = figures | self._quality(volumes, features, means)
            self._report("evaluation", made, len(rows))
        return {
            "sites": {
                name: {"patients": len(self._held_out[name]), "methods": methods}
                for name, methods in sites.items()
            },
            "pooled": pooled,
        }

    def write_samples(
        self, folder: Path, trained: Mapping[str, Mapping[str, Tensor]], count: int
    ) -> None:
        """Some new volumes of the federated mapper, and as many held-out real ones, as NIfTI."""
        mapper = self._mapper(trained["federated"])
        spacing = self._spacing_mm[0]
        for index in range(count):
            made = self._generated(mapper, index)
            path = folder / "generated" / f"volume-{index:04d}.nii.gz"
            write_generated(path, made, self._decoder, self._plan, spacing)
        real = self._references[""]
        step = max(1, len(real) // max(1, count))
        for index, volume in enumerate(real[::step][:count]):
            voxels = volume.voxels[0, 0].numpy()
            path = folder / "held-out" / f"volume-{index:04d}.nii.gz"
            write_generated(path, voxels, self._decoder, self._plan, volume.spacing_mm[0])

    def _rows(self, trained: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Sequence[BodyVolume]]:
        untrained = plan_mapper(self._plan, self._decoder).values()
        rows: dict[str, Sequence[BodyVolume]] = {
            REAL: self._everyone,
            "reconstruction": [self._reconstructed(v) for v in self._everyone],
            "independent_slices": self._independent(),
            "shuffled_subjects": self._shuffled(),
        }
        for name, values in {"untrained": untrained, **trained}.items():
            mapper = self._mapper(values)
            rows[name] = [self._volume(self._generated(mapper, i)) for i in range(self._count)]
        return rows

    def _mapper(self, values: Mapping[str, Tensor]) -> TrajectoryMapper:
        mapper = plan_mapper(self._plan, self._decoder)
        mapper.load_values(values)
        return mapper

    def _generated(self, mapper: TrajectoryMapper, index: int) -> np.ndarray:
        return generate_volume(
            mapper,
            self._decoder,
            seed=derive_seed(self._plan.seed, "evaluation"),
            index=index,
            slices=settings_of(self._plan).slices,
            device=self._device,
        )

    def _volume(self, slices: np.ndarray) -> BodyVolume:
        return BodyVolume(torch.from_numpy(slices)[None, None], self._spacing_mm)

    def _reconstructed(self, volume: BodyVolume) -> BodyVolume:
        """The nearest volume that the frozen decoder can make of it: its ceiling."""
        network = self._decoder.network.cpu()
        slices = volume.voxels[0, 0][:, None]
        latents = nearest_latents(network, slices, self._decoder.card.network.latent)
        with torch.no_grad():
            made = network(latents)
        self._decoder.to(self._device)
        return BodyVolume(made.movedim(0, 1)[None], volume.spacing_mm)

    def _independent(self) -> list[BodyVolume]:
        """Every slice from a latent of its own: what the decoder makes without a mapper."""
        generator = torch.Generator().manual_seed(derive_seed(self._plan.seed, "independent"))
        network = self._decoder.card.network
        slices = settings_of(self._plan).slices
        made = []
        for _ in range(self._count):
            latents = torch.randn(1, slices, network.latent, generator=generator)
            with torch.no_grad():
                made.append(
                    BodyVolume(self._decoder(latents.to(self._device)).cpu(), self._spacing_mm)
                )
        return made

    def _shuffled(self) -> list[BodyVolume]:
        """Real training slices at their places along the body, each of another patient."""
        rng = np.random.default_rng(derive_seed(self._plan.seed, "shuffled"))
        made = []
        for volume in self._everyone:
            position = slice_positions(volume.voxels.shape[2])
            owners = rng.integers(len(self._everyone), size=len(position))
            slices = []
            for place, owner in zip(position.tolist(), owners, strict=True):
                other = self._everyone[int(owner)].voxels[0, 0]
                slices.append(other[round(place * (len(other) - 1))])
            made.append(BodyVolume(torch.stack(slices)[None, None], volume.spacing_mm))
        return made

    def _mean_slices(self) -> Tensor:
        """Mean real slice at each of 16 places along the body."""
        places = torch.linspace(0, 1, _PLACES)
        stacks = []
        for volume in self._everyone:
            slices = volume.voxels[0, 0]
            stacks.append(slices[(places * (len(slices) - 1)).round().long()])
        return torch.stack(stacks).mean(0)

    def _quality(
        self, volumes: Sequence[BodyVolume], features: SetFeatures, means: Tensor
    ) -> dict[str, Entry]:
        orders = [order_correlation(volume.voxels[0, 0], means) for volume in volumes]
        n = len(volumes)
        counts = {
            "order_correlation": float(np.mean(orders)),
            "reversed_volumes": float(sum(order < 0 for order in orders)),
            "flat_volumes": float(features.flat),
        }
        return {
            name: {"value": value, "n": n, "low": None, "high": None, "unit": ""}
            for name, value in counts.items()
        }
