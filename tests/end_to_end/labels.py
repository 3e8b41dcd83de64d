"""Labels for the tiny run's patients."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from tests.end_to_end.tiny_run import PATIENTS, TARGET, TinyRun


def write_labels(tiny: TinyRun, folder: str, *, brightest: float) -> str:
    """Label files of some percent of the target's voxels; returns their pattern."""
    pattern = tiny.folder / folder / "{site}" / "{patient}.nii.gz"
    for site, count in PATIENTS.items():
        for index in range(count):
            volume = nibabel.load(tiny.file(site, index, TARGET))
            voxels = np.asarray(volume.dataobj)
            bright = voxels > np.percentile(voxels[voxels > 0], 100 - brightest)
            name = tiny.patient(site, index).name
            path = Path(str(pattern).replace("{site}", site).replace("{patient}", name))
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(bright.astype(np.uint8), volume.affine), path)
    return str(pattern)
