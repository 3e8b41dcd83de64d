"""New volumes: from a seed to slices, streamed; from slices to a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.cohort.preprocessing import to_output_units
from lift.config.plan import Plan
from lift.errors import ConfigError
from lift.files import write_json
from lift.mixer.gaussian import GaussianTrajectory
from lift.mixer.trajectory import slice_positions
from lift.randomness import derive_seed
from lift.strict_json import parse_json
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import Trajectory, load_trajectory, plan_mapper, settings_of
from lift.tasks.unconditional.moments import body_length_mm
from lift.tasks.unconditional.style import stated_style, styles_of, under_style
from lift.tasks.unconditional.view import View, Wanted, view_of
from lift.triplanar.digests import digest_of
from lift.volumes.grids import ras_grid
from lift.volumes.slices import from_slices
from lift.volumes.volume import write_volume

Floats = NDArray[np.float32]
SERIES_FILE: Final = "series.json"
_CHUNK: Final = 32
MOST_OUTSIDE: Final = 1.5
"""RMS of latents, in standard deviations, above which they are said to leave what was seen."""
# plane -> which of depth, height and width runs along x, y and z
_DEPTH_HEIGHT_WIDTH: Final = {"axial": (2, 1, 0), "coronal": (2, 0, 1), "sagittal": (0, 2, 1)}


def latent_mapper(plan: Plan, decoder: FrozenDecoder, values: Mapping[str, Tensor]) -> Trajectory:
    """The trained mapper for new volumes: on the CPU, wherever the decoder is.

    Latents are few, and one seed and index are then one volume on every device.

    Args:
        plan: of the mapper.
        decoder: of the plan.
        values: what was trained, and the Gaussian where the plan has one, with sites' styles.

    Raises:
        ConfigError: the values are not those of the plan's mapper.
    """
    mapper = plan_mapper(plan, decoder).cpu()
    try:
        if styles_of(values, decoder) and not settings_of(plan).site_styles:
            raise ValueError("it holds sites' styles, and its plan asks for none")
        load_trajectory(mapper, values)
    except ValueError as error:
        raise ConfigError(
            "the mixer does not fit its plan",
            seen=str(error),
            remedy="Give the mixer.safetensors that the run wrote.",
        ) from None
    return mapper


def volume_latents(
    mapper: Trajectory,
    decoder: FrozenDecoder,
    *,
    seed: int,
    index: int,
    slices: int,
    slice_spacing_mm: float,
    style: Tensor | None = None,
) -> Tensor:
    """Latents of all slices of volume `index` of a seed, (slices, L), on the CPU.

    One seed and index are one volume, however many are made. A Gaussian draws the length of the
    body too, whose middle is the volume's: what the body does not fill goes on with its last
    slice, as a real volume's does. A free mapper stretches every body over all slices.

    With a style, the Gaussian is drawn from under its condition, and the style latents of all
    slices are exactly these, whatever a residual makes of them.

    Args:
        mapper: from :func:`latent_mapper`.
        decoder: of the plan.
        seed: of the series.
        index: of the volume, from 0.
        slices: of the volume.
        slice_spacing_mm: of the volume.
        style: (volume_latents,), from :func:`lift.tasks.unconditional.style.stated_style`, for a
        mapper
            with a Gaussian; None: the volume's own is drawn.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "volume", index))
    with torch.no_grad():
        if isinstance(mapper, GaussianTrajectory):
            noise = mapper.draw(1, generator)
            if style is not None:
                noise = under_style(mapper, noise, style, decoder)
            length_mm = float(body_length_mm(mapper.lengths(noise), decoder)[0])
            position = slice_places(slices, slice_spacing_mm, length_mm)
            latents: Tensor = mapper(noise, position)[0]
            if style is not None:
                latents[:, len(latents[0]) - len(style) :] = style
        else:
            latents = mapper(mapper.draw(1, generator), slice_positions(slices))[0]
    return latents


def slice_places(slices: int, slice_spacing_mm: float, length_mm: float) -> Tensor:
    """Positions along a body of this length, the middles of body and volume together, (slices,)."""
    from_middle_mm = (torch.arange(slices) - (slices - 1) / 2) * slice_spacing_mm
    return (0.5 + from_middle_mm / length_mm).clamp(0, 1)


def outside(
    mapper: Trajectory,
    decoder: FrozenDecoder,
    *,
    seed: int,
    number: int,
    slices: int,
    style: Tensor | None = None,
) -> float:
    """How far latents of the first volumes of a series leave what was seen: RMS, 1 is inside.

    In standard deviations of the Gaussian at each position; of a free mapper, of the decoder's
    prior. Real latents have about 1 in both.

    Args:
        mapper: from :func:`latent_mapper`.
        decoder: of the plan.
        seed: of the series.
        number: of volumes looked at.
        slices: of each.
        style: of the series, as in :func:`volume_latents`.
    """
    position = slice_positions(slices)
    squares = []
    with torch.no_grad():
        for index in range(number):
            generator = torch.Generator().manual_seed(derive_seed(seed, "volume", index))
            if isinstance(mapper, GaussianTrajectory):
                noise = mapper.draw(1, generator)
                if style is not None:
                    noise = under_style(mapper, noise, style, decoder)
                squares.append(mapper.outside(mapper(noise, position), position) ** 2)
            else:
                latents = mapper(mapper.draw(1, generator), position)
                squares.append(float(latents.square().mean()))
    return math.sqrt(sum(squares) / len(squares))


