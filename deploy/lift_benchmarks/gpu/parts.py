"""The parts of `make bench-gpu`, most important first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lift.cohort.layouts import list_patients
from lift.cohort.phantom.write import write_phantom_cohort
from lift.cohort.preprocessing import Prepared, prepare
from lift.config.cohort import BratsData
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import MixerPlan, Plan, TaskPlan, TrainingPlan, UnconditionalPlan
from lift.config.privacy import NoPrivacy
from lift.generator.bundle import load_bundle
from lift.generator.card import builtin_bundle
from lift.generator.features import FeatureCache, Features, compute_features
from lift.generator.networks import FrozenGenerator
from lift.metrics.synthrad import ValueRange, psnr_db
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.synthesis import Floats, GeneratedStream, mix
from lift.tasks.paired.training import draw_batches, train_round
from lift.tasks.registry import with_generator
from lift.tasks.unconditional.bundle import load_decoder
from lift.tasks.unconditional.drifting.statistics import Sums
from lift.tasks.unconditional.learning import plan_mapper, statistics_loss, train_mapper_round
from lift_benchmarks.bench.example import (
    SOURCES,
    example_features,
    example_generator,
    example_mixer,
    example_plan,
    example_prepared,
)
from lift_benchmarks.bench.figure import Figure
from lift_benchmarks.gpu.machine import Machine
from lift_benchmarks.gpu.roof import Roof, measure_roof
from lift_benchmarks.gpu.sizes import Sizes
from lift_benchmarks.gpu.volumes import in_blocks, in_one_piece, work_of_volume

_BUNDLE = "phantom-t1n-t1c-t2w-t2f"
_DECODER = "phantom-t1n-slices"
_CPU = torch.device("cpu")
_RANGE = ValueRange(0.0, 1.0)


@dataclass
class Bench:
    """What the parts share.

    Attributes:
        machine: what is measured.
        sizes: of all that is measured.
        folder: for files; it is removed afterwards.
        roof: once it was measured.
        least_volume_s: seconds of a volume below that roof.
    """

    machine: Machine
    sizes: Sizes
    folder: Path
    roof: Roof | None = None
    least_volume_s: float | None = None
    _phantom: list[Prepared] = field(default_factory=list)

    @property
    def half(self) -> torch.dtype:
        """The format in which the product computes volumes here."""
        return torch.float16 if self.machine.is_gpu else torch.float32

    def generator(self, network: tuple[int, tuple[int, ...]]) -> FrozenGenerator:
        """A generator with random weights, on the device."""
        return example_generator(*network).to(self.machine.device)

    def phantom(self) -> list[Prepared]:
        """Two phantom patients, prepared for the shipped bundle."""
        if not self._phantom:
            root = self.folder / "phantom"
            config = {
                "patients": 2,
                "scanner": "north",
                "seed": 77,
                "in_plane_mm": self.sizes.phantom_mm,
            }
            write_phantom_cohort(PhantomCohortConfig.from_data(config, "bench"), root)
            plan = example_plan()
            patients, _ = list_patients(BratsData(root=root), (*SOURCES, "t2f"))
            self._phantom += [
                prepare(patient, plan, root=root, with_target=True) for patient in patients
            ]
        return self._phantom


Part = Callable[[Bench], Iterator[Figure]]


def all_parts(sizes: Sizes) -> Mapping[str, Part]:
    """Name -> part, in the order in which they are measured."""
    blocks = {
        f"volume, {'whole' if block is None else f'blocks of {block}'}": partial(_block, block)
        for block in sizes.blocks
    }
    return {
        "roof": _roof,
        "volume": _volume,
        **blocks,
        "round": _round,
        "features": _caching,
        "quality": _quality,
        "same bits": _same_bits,
        "agreement with the CPU": _agreement,
        "drifting": _drifting,
    }


def _roof(bench: Bench) -> Iterator[Figure]:
    sizes = bench.sizes
    roof = bench.roof = measure_roof(
        bench.machine, side=sizes.matrix, copied_bytes=sizes.copied_bytes
    )
    for dtype, rate in roof.tflops.items():
        name = str(dtype).removeprefix("torch.")
        yield Figure(f"matmul_{name}_tflops", rate, "", f"TFLOP/s, {sizes.matrix} squared")
    yield Figure("copy_gb_s", roof.copy_gb_s, "", "GB/s read and written within the device")
    pageable = torch.ones(sizes.copied_bytes, dtype=torch.uint8)
    taken = bench.machine.seconds(lambda: pageable.to(bench.machine.device))
    if bench.machine.is_gpu:
        yield Figure("upload_gb_s", sizes.copied_bytes / taken / 1e9, "", "GB/s, pageable memory")
    generator = example_generator(*sizes.network)
    work = work_of_volume(generator, example_mixer(generator), sizes.shape, bench.half)
    bench.least_volume_s = work.least_s(roof, bench.half)
    yield Figure("volume_tflop", work.flops / 1e12, "", "TFLOP of a volume, generator and mixer")
    yield Figure("volume_moved_gb", work.moved_bytes / 1e9, "", "GB read and written, unfused")
    yield Figure("volume_least_s", bench.least_volume_s, "", "seconds of a volume below the roof")


def _volume(bench: Bench) -> Iterator[Figure]:
    generator = bench.generator(bench.sizes.network)
    mixer = example_mixer(generator)
    prepared = example_prepared(bench.sizes.shape)

    def run() -> Floats:
        return mix(mixer, GeneratedStream(prepared, generator, mixer))

    yield from _timed(bench, "volume", run, "as lift translate computes it")


def _block(block: int | None, bench: Bench) -> Iterator[Figure]:
    generator = bench.generator(bench.sizes.network)
    mixer = example_mixer(generator)
    prepared = example_prepared(bench.sizes.shape)
    name = "volume_whole" if block is None else f"volume_blocks_{block}"
    run = partial(in_blocks, prepared, generator, mixer, block)
    yield from _timed(bench, name, run, "in blocks of this many slices")


def _timed(bench: Bench, name: str, run: Callable[[], object], meaning: str) -> Iterator[Figure]:
    """Seconds, share of the roof and peak memory of a volume."""
    taken = bench.machine.seconds(run)
    size = "x".join(str(side) for side in bench.sizes.shape)
    yield Figure(f"{name}_s", taken, "", f"seconds of a volume of {size}, {meaning}")
    if bench.least_volume_s is not None:
        share = bench.least_volume_s / taken
        yield Figure(f"{name}_share_of_roof", share, "", "least seconds over these")
    peak = bench.machine.peak_gb(run)
    if peak is not None:
        yield Figure(f"{name}_peak_gb", peak, "", "GB of tensors on the device at most")


def _round(bench: Bench) -> Iterator[Figure]:
    sizes = bench.sizes
    generator = bench.generator(sizes.cached)
    plan = _plan(sizes)
    mixer = plan_mixer(plan, generator)
    cache = FeatureCache(bench.folder / "round", largest_gb=1e3)
    features = example_features(generator, sizes.shape)
    stored = [
        cache.write(str(i), features, owner="bench", files=str(i)) for i in range(sizes.distinct)
    ]
    patients = [stored[i % len(stored)] for i in range(sizes.patients)]
    start = mixer.values()

    def run() -> None:
        train_round(mixer, start, patients, plan, round_index=1, site="bench")

    taken = bench.machine.seconds(run)
    yield Figure(
        "round_s",
        taken,
        "",
        f"seconds of a round of {sizes.steps} steps with {sizes.patients} cached patients "
        f"({sizes.distinct} on disk, in turn)",
    )
    yield Figure("step_ms", 1e3 * taken / sizes.steps, "", "milliseconds of one of its steps")

    def cut() -> None:
        for step in range(sizes.steps):
            for _ in draw_batches(mixer, patients, plan.training, (plan.seed, 1, "bench", step)):
                pass

    windows = 1e3 * bench.machine.seconds(cut) / sizes.steps
    yield Figure("windows_ms", windows, "", "of these for cutting its windows and uploading them")
    peak = bench.machine.peak_gb(run)
    if peak is not None:
        yield Figure("round_peak_gb", peak, "", "GB of tensors on the device at most")


def _caching(bench: Bench) -> Iterator[Figure]:
    generator = bench.generator(bench.sizes.cached)
    mixer = example_mixer(generator)
    prepared = example_prepared(bench.sizes.shape)
    cache = FeatureCache(bench.folder / "caching", largest_gb=1e3)

    def compute() -> Features:
        return compute_features(prepared, generator, mixer.tap_names, mixer.pooled_names)

    features = compute()
    size = features.source.nbytes + features.pred.nbytes
    size += sum(tap.nbytes for tap in features.taps.values())
    compute_s = bench.machine.seconds(compute)
    write_s = bench.machine.seconds(
        lambda: cache.write("features", features, owner="bench", files="bench")
    )
    yield Figure("features_s", compute_s, "", "seconds of a patient's features, not written yet")
    yield Figure("features_gb", size / 1e9, "", "GB of a patient in the cache")
    yield Figure("features_gb_s", size / compute_s / 1e9, "", "GB/s of features computed")
    yield Figure("cache_write_gb_s", size / write_s / 1e9, "", "GB/s written into the cache")


def _quality(bench: Bench) -> Iterator[Figure]:
    generator = load_bundle(
        builtin_bundle(_BUNDLE), expected_fingerprint=None, device=bench.machine.device
    )
    mixer = plan_mixer(example_plan(), generator)
    mixer.load_values(_trained(bench, generator))
    prepared = bench.phantom()[0]
    exact = in_one_piece(prepared, generator, mixer, torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found = in_one_piece(prepared, generator, mixer, dtype)
        lost = _psnr_db(prepared, exact) - _psnr_db(prepared, found)
        yield Figure(
            f"{name}_psnr_loss_db",
            lost,
            "",
            f"PSNR lost by {name} against float32 as torch computes it here, phantom, dB",
        )


def _same_bits(bench: Bench) -> Iterator[Figure]:
    generator = bench.generator(bench.sizes.cached)
    prepared = bench.phantom()[0]
    mixer = example_mixer(generator)
    first, second = (mix(mixer, GeneratedStream(prepared, generator, mixer)) for _ in range(2))
    equal = np.array_equal(first, second)
    yield Figure("same_bits_volume", float(equal), "", "1: two runs of a volume are equal")
    one, other = (_trained(bench, generator) for _ in range(2))
    equal = all(torch.equal(one[name], other[name]) for name in one)
    yield Figure("same_bits_round", float(equal), "", "1: two runs of a round are equal")


def _agreement(bench: Bench) -> Iterator[Figure]:
    """The device's round and volume against the same on the CPU."""
    found: list[Floats] = []
    changes: list[Tensor] = []
    prepared = bench.phantom()[0]
    for device in (_CPU, bench.machine.device):
        generator = load_bundle(builtin_bundle(_BUNDLE), expected_fingerprint=None, device=device)
        mixer = plan_mixer(example_plan(), generator)
        start = mixer.values()
        trained = _trained(bench, generator)
        changes.append(torch.cat([(trained[n] - start[n]).flatten() for n in start]).double())
        mixer.load_values(trained)
        found.append(mix(mixer, GeneratedStream(prepared, generator, mixer)))
    expected, here = found
    mask = np.asarray(prepared.mask)[:, 0] > 0
    yield Figure(
        "cpu_agreement_db",
        psnr_db(here[:, 0], expected[:, 0], mask, _RANGE),
        "",
        "PSNR of the volume of a mixer trained here against that of the CPU, phantom, dB",
    )
    difference = _psnr_db(prepared, here) - _psnr_db(prepared, expected)
    yield Figure(
        "cpu_psnr_difference_db", difference, "", "their PSNR against the real volume, here - CPU"
    )
    there, own = changes
    cosine = float(there @ own / there.norm() / own.norm())
    yield Figure("cpu_update_cosine", cosine, "", "between the updates of that round")


