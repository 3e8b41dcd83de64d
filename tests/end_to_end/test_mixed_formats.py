"""Sites that store their volumes in different formats make the mixer that NIfTI would make."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import safetensors.numpy
import SimpleITK

from tests.end_to_end.tiny_run import PATIENTS, SOURCES, TARGET, TinyRun, patient_name, run_here
from tests.lift.formats.cases import itk_image
from tests.lift.formats.dicom_cases import series
from tests.lift.formats.dicom_cases import write as write_series

CHANNELS = (*SOURCES, TARGET)


def as_dicom(tiny: TinyRun, site: str, folder: Path) -> None:
    """A site's volumes as series folders in BraTS layout."""
    for index in range(PATIENTS[site]):
        for channel in CHANNELS:
            image = nibabel.load(tiny.file(site, index, channel))
            name = patient_name(index)
            files = series(np.asanyarray(image.dataobj), image.affine)
            write_series(files, folder / name / f"{name}-{channel}", seed=index)


def as_table(tiny: TinyRun, site: str, folder: Path, form: str) -> Path:
    """A third site with a table: another site's volumes, mirrored from front to back."""
    folder.mkdir(parents=True)
    rows: list[tuple[str, ...]] = [("patient", *CHANNELS)]
    for index in range(PATIENTS[site]):
        names = [f"person{index}-{channel}.{form}" for channel in CHANNELS]
        rows.append((f"person{index}", *names))
        for channel, name in zip(CHANNELS, names, strict=True):
            image = nibabel.load(tiny.file(site, index, channel))
            voxels = np.asanyarray(image.dataobj)[:, ::-1]
            if form == "nrrd":
                SimpleITK.WriteImage(itk_image(voxels, image.affine), str(folder / name), True)
            else:
                nibabel.Nifti1Image(voxels, image.affine).to_filename(folder / name)
    table = folder / "table.csv"
    table.write_text("".join(",".join(row) + "\n" for row in rows))
    return table


def mixer(tiny: TinyRun, name: str, sites: list[dict[str, object]], out: Path) -> Path:
    config = tiny.settings(name, sites=sites, plan__federation__rounds=2)
    done = run_here("lift-simulate", "--config", config, "--output", out)
    assert done.code == 0, done
    return out / "mixer.safetensors"


def test_the_mixer_does_not_depend_on_the_formats(own: TinyRun) -> None:
    tiny = own
    folder = tiny.folder / "formats"
    as_dicom(tiny, "west", folder / "dicom")
    tables = {form: as_table(tiny, "east", folder / form, form) for form in ("nrrd", "nii.gz")}

    def sites(west: Path, form: str) -> list[dict[str, object]]:
        table = {"layout": "table", "root": str(folder / form), "table": str(tables[form])}
        return [
            {"name": "east", "data": {"layout": "brats", "root": str(tiny.site("east"))}},
            {"name": "north", "data": table},
            {"name": "west", "data": {"layout": "brats", "root": str(west)}},
        ]

    plain = mixer(tiny, "plain", sites(tiny.site("west"), "nii.gz"), folder / "plain-run")
    mixed = mixer(tiny, "mixed", sites(folder / "dicom", "nrrd"), folder / "mixed-run")
    one, two = (safetensors.numpy.load(path.read_bytes()) for path in (plain, mixed))
    assert set(one) == set(two)
    for name, tensor in one.items():
        np.testing.assert_allclose(two[name], tensor, rtol=1e-5, atol=1e-7)
    # all three took part, and what they do changes the mixer
    records = (folder / "mixed-run" / "rounds.jsonl").read_text().splitlines()
    assert set(json.loads(records[-1])["counted"]) == {"east", "north", "west"}
    alone = mixer(tiny, "alone", sites(tiny.site("west"), "nii.gz")[:1], folder / "alone-run")
    other = safetensors.numpy.load(alone.read_bytes())
    assert any(not np.allclose(other[name], tensor, rtol=1e-3) for name, tensor in one.items())
    worst = max(float(np.abs(two[name] - tensor).max()) for name, tensor in one.items())
    assert worst < 1e-6
