"""Cost of a volume against 1000-step cWDM, and of a training step with and without the cache."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch

from lift.config.plan import TrainingPlan
from lift.generator.features import Features, compute_features
from lift.tasks.paired.synthesis import GeneratedStream, mix
from lift.tasks.paired.training import batch_loss, draw_batches
from lift_benchmarks.bench.cwdm import IN_CHANNELS, STEPS, CwdmUnet
from lift_benchmarks.bench.example import (
    BRATS_SIDE,
    BRATS_SLICES,
    SOURCES,
    example_features,
    example_generator,
    example_mixer,
    example_plan,
    example_prepared,
)
from lift_benchmarks.bench.figure import Figure
from lift_benchmarks.bench.flops import (
    cwdm_flops_per_step,
    mixer_flops_per_slice,
    unet2d_flops_per_slice,
)

# the width that is used for images of BraTS's size (method 3.4)
_WIDTH, _MULTIPLIERS = 32, (1, 2, 4, 8)
_WALL_SHAPE = (96, 128, 128)


def cost_figures() -> list[Figure]:
    """Ratios of FLOPs and of seconds, all from this one run."""
    return [*_flops(), *_wall(), *_cache()]


def _flops() -> list[Figure]:
    generator = example_generator(_WIDTH, _MULTIPLIERS)
    slice_flops = unet2d_flops_per_slice(generator.network, len(SOURCES), (BRATS_SIDE, BRATS_SIDE))
    taps = {"feat": _WIDTH, "enc0": _WIDTH}
    mixer_flops = mixer_flops_per_slice(example_mixer(generator), len(SOURCES), taps, BRATS_SIDE)
    ours = BRATS_SLICES * (slice_flops + mixer_flops)
    cwdm = STEPS * cwdm_flops_per_step()
    return [
        Figure(
            "flops_ratio_cwdm",
            cwdm / ours,
            ">= 1000",
            f"FLOPs of {STEPS} cWDM steps ({cwdm / 1e15:.2f} PFLOP, 224x224x160) over ours "
            f"({ours / 1e12:.2f} TFLOP, 240x240x155, U-Net w={_WIDTH} and mixer)",
        ),
        Figure(
            "mixer_share_of_flops",
            mixer_flops / (mixer_flops + slice_flops),
            "",
            "the mixer's share of our FLOPs",
        ),
    ]


def _wall() -> list[Figure]:
    depth, height, width = _WALL_SHAPE
    network = CwdmUnet().eval()
    noisy = torch.rand(1, IN_CHANNELS, height // 2, width // 2, depth // 2)
    with torch.no_grad():
        began = perf_counter()
        network(noisy, torch.zeros(1))
        step_s = perf_counter() - began
    generator = example_generator(_WIDTH, _MULTIPLIERS)
    mixer = example_mixer(generator)
    prepared = example_prepared(_WALL_SHAPE)
    began = perf_counter()
    mix(mixer, GeneratedStream(prepared, generator, mixer))
    volume_s = perf_counter() - began
    return [
        Figure(
            "wall_ratio_cwdm",
            STEPS * step_s / volume_s,
            ">= 1000",
            f"seconds of one cWDM step ({step_s:.1f} s) times {STEPS} over our whole volume "
            f"({volume_s:.1f} s), both 128x128x96, same machine and threads, float32",
        )
    ]


def _cache() -> list[Figure]:
    generator = example_generator(_WIDTH, _MULTIPLIERS)
    plan = example_plan()
    mixer = example_mixer(generator).train()
    settings = plan.training
    patients = [example_features(generator, (12, BRATS_SIDE, BRATS_SIDE)) for _ in range(2)]
    cached = [_step_s(mixer, patients, settings, step) for step in range(4)]
    # without a cache the frozen network runs on the whole slices of the windows drawn
    began = perf_counter()
    slices = settings.patients_per_step * settings.window[0]
    for _ in range(settings.patients_per_step):
        compute_features(
            example_prepared((settings.window[0], BRATS_SIDE, BRATS_SIDE)),
            generator,
            mixer.tap_names,
            mixer.pooled_names,
        )
    frozen_s = perf_counter() - began
    # the first step also pays for the kernels' set-up
    cached_s = median(cached[1:])
    return [
        Figure(
            "cached_step_ratio",
            (frozen_s + cached_s) / cached_s,
            ">= 5",
            f"seconds of a training step without ({frozen_s + cached_s:.1f} s: {slices} slices of "
            f"240x240 through the U-Net w={_WIDTH}) over with the cache ({cached_s:.2f} s)",
        )
    ]


def _step_s(
    mixer: torch.nn.Module, patients: list[Features], settings: TrainingPlan, step: int
) -> float:
    from lift.mixer.base import Mixer

    if not isinstance(mixer, Mixer):
        raise TypeError(type(mixer).__name__)
    began = perf_counter()
    batches = draw_batches(mixer, patients, settings, (0, 1, "bench", step))
    losses = [batch_loss(mixer, batch, settings) for batch in batches]
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]  # untyped in torch
    mixer.zero_grad()
    return perf_counter() - began