def _drifting(bench: Bench) -> Iterator[Figure]:
    decoder = load_decoder(
        builtin_bundle(_DECODER), expected_fingerprint=None, device=bench.machine.device
    )
    plan = with_generator(
        Plan(
            task=TaskPlan(kind="unconditional", target=decoder.card.target),
            mixer=MixerPlan(kind="trajectory_mapper"),
            unconditional=UnconditionalPlan(slice_spacing_mm=decoder.card.body_length_mm / 36),
            training=TrainingPlan(steps=bench.sizes.steps),
            privacy=NoPrivacy(mode="none"),
        ),
        decoder,
    )
    mapper = plan_mapper(plan, decoder)
    start = mapper.values()
    # a cost does not depend on what the sums hold, as long as every cell has its share
    none = Sums.zero(decoder.public.projection)
    full = {name: torch.ones_like(units) for name, units in none.units.items()}
    sums = Sums(none.encoder_digest, none.projection_digest, 1, full)
    loss = statistics_loss(plan, decoder.public, sums)
    taken = bench.machine.seconds(
        lambda: train_mapper_round(mapper, start, decoder, loss, plan, round_index=1, site="bench")
    )
    yield Figure(
        "drifting_step_ms", 1e3 * taken / bench.sizes.steps, "", "milliseconds of a drifting step"
    )


def _trained(bench: Bench, generator: FrozenGenerator) -> dict[str, Tensor]:
    """The numbers after one round on the phantom patients."""
    plan = _plan(bench.sizes)
    mixer = plan_mixer(plan, generator)
    patients = [
        compute_features(patient, generator, mixer.tap_names, mixer.pooled_names)
        for patient in bench.phantom()
    ]
    start = mixer.values()
    return train_round(mixer, start, patients, plan, round_index=1, site="bench").values


def _plan(sizes: Sizes) -> Plan:
    training = TrainingPlan(steps=sizes.steps, window=sizes.window)
    return example_plan().model_copy(update={"training": training})


def _psnr_db(prepared: Prepared, found: Floats) -> float:
    if prepared.target is None:
        raise ValueError("a phantom has its target")
    mask = np.asarray(prepared.mask)[:, 0] > 0
    return psnr_db(found[:, 0], prepared.target[:, 0], mask, _RANGE)
