"""FLOPs and seconds of a volume beside one pass of a 3D network, on a whole volume and on a head.

The head is the mask of the atlas's brain. What is outside the mask's box is cut off for both sides,
as `lift.cohort.preprocessing` does; only ours is spared more, slice by slice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lift.cohort.phantom.anatomy import load_atlas
from lift.cohort.preprocessing import Prepared
from lift.generator.blocks import block_slices, mask_box
from lift.generator.networks import FrozenGenerator
from lift.mixer.base import Mixer
from lift.tasks.paired.synthesis import GeneratedStream, chunk_slices, mix
from lift_benchmarks.bench.example import (
    BRATS_SIDE,
    BRATS_SLICES,
    SOURCES,
    example_generator,
    example_mixer,
    example_prepared,
)
from lift_benchmarks.bench.figure import Figure
from lift_benchmarks.bench.flops import count_flops, mixer_flops_per_slice
from lift_benchmarks.bench.rivals import RIVALS

Mask = NDArray[np.float32]
Shape = tuple[int, int, int]
Over = Literal["picture", "mask"]

_BRATS: Final = (BRATS_SLICES, BRATS_SIDE, BRATS_SIDE)
_WALL: Final = (96, 128, 128)
# the shipped bundles are the last
_WIDTHS: Final[dict[str, tuple[int, tuple[int, ...], Over]]] = {
    "w32": (32, (1, 2, 4, 8), "mask"),
    "w16": (16, (1, 2, 4, 8), "mask"),
    "w12": (12, (1, 2, 4, 4), "mask"),
    "w12_picture": (12, (1, 2, 4, 4), "picture"),
}
_REPETITIONS: Final = 3
_MARGIN: Final = 4
_STEP: Final = 32


def inference_figures() -> list[Figure]:
    """All from this one run."""
    threads = torch.get_num_threads()
    try:
        return [*_flops(), *_seconds(1), *_seconds(2)]
    finally:
        torch.set_num_threads(threads)


def head_mask(shape: Shape) -> Mask:
    """The atlas's brain in the middle of a volume of BraTS's proportions, (z, 1, h, w).

    Args:
        shape: slices, rows and columns.
    """
    atlas = load_atlas(whole_head=False)
    brain = (np.sum(list(atlas.maps.values()), axis=0) > 0.5).transpose(2, 1, 0)
    whole = np.zeros(_BRATS, np.bool_)
    places = [np.flatnonzero(brain.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    brain = brain[tuple(slice(found[0], found[-1] + 1) for found in places)]
    first = [(room - size) // 2 for room, size in zip(_BRATS, brain.shape, strict=True)]
    whole[tuple(slice(a, a + n) for a, n in zip(first, brain.shape, strict=True))] = brain
    nearest = [(np.arange(n) + 0.5) * old / n for n, old in zip(shape, whole.shape, strict=True)]
    mask: Mask = whole[np.ix_(*(rows.astype(int) for rows in nearest))].astype(np.float32)
    return mask[:, None]


def cropped(mask: Mask) -> Mask:
    """The mask's own box, with the margin in the plane and sides of the plan's multiple."""
    box = []
    for axis, margin in ((0, 0), (2, _MARGIN), (3, _MARGIN)):
        others = tuple(other for other in range(4) if other != axis)
        places = np.flatnonzero(mask.any(axis=others))
        low = max(0, int(places[0]) - margin)
        box.append(slice(low, min(mask.shape[axis], int(places[-1]) + 1 + margin)))
    part = mask[box[0], :, box[1], box[2]]
    return np.pad(part, [(0, 0), (0, 0), *((0, -side % 8) for side in part.shape[2:])])


def volume_flops(generator: FrozenGenerator, mixer: Mixer, mask: Mask) -> float:
    """FLOPs of generator and mixer for one volume, its halos counted, by what is run on it."""
    pixel_of_network, pixel_of_mixer = _flops_by_pixel(generator, mixer)
    depth, _, height, width = mask.shape
    inside = torch.from_numpy(mask)
    size = block_slices((height, width))
    pixels = 0
    for start in range(0, depth, size):
        block = inside[start : start + size]
        stride = generator.crop_stride
        pixels += len(block) * (height * width if stride is None else _area(block, stride))
    chunk = chunk_slices((height, width))
    mixed = 0
    for low in range(0, depth, chunk):
        seen = inside[max(0, low - mixer.halo) : low + chunk + mixer.halo]
        near = mixer.computed_halo
        computed = min(depth, low + chunk + near) - max(0, low - near)
        mixed += computed * _area(seen, 4)
    return pixels * pixel_of_network + mixed * pixel_of_mixer


def _area(mask: torch.Tensor, multiple: int) -> int:
    if not mask.any():
        return 0
    rows, columns = mask_box(mask, multiple)
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _flops_by_pixel(generator: FrozenGenerator, mixer: Mixer) -> tuple[float, float]:
    side = 64
    network = generator.network.to("meta")
    of_network = count_flops(
        lambda: network(torch.empty(1, len(SOURCES), side, side), torch.empty(1, 1, side, side))
    )
    taps = {name: generator.taps[name].channels for name in ("feat", "enc0")}
    of_mixer = mixer_flops_per_slice(mixer, len(SOURCES), taps, side)
    return of_network / side**2, of_mixer / side**2


def _rival_flops(name: str, shape: Shape) -> int:
    padded = [-(-side // _STEP) * _STEP for side in shape]
    network = RIVALS[name]().to("meta")
    return count_flops(lambda: network(torch.empty(1, len(SOURCES), *padded)))


def _flops() -> list[Figure]:
    whole = np.ones((BRATS_SLICES, 1, BRATS_SIDE, BRATS_SIDE), np.float32)
    head = cropped(head_mask(_BRATS))
    size = "x".join(str(side) for side in (head.shape[2], head.shape[3], head.shape[0]))
    rivals = {name: _rival_flops(name, _BRATS) for name in RIVALS}
    half = rivals["unet_3d_half"]
    found = [
        Figure(
            f"tflop_{name}",
            flops / 1e12,
            "",
            f"TFLOP of one pass of {name} for BraTS, 240x240x160 (sides of 155 are padded)",
        )
        for name, flops in rivals.items()
    ]
    for name, (width, multipliers, over) in _WIDTHS.items():
        for part, mask in (("whole", whole), ("head", head)):
            generator = example_generator(width, multipliers, over)
            flops = volume_flops(generator, example_mixer(generator), mask)
            bound = "<= 1.0" if (name, part) == ("w16", "head") else ""
            where = "240x240x155" if part == "whole" else f"the atlas's brain in it ({size})"
            found.append(
                Figure(
                    f"flops_{name}_{part}_over_half",
                    flops / half,
                    bound,
                    f"FLOPs of our volume, {where}: {flops / 1e12:.3f} TFLOP with the mixer's "
                    f"halos, over one pass of unet_3d_half ({half / 1e12:.3f} TFLOP, 240x240x160)",
                )
            )
    return found


def _seconds(threads: int) -> list[Figure]:
    torch.set_num_threads(threads)
    # one thread's own seconds do not count what other processes take of the machine
    clock, unit = (process_time, "CPU seconds") if threads == 1 else (perf_counter, "seconds")
    prepared = {"whole": example_prepared(_WALL), "head": _head_of(_WALL)}
    runs: dict[str, Callable[[], object]] = {}
    for part, patient in prepared.items():
        for name in ("unet_3d", "unet_3d_half"):
            runs[f"{name}_{part}"] = _pass_of(RIVALS[name](), patient)
        for name, (width, multipliers, over) in _WIDTHS.items():
            generator = example_generator(width, multipliers, over)
            runs[f"{name}_{part}"] = _volume_of(patient, generator)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_REPETITIONS):
        for name, run in runs.items():
            began = clock()
            run()
            seconds[name].append(clock() - began)
    middle = {name: median(found) for name, found in seconds.items()}
    depth, _, height, width_of_head = prepared["head"].mask.shape
    size = f"{height}x{width_of_head}x{depth}"
    bounds = {("w32", "unet_3d"): ">= 2", ("w12", "unet_3d_half"): "> 1"}
    return [
        Figure(
            f"wall_{rival}_over_{name}_{part}_{threads}",
            middle[f"{rival}_{part}"] / middle[f"{name}_{part}"],
            bounds.get((name, rival), ""),
            f"{unit} of one pass of {rival} ({middle[f'{rival}_{part}']:.2f}) over our volume "
            f"({name}, {middle[f'{name}_{part}']:.2f}), {threads} thread(s), "
            + ("128x128x96" if part == "whole" else f"box of the atlas's brain in it ({size})"),
        )
        for part in prepared
        for name in _WIDTHS
        for rival in ("unet_3d", "unet_3d_half")
    ]


def _head_of(shape: Shape) -> Prepared:
    mask = cropped(head_mask(shape))
    depth, _, height, width = mask.shape
    return dataclasses.replace(example_prepared((depth, height, width)), mask=mask)


def _pass_of(network: nn.Module, patient: Prepared) -> Callable[[], object]:
    x = torch.from_numpy(patient.source).transpose(0, 1)[None]
    # the coarsest level of a BasicUNet has a sixteenth of the sides
    sides = [(0, -side % 16) for side in reversed(x.shape[2:])]
    x = torch.nn.functional.pad(x, [edge for pair in sides for edge in pair])

    def run() -> object:
        with torch.no_grad():
            return network(x)

    return run


def _volume_of(patient: Prepared, generator: FrozenGenerator) -> Callable[[], object]:
    mixer = example_mixer(generator)
    return lambda: mix(mixer, GeneratedStream(patient, generator, mixer))
