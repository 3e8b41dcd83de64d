"""New volumes as files: grid, orientation, one seed one volume, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from lift.config.plan import Plan
from lift.errors import ConfigError
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import plan_mapper
from lift.tasks.unconditional.sampling import (
    generate_volume,
    latent_mapper,
    outside,
    slice_places,
    write_generated,
    write_series,
)
from lift.tasks.unconditional.view import Wanted
from lift.volumes.slices import to_slices
from lift.volumes.volume import read_volume
from tests.lift.unconditional.tiny_decoder import tiny_plan


@pytest.fixture(scope="module")
def plan(decoder: FrozenDecoder) -> Plan:
    return tiny_plan(decoder)


def series(
    folder: Path, decoder: FrozenDecoder, plan: Plan, number: int, **changes: object
) -> list[Path]:
    seed = changes.pop("seed", 4)
    wanted = Wanted(**changes)  # type: ignore[arg-type]
    values = plan_mapper(plan, decoder).values()
    mapper = latent_mapper(plan, decoder, values)
    return list(
        write_series(folder, mapper, values, decoder, plan, number=number, seed=seed, wanted=wanted)  # type: ignore[arg-type]
    )


def test_a_volume_has_spacing_orientation_and_its_centre_at_the_origin(
    decoder: FrozenDecoder, plan: Plan, tmp_path: Path
) -> None:
    (path,) = series(tmp_path, decoder, plan, 1)
    image = nib.load(path)
    assert image.shape == (16, 24, 12)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), (4, 4, 3))
    middle = image.affine @ [7.5, 11.5, 5.5, 1]
    np.testing.assert_allclose(middle[:3], 0, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    voxels = np.asarray(image.dataobj)
    made = generate_volume(
        plan_mapper(plan, decoder), decoder, seed=4, index=0, slices=12, slice_spacing_mm=3.0
    )
    np.testing.assert_allclose(to_slices(voxels, "axial"), 1000 * made, rtol=1e-6)
    assert float(voxels.std()) > 1
    assert read_volume(path).voxels.shape == (16, 24, 12)


@pytest.mark.parametrize(
    ("plane", "shape", "spacing"),
    [
        ("axial", (16, 24, 12), (4, 4, 3)),
        ("coronal", (16, 12, 24), (4, 3, 4)),
        ("sagittal", (12, 16, 24), (3, 4, 4)),
    ],
)
def test_every_plane_lands_where_reading_takes_it_from(
    decoder: FrozenDecoder,
    plan: Plan,
    tmp_path: Path,
    plane: str,
    shape: tuple[int, ...],
    spacing: tuple[int, ...],
) -> None:
    card = decoder.card.model_copy(update={"plane": plane})
    turned = FrozenDecoder(decoder.network, card, decoder.public)
    slices = np.random.default_rng(0).random((12, 24, 16), dtype=np.float32)
    write_generated(tmp_path / "v.nii", slices, turned, plan, 3.0)
    volume = read_volume(tmp_path / "v.nii")
    assert volume.voxels.shape == shape
    np.testing.assert_allclose(volume.spacing_mm, spacing)
    np.testing.assert_allclose(to_slices(volume.voxels, plane), 1000 * slices, rtol=1e-6)


def test_one_seed_and_index_are_one_volume_however_many_are_made(
    decoder: FrozenDecoder, plan: Plan, tmp_path: Path
) -> None:
    few = series(tmp_path / "few", decoder, plan, 2)
    many = series(tmp_path / "many", decoder, plan, 4)
    assert [path.name for path in many] == [f"volume-{i:04d}.nii.gz" for i in range(4)]
    for a, b in zip(few, many, strict=False):
        assert a.read_bytes() == b.read_bytes()
    assert len({path.read_bytes() for path in many}) == 4
    other = series(tmp_path / "other", decoder, plan, 1, seed=5)
    assert other[0].read_bytes() != few[0].read_bytes()


def test_thinner_slices_show_the_same_body(
    decoder: FrozenDecoder, plan: Plan, tmp_path: Path
) -> None:
    (coarse,) = series(tmp_path / "coarse", decoder, plan, 1)
    (fine,) = series(tmp_path / "fine", decoder, plan, 1, slices=23)
    a, b = (np.asarray(nib.load(path).dataobj) for path in (coarse, fine))
    assert nib.load(fine).header.get_zooms()[2] == pytest.approx(36 / 23)
    # slice k of 12 and slice 2 k of 23 lie at the same place along the body
    np.testing.assert_allclose(b[:, :, ::2], a, atol=0.1)
    (given,) = series(tmp_path / "given", decoder, plan, 1, slices=40, slice_spacing_mm=1.25)
    assert nib.load(given).shape[2] == 40
    assert nib.load(given).header.get_zooms()[2] == pytest.approx(1.25)


def test_a_series_goes_on_and_another_one_needs_its_own_folder(
    decoder: FrozenDecoder, plan: Plan, tmp_path: Path
) -> None:
    first = series(tmp_path, decoder, plan, 2)
    written = [path.stat().st_mtime_ns for path in first]
    again = series(tmp_path, decoder, plan, 3)
    assert [path.stat().st_mtime_ns for path in again[:2]] == written
    with pytest.raises(ConfigError, match="other volumes"):
        series(tmp_path, decoder, plan, 1, seed=9)
    with pytest.raises(ConfigError, match="does not fit its plan"):
        latent_mapper(plan, decoder, {"w": torch.zeros(2)})


def test_a_body_lies_in_the_middle_of_its_volume_and_goes_on_with_its_border() -> None:
    places = slice_places(9, 2.0, 8.0)
    assert torch.equal(places, torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]))
    # a body longer than the volume is cut
    assert torch.allclose(slice_places(3, 2.0, 8.0), torch.tensor([0.25, 0.5, 0.75]))
    # thinner slices show the same places
    assert torch.allclose(slice_places(17, 1.0, 8.0)[::2], places)


def test_latents_of_a_mapper_that_left_the_prior_are_noticed(
    decoder: FrozenDecoder, plan: Plan
) -> None:
    mapper = plan_mapper(plan, decoder)
    assert outside(mapper, decoder, seed=1, number=8, slices=12) < 1.5
    with torch.no_grad():
        for values in mapper.parameters():
            values.mul_(3.0)
    assert outside(mapper, decoder, seed=1, number=8, slices=12) > 1.5
