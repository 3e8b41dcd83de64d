"""`lift translate` with DICOM: what one command writes, and what it refuses before it computes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from lift.files import file_digest
from lift.volumes.volume import check_same_grid, read_volume
from tests.end_to_end.tiny_run import SOURCES, Outcome, TinyRun, check_refusal, run_here
from tests.lift.formats.dicom_cases import series, write

PLACE = "1.2.826.0.1.3680043.2.7.9"


@pytest.fixture(scope="module")
def mixer(tiny: TinyRun) -> Path:
    done = tiny.simulate("of-series", synthesis_patients=0)
    assert done.code == 0, done
    return tiny.folder / "of-series"


@pytest.fixture(scope="module")
def given(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One patient's sources as series."""
    folder, found = tmp_path_factory.mktemp("given"), {}
    for name in SOURCES:
        image = nibabel.load(tiny.file("east", 0, name))

        def change(index: int, dataset: Dataset, name: str = name) -> None:
            dataset.FrameOfReferenceUID = PLACE
            dataset.SOPInstanceUID = f"{PLACE}.{SOURCES.index(name)}.{index}"

        data = np.asanyarray(image.dataobj)
        found[name] = write(series(data, image.affine, change=change), folder / name)
    return found


def translate(tiny: TinyRun, mixer: Path, inputs: dict[str, Path], *words: str | Path) -> Outcome:
    named = [f"{name}={path}" for name, path in inputs.items()]
    where = ("--mixer", mixer, "--generator", tiny.bundle)
    return run_here("lift", "translate", *named, *where, *words)


def test_one_command_writes_the_file_its_sidecar_and_the_series(
    tiny: TinyRun, mixer: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    file, folder = tmp_path / "made.nii.gz", tmp_path / "made"
    first = SOURCES[0]
    done = translate(tiny, mixer, given, "-o", folder, "--dicom", given[first], "-o", file)
    assert done.code == 0, done
    assert done.stdout == f"{file}\n{folder}\n"
    made, written = read_volume(folder), read_volume(file)
    check_same_grid(written, made, ("file", "series"))
    within = 0.5001 * float(written.voxels.max()) / 65535
    np.testing.assert_allclose(made.voxels, written.voxels, rtol=0, atol=within)
    digest = file_digest(mixer / "mixer.safetensors")
    assert json.loads((tmp_path / "made.json").read_text())["MixerDigest"] == digest
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        assert digest in one.DerivationDescription
        assert one.SyntheticData == "YES"
        assert len(one.SourceImageSequence) == len(SOURCES)
    # the file may be written again, as ever; a series is never replaced
    check_refusal(
        translate(tiny, mixer, given, "-o", folder, "--dicom", given[first], "-o", file),
        3,
        names=["made", "not empty"],
    )
    assert translate(tiny, mixer, given, "-o", file).code == 0


def test_a_source_may_be_named_and_a_series_may_be_all_that_is_written(
    tiny: TinyRun, mixer: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    done = translate(tiny, mixer, given, "--dicom", SOURCES[0], "-o", tmp_path / "made")
    assert done.code == 0, done
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("outputs", "has_series"),
    [
        (["a.nii.gz", "b.nii.gz"], False),
        (["a", "b.nii"], False),
        (["a.nii.gz"], True),
        (["a", "b"], True),
        (["a", "b.nii", "c.nii"], True),
    ],
)
def test_outputs_that_do_not_fit_are_refused(
    tiny: TinyRun,
    mixer: Path,
    given: dict[str, Path],
    tmp_path: Path,
    outputs: list[str],
    has_series: bool,
) -> None:
    words = [word for name in outputs for word in ("-o", tmp_path / name)]
    words += ["--dicom", given[SOURCES[0]]] if has_series else []
    check_refusal(translate(tiny, mixer, given, *words), 2, names=[outputs[0]])
    assert not list(tmp_path.iterdir())


def test_a_series_that_the_volume_does_not_lie_on_is_refused(
    tiny: TinyRun, mixer: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    other = write(
        series(change=lambda _, d: setattr(d, "FrameOfReferenceUID", PLACE)), tmp_path / "x"
    )
    done = translate(tiny, mixer, given, "--dicom", other, "-o", tmp_path / "made")
    check_refusal(done, 3, names=[SOURCES[0], "grid"])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
