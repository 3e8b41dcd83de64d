"""Label files of phantoms, and a patient's label on the slices that the plan works on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lift.cohort.phantom.write import write_truth
from lift.cohort.preprocessing import Prepared
from lift.config.phantom import PhantomCohortConfig
from lift.errors import ConfigError
from lift.volumes.slices import to_slices
from lift.volumes.volume import check_same_grid, read_volume


def label_slices(prepared: Prepared, path: Path) -> NDArray[np.bool_]:
    """Where a label file is above 0, (z, h, w), cropped and padded as the patient's slices are.

    Args:
        prepared: the patient.
        path: a file on the grid of the patient's volumes.

    Raises:
        ConfigError: the plan works on another grid than the files'.
        VolumeError: the file cannot be used.
        AffineError: volume and label are not on one grid.
    """
    if prepared.grid is not None:
        raise ConfigError(
            "labels are read on the files' own grid alone",
            where="preprocessing.grid",
            seen="the plan works on another grid",
            remedy="Leave preprocessing.grid out; nothing was started.",
        )
    volume = read_volume(path, root=path.parent, labels=True)
    check_same_grid(prepared.reference, volume, ("the volume", path.name))
    part = to_slices(volume.voxels > 0, prepared.plane)[prepared.crop.box]
    whole = np.zeros((len(part), *prepared.source.shape[2:]), dtype=np.bool_)
    whole[:, : part.shape[1], : part.shape[2]] = part
    return whole


def write_tissue_labels(phantom: PhantomCohortConfig, folder: Path, tissue: str) -> Path:
    """Write where a cohort's phantoms have a tissue, unless it is there, and return its folder.

    Args:
        phantom: the cohort.
        folder: for the labels of one site.
        tissue: a tissue of the phantoms' own truth.
    """
    place = folder / phantom.digest()[:12] / tissue
    write_truth(phantom, place, tissue)
    return place
