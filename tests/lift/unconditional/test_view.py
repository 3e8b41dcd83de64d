"""The field of view of new volumes: two of three give the third; nothing shown is moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lift.config.decoder import PcaDecoderConfig
from lift.config.plan import UnconditionalPlan
from lift.errors import ConfigError
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.sampling import write_generated
from lift.tasks.unconditional.view import View, Wanted, parse_field_of_view, view_of
from lift.volumes.slices import to_slices
from lift.volumes.volume import read_volume
from tests.lift.unconditional.tiny_decoder import tiny_plan

PLAN = UnconditionalPlan(slices=36, slice_spacing_mm=1.5)
DECODER = PcaDecoderConfig(name="pca", axes=4, image=(24, 16), pixel_mm=2.0)


@pytest.mark.parametrize(
    ("wanted", "slices", "spacing"),
    [
        (Wanted(), 36, 1.5),
        # a number of slices alone keeps the plan's length, a distance alone its number
        (Wanted(slices=54), 54, 1.0),
        (Wanted(slice_spacing_mm=3.0), 36, 3.0),
        # two give the third
        (Wanted(slices=40, slice_spacing_mm=2.0), 40, 2.0),
        (Wanted(slices=40, field_of_view_mm=(60,)), 40, 1.5),
        (Wanted(slice_spacing_mm=2.0, field_of_view_mm=(60,)), 30, 2.0),
        (Wanted(slices=30, slice_spacing_mm=2.0, field_of_view_mm=(60,)), 30, 2.0),
        # a length alone has the plan's distance; as many slices as come nearest
        (Wanted(field_of_view_mm=(60,)), 40, 1.5),
        (Wanted(field_of_view_mm=(61,)), 41, 1.5),
    ],
)
def test_two_of_slices_distance_and_length_give_the_third(
    wanted: Wanted, slices: int, spacing: float
) -> None:
    view = view_of(wanted, PLAN, DECODER)
    assert view.slices == slices
    assert view.slice_spacing_mm == pytest.approx(spacing)
    assert view.field_of_view_mm == pytest.approx((slices * spacing, 48, 32))


def test_three_sides_give_rows_and_columns_too() -> None:
    view = view_of(Wanted(field_of_view_mm=(54, 40, 36)), PLAN, DECODER)
    assert (view.slices, view.rows, view.columns) == (36, 20, 18)
    assert view.field_of_view_mm == (54, 40, 36)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(30, 2.0, (61,)), "30 slices of 2 mm are 60 mm; the field of view is 61 mm"),
        (Wanted(None, 2.0, (2,)), "1 slices; possible: 2 to 2048"),
        (Wanted(10, None, (1000,)), "100 mm between slices"),
        (Wanted(None, None, (54, 0.5, 32)), "0 rows"),
        (Wanted(None, None, (54, 48, 1e6)), "500000 columns"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_numbers(wanted: Wanted, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        view_of(wanted, PLAN, DECODER)
    assert words in caught.value.seen
    assert "Nothing was written" in caught.value.remedy


def test_a_field_of_view_is_one_length_or_three() -> None:
    assert parse_field_of_view("120") == (120.0,)
    assert parse_field_of_view("120x192X160.5") == (120.0, 192.0, 160.5)
    for text in ("", "a", "120x192", "1x2x3x4", "-5", "0", "nan", "infx1x1", "120 mm"):
        with pytest.raises(ConfigError, match="cannot read the field of view"):
            parse_field_of_view(text)


def test_slices_are_cut_and_continued_about_their_middle() -> None:
    whole = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4)
    shown = View(1, 1.0, 1, 6, 2.0).shown(whole)
    assert shown.tolist() == [[[0, 5, 6, 7, 8, 0]]]
    # an odd number more: the one too many lies before
    assert View(1, 1.0, 4, 4, 2.0).shown(whole)[0, :, 0].tolist() == [0, 1, 5, 9]
    assert View(1, 1.0, 4, 4, 2.0).moved_mm((3, 4)) == (-1.0, 0.0)
    assert View(1, 1.0, 3, 4, 2.0).moved_mm((3, 4)) == (0.0, 0.0)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(("rows", "columns"), [(21, 18), (27, 13), (24, 16)])
def test_every_pixel_stays_at_its_place_in_millimetres(
    decoder: FrozenDecoder, tmp_path: Path, plane: str, rows: int, columns: int
) -> None:
    card = decoder.card.model_copy(update={"plane": plane})
    turned = FrozenDecoder(decoder.network, card, decoder.public)
    pixel = card.network.pixel_mm
    whole = np.random.default_rng(1).random((5, 24, 16), dtype=np.float32) + 0.1
    plan = tiny_plan(decoder)
    write_generated(tmp_path / "whole.nii", whole, turned, plan, 3.0)
    view = View(5, 3.0, rows, columns, pixel)
    write_generated(tmp_path / "shown.nii", view.shown(whole), turned, plan, 3.0)
    a, b = (read_volume(tmp_path / f"{name}.nii") for name in ("whole", "shown"))
    assert to_slices(b.voxels, plane).shape == (5, rows, columns)
    places = np.indices(b.voxels.shape).reshape(3, -1)
    moved = np.linalg.inv(a.affine) @ b.affine
    there = moved[:3, :3] @ places + moved[:3, 3:]
    np.testing.assert_allclose(there, np.round(there), atol=1e-4)
    there = np.round(there).astype(int)
    inside = ((there >= 0) & (there < np.array([a.voxels.shape]).T)).all(axis=0)
    shown = b.voxels.reshape(-1)
    assert np.array_equal(shown[inside], a.voxels[tuple(there[:, inside])])
    assert not shown[~inside].any()
    assert inside.sum() == 5 * min(rows, 24) * min(columns, 16)