def decoded(decoder: FrozenDecoder, latents: Tensor) -> Iterator[Floats]:
    """The slices of one trajectory in blocks, (<= 32, h, w) in [0, 1]: memory for one block."""
    with torch.no_grad():
        for block in torch.split(latents, _CHUNK):
            # one size of block: kernels, and with them bits, may depend on it
            padded = torch.cat([block, block[-1:].expand(_CHUNK - len(block), -1)])
            slices = decoder(padded[None].to(decoder.device))[0, 0, : len(block)]
            yield slices.cpu().numpy()


def generate_volume(
    mapper: Trajectory,
    decoder: FrozenDecoder,
    *,
    seed: int,
    index: int,
    slices: int,
    slice_spacing_mm: float,
    style: Tensor | None = None,
) -> Floats:
    """One new volume, (slices, h, w) in [0, 1]; see :func:`volume_latents`."""
    latents = volume_latents(
        mapper,
        decoder,
        seed=seed,
        index=index,
        slices=slices,
        slice_spacing_mm=slice_spacing_mm,
        style=style,
    )
    return np.concatenate(list(decoded(decoder, latents)))


def write_series(
    folder: Path,
    mapper: Trajectory,
    values: Mapping[str, Tensor],
    decoder: FrozenDecoder,
    plan: Plan,
    *,
    number: int,
    seed: int,
    wanted: Wanted,
    style: str | None = None,
) -> Iterator[Path]:
    """Write `volume-0000.nii.gz` and so on, one by one. Existing files are kept.

    A file beside them says what made them; another seed, mixer, field of view or style needs
    another folder.

    Args:
        folder: for the volumes.
        mapper: from :func:`latent_mapper`.
        values: what it was made of: they name the series, and hold sites' styles.
        decoder: of the plan.
        plan: of the mapper.
        number: of volumes.
        seed: volume i of a seed is the same whatever the number.
        wanted: slices, their distance and the field of view; what is None follows.
        style: of a site, or `mean`; None: each volume's own is drawn.

    Raises:
        ConfigError: the field of view or the style cannot be had, or the folder holds another
            series.
    """
    view = view_of(wanted, settings_of(plan), decoder.card.network)
    stated = None if style is None else stated_style(style, mapper, values, decoder)
    _claim(
        folder / SERIES_FILE,
        {
            "mixer": digest_of({"plan": plan.digest()}, values),
            "seed": seed,
            "slices": view.slices,
            "slice_spacing_mm": view.slice_spacing_mm,
            "field_of_view_mm": list(view.field_of_view_mm),
            "style": style,
        },
    )
    for index in range(number):
        path = folder / f"volume-{index:04d}.nii.gz"
        if not path.is_file():
            made = generate_volume(
                mapper,
                decoder,
                seed=seed,
                index=index,
                slices=view.slices,
                slice_spacing_mm=view.slice_spacing_mm,
                style=stated,
            )
            write_generated(path, view.shown(made), decoder, plan, view.slice_spacing_mm)
        yield path


def _claim(path: Path, series: dict[str, object]) -> None:
    if path.is_file():
        try:
            found = parse_json(path.read_bytes())
        except (OSError, ValueError):
            found = None
        if found != series:
            raise ConfigError(
                "the folder holds other volumes",
                where=str(path.parent),
                seen=f"made with {found}; now {series}",
                remedy="Nothing was changed. Choose another output folder.",
            )
    write_json(path, series)


def write_generated(
    path: Path, slices: Floats, decoder: FrozenDecoder, plan: Plan, slice_spacing_mm: float
) -> None:
    """Write a stack of slices as a NIfTI volume in RAS+.

    The centre of the decoder's image is at the origin, and that of the stack, to which rows and
    columns may have been added on both sides or of which they may have been cut (`View.shown`).

    Args:
        path: ends in .nii.gz or .nii.
        slices: (d, h, w) in [0, 1].
        decoder: gives plane and pixels.
        plan: gives the units of the channel.
        slice_spacing_mm: distance between slices.
    """
    card = decoder.card
    voxels, dtype = to_output_units(
        np.ascontiguousarray(from_slices(slices, card.plane)), plan, card.target
    )
    pixel = card.network.pixel_mm
    depth, rows, columns = slices.shape
    down, right = View(depth, slice_spacing_mm, rows, columns, pixel).moved_mm(card.network.image)
    in_order, moved = (slice_spacing_mm, pixel, pixel), (0.0, down, right)
    x, y, z = (in_order[axis] for axis in _DEPTH_HEIGHT_WIDTH[card.plane])
    i, j, k = (moved[axis] for axis in _DEPTH_HEIGHT_WIDTH[card.plane])
    grid = ras_grid(voxels.shape, (x, y, z), centre_mm=(i, j, k))
    write_volume(path, voxels, grid, dtype=dtype)
