"""Whether a NIfTI header says one thing about where its voxels lie.

Its qform and its sform both place the voxels, and pixdim gives their size once more. Readers differ
in which they take, so where they contradict each other two programs show two places.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lift.inspection.finding import Finding, Verdict, finding
from lift.volumes.volume import FileGrid

MOST_APART_MM: Final = 0.1
"""Between the two places of a voxel: rounding of a quaternion to float32 makes 0.01."""

FARTHEST_APART_MM: Final = 10.0
"""Beyond it the two are not one place with another rounding or a small registration."""

MOST_SIZE: Final = 0.01
"""Share by which a size in pixdim may differ from that of the sform."""

LARGEST_SIZE: Final = 0.1
"""Beyond it one of the two is another volume's."""

_CHECK: Final = "header's place"
_REMEDY: Final = (
    "Find out from the original series which one is true, and write it into both; the sform is "
    "taken here."
)
_NEEDED: Final = "one place and one size of the voxels, by qform, sform and pixdim"


def check_header_place(grid: FileGrid) -> Finding:
    """Whether qform, sform and pixdim of the file agree; a veto where they are far apart.

    Where their codes name two spaces (scanner and a template, say), two places are a warning; a
    mirror image is a veto in any case.

    Args:
        grid: of the file; other formats than NIfTI have one place.
    """
    header = grid.header
    codes = int(header["qform_code"]), int(header["sform_code"])
    notes: list[str] = []
    verdict: Verdict = "use"
    if min(codes) > 0:
        try:
            qform = np.asarray(header.get_qform(), dtype=np.float64)
        except (HeaderDataError, ValueError):
            return finding(
                _CHECK, "warn", "its qform holds no rotation; its sform is taken", _NEEDED, _REMEDY
            )
        note, apart = _two_places(qform, grid.affine, grid.shape)
        mirrored = np.linalg.det(qform[:3, :3]) * np.linalg.det(grid.affine[:3, :3]) < 0
        if mirrored or apart > MOST_APART_MM:
            far = apart > FARTHEST_APART_MM and codes[0] == codes[1]
            verdict = "veto" if mirrored or far else "warn"
            spaces = "" if codes[0] == codes[1] else f"; their codes, {codes[0]} and {codes[1]}, "
            spaces += "" if codes[0] == codes[1] else "name two spaces"
            notes.append(("mirrored: " if mirrored else "") + note + spaces)
    said = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    sizes = np.linalg.norm(grid.affine[:3, :3], axis=0)
    # what is no number is no size
    off = float(np.nan_to_num(np.abs(said / sizes - 1), nan=np.inf).max())
    if off > MOST_SIZE:
        # 1 1 1 is what programs write that do not care
        if off > LARGEST_SIZE and not np.array_equal(said, np.ones(3)):
            verdict = "veto"
        verdict = "warn" if verdict == "use" else verdict
        notes.append(
            "its voxels measure {:.3g} x {:.3g} x {:.3g} mm by pixdim".format(*said)
            + " and {:.3g} x {:.3g} x {:.3g} mm by its sform".format(*sizes)
        )
    return finding(_CHECK, verdict, "; ".join(notes) or "one place", _NEEDED, _REMEDY)


def _two_places(
    qform: NDArray[np.float64], sform: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[str, float]:
    """Both places of the corner that lies farthest apart, and by how many mm."""
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    corners = np.vstack([ends, np.ones(ends.shape[1])])
    one, other = (qform @ corners)[:3], (sform @ corners)[:3]
    apart = np.linalg.norm(one - other, axis=0)
    worst = int(apart.argmax())
    shown = ["({:.1f}, {:.1f}, {:.1f}) mm".format(*place[:, worst]) for place in (one, other)]
    voxel = "({}, {}, {})".format(*ends[:, worst])
    return (
        f"voxel {voxel} lies at {shown[0]} by its qform and at {shown[1]} by its sform, "
        f"{apart[worst]:.1f} mm apart",
        float(apart[worst]),
    )
