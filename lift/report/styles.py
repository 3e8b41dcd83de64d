"""New volumes of stated grey scales: the same volumes in every site's style."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from nibabel.affines import voxel_sizes

from lift.report.figures import Picture, titled
from lift.report.read import STYLE_FOLDER, SYNTHESIS_FOLDER, Floats, Run, read_voxels


def styles_picture(run: Run, synthesis: Path) -> Picture | None:
    """Axial middle slices, a row for each style, all on one grey scale; None without styles.

    Args:
        run: whose title the picture has.
        synthesis: folder of the volumes that the run wrote.

    Raises:
        VolumeError: a volume is damaged.
    """
    rows = {
        folder.name.removeprefix(STYLE_FOLDER): [
            _middle(path) for path in sorted(folder.glob("*.nii.gz"))
        ]
        for folder in sorted(synthesis.glob(f"{STYLE_FOLDER}*"))
    }
    columns = max(map(len, rows.values()), default=0)
    if columns == 0:
        return None
    upper = max(float(plane.max()) for planes in rows.values() for plane, _ in planes)
    figure = Figure(figsize=(1.45 * columns + 0.9, 1.6 * len(rows) + 0.5))
    for row, (name, planes) in enumerate(rows.items()):
        for column, (plane, aspect) in enumerate(planes):
            place = figure.add_subplot(len(rows), columns, row * columns + column + 1)
            place.imshow(
                plane, cmap="gray", origin="lower", aspect=aspect, vmin=0, vmax=max(upper, 1e-6)
            )
            place.set_xticks([])
            place.set_yticks([])
            place.grid(visible=False)
            if column == 0:
                place.set_ylabel(name)
    figure.suptitle(titled(run, "New volumes in the sites' grey scales"), x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0, 1, 0.95), pad=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    names = ", ".join(rows)
    return Picture(
        content.getvalue(),
        "png",
        f"Axial middle slices of {columns} new volumes in the styles {names}",
        "The same new volumes in each site's mean grey scale, and in the mean of all; one scale of "
        "brightness for the whole picture.",
    )


def _middle(path: Path) -> tuple[Floats, float]:
    """An axial slice for a picture, and its pixels' aspect."""
    voxels, affine = read_voxels(path, f"{SYNTHESIS_FOLDER}/{path.parent.name}/{path.name}")
    x, y, _ = (float(side) for side in voxel_sizes(affine))
    return np.asarray(voxels[:, :, voxels.shape[2] // 2].T), y / x
