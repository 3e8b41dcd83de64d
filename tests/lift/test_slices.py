from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift.volumes.slices import from_slices, slice_spacing, to_slices

PLANES = ("axial", "coronal", "sagittal")


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    plane=st.sampled_from(PLANES),
)
def test_slicing_and_stacking_are_exact_inverses(shape: tuple[int, int, int], plane: str) -> None:
    voxels = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    np.testing.assert_array_equal(from_slices(to_slices(voxels, plane), plane), voxels)
    np.testing.assert_array_equal(to_slices(from_slices(voxels, plane), plane), voxels)


@pytest.mark.parametrize(
    ("plane", "depth", "height", "width"),
    [("axial", "z", "y", "x"), ("coronal", "y", "z", "x"), ("sagittal", "x", "z", "y")],
)
def test_each_axis_goes_where_the_plane_says(
    plane: str, depth: str, height: str, width: str
) -> None:
    axes = dict(zip("xyz", np.indices((2, 3, 4)), strict=True))
    for axis, name in enumerate((depth, height, width)):
        stack = to_slices(axes[name], plane)
        # the coordinate grows by one along its own axis and stays along the others
        steps = [np.unique(np.diff(stack, axis=i)).tolist() for i in range(3)]
        assert steps == [[1] if i == axis else [0] for i in range(3)]
    spacing = dict(zip("xyz", (0.5, 0.75, 3.0), strict=True))
    assert slice_spacing((0.5, 0.75, 3.0), plane) == tuple(
        spacing[name] for name in (depth, height, width)
    )
