"""Files in, one file out: on the input's grid, in its units, by the mixer or without it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset

import lift
from lift.cohort.patients import Patient
from lift.cohort.preprocessing import Prepared, prepare, restore
from lift.config.plan import Plan
from lift.device import fix_threads
from lift.errors import AffineError, ConfigError, GeneratorError, LiftError, VolumeError
from lift.files import file_digest
from lift.generator.features import compute_features
from lift.guard import SiteProfile
from lift.metrics.hf_share import hf_share
from lift.mixer.curves import KNOTS
from lift.mixer.finished import FinishedMixer, read_mixer, write_mixer
from lift.tasks.paired.choice import USES, Use
from lift.tasks.paired.contrast import OwnMixer, SiteModel
from lift.tasks.paired.predictions import filtered
from lift.tasks.paired.synthesis import CachedStream, mix
from lift.tasks.paired.translation import OnConcern, ToDicom, Translated, translate
from lift.volumes.volume import check_same_grid, read_volume
from tests import wording
from tests.lift.formats.dicom_cases import series, write
from tests.lift.mixer_cases import TAPS
from tests.lift.small_world import (
    FILE_SHAPE,
    SOURCES,
    assert_four_parts,
    random_mixer,
    small_generator,
    small_plan,
    write_brats_patient,
)

GENERATOR = small_generator()
_RANDOM = torch.Generator().manual_seed(1)
CURVES = 0.05 * torch.randn(KNOTS * (1 + len(SOURCES)), generator=_RANDOM).double()
MODEL = SiteModel(CURVES)
FITS_ALL = SiteProfile("helped", 0.5, 6.0, None, None)
FITS_NONE = SiteProfile("helped", 0.5, 0.6, None, None)


def oblique() -> NDArray[np.float64]:
    """Axes to the left, back and upwards, turned by 11 degrees about x and 7 about z."""
    a, b = np.deg2rad([11.0, 7.0])
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_z = [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(about_x) @ np.array(about_z) @ np.diag([-1.2, -1.1, 3.0])
    affine[:3, 3] = [90.0, 120.0, -40.0]
    return affine


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Translating fixes threads and kernels for a process of its own; the tests share one."""
    threads = torch.get_num_threads()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # not in its stubs
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=False)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cohort")
    return write_brats_patient(root, channels=SOURCES, affine=oblique())


def finished(plan: Plan, *sites: SiteProfile) -> FinishedMixer:
    return FinishedMixer(random_mixer(plan, GENERATOR).values(), TAPS, plan, sites, phantom=True)


def run(
    files: dict[str, Path],
    output: Path,
    plan: Plan,
    *,
    site: SiteProfile = FITS_ALL,
    on_concern: OnConcern = "warn",
    mask: Path | None = None,
    site_model: SiteModel | None = MODEL,
) -> Translated:
    return translate(
        files,
        output,
        finished(plan, site),
        GENERATOR,
        mask=mask,
        site=site_model,
        on_concern=on_concern,
    )


def prepared_from(files: dict[str, Path], plan: Plan, mask: Path | None = None) -> Prepared:
    return prepare(Patient("p", "p", files, mask), plan, root=Path(), with_target=False)


def expected(prepared: Prepared, plan: Plan, *, with_mixer: bool = True) -> NDArray[Any]:
    """The normalised result as RAS+ voxels, by way of the cache's features."""
    mixer = random_mixer(plan, GENERATOR)
    features = compute_features(prepared, GENERATOR, mixer.tap_names, mixer.pooled_names)
    seen = features.seen_with(CURVES)
    result = mix(mixer, CachedStream(seen, mixer)) if with_mixer else features.pred
    return restore(prepared, np.clip(result, 0, 1) * prepared.mask, background=0.0)


def canonical(path: Path) -> NDArray[Any]:
    """Voxels in RAS+, read and turned by nibabel alone."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj)


@pytest.mark.parametrize("kind", ["zrefine", "pooled_bigru"])
def test_the_output_lies_on_the_first_inputs_grid_and_is_what_mixing_gives(
    files: dict[str, Path], tmp_path: Path, kind: Any
) -> None:
    plan = small_plan(kind, generator=GENERATOR)
    output = tmp_path / "made" / "t2f.nii.gz"
    done = run(files, output, plan)
    assert done == Translated("mixer", None)
    given, made = nibabel.load(files["t1n"]), nibabel.load(output)
    assert nibabel.aff2axcodes(made.affine) == ("L", "P", "S")
    assert made.shape == given.shape == FILE_SHAPE
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-5)
    np.testing.assert_allclose(made.header.get_zooms(), given.header.get_zooms(), rtol=1e-6)
    assert made.get_data_dtype() == np.float32
    wanted = (expected(prepared_from(files, plan), plan) * 1000.0).astype(np.float32)
    assert float(wanted.max()) > 1.0
    np.testing.assert_array_equal(canonical(output), wanted)


def test_ct_is_written_in_whole_hounsfield_units(files: dict[str, Path], tmp_path: Path) -> None:
    plan = small_plan(generator=GENERATOR, target="ct")
    output = tmp_path / "ct.nii"
    run(files, output, plan)
    made = nibabel.load(output)
    assert made.get_data_dtype() == np.int16
    assert made.header.get_slope_inter() in {(None, None), (1.0, 0.0)}
    prepared = prepared_from(files, plan)
    wanted = -1024.0 + expected(prepared, plan) * 4024.0
    np.testing.assert_allclose(canonical(output), wanted, atol=0.51)
    outside = restore(prepared, prepared.mask, background=0.0) == 0
    assert set(np.unique(canonical(output)[outside])) == {-1024}


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "percentile"},
        {"rule": "percentile", "inside": "mask"},
        {"rule": "nyul", "percentiles": [1, 50, 99], "landmarks": [0.1, 0.4, 0.9]},
    ],
)
def test_mr_is_written_up_to_the_plans_maximum(
    files: dict[str, Path], tmp_path: Path, rule: dict[str, object]
) -> None:
    rules = {name: {**rule, "written_maximum": 50.0} for name in (*files, "t2f")}
    plan = small_plan(generator=GENERATOR, preprocessing={"normalisation": rules})
    run(files, tmp_path / "out.nii", plan)
    wanted = (expected(prepared_from(files, plan), plan) * 50.0).astype(np.float32)
    np.testing.assert_array_equal(canonical(tmp_path / "out.nii"), wanted)


def test_a_concern_is_told_and_the_mixer_is_used_all_the_same(
    files: dict[str, Path], tmp_path: Path
) -> None:
    plan = small_plan(generator=GENERATOR)
    done = run(files, tmp_path / "out.nii", plan, site=FITS_NONE)
    assert done.method == "mixer"
    assert done.concern is not None
    assert "3 mm" in done.concern
    wanted = (expected(prepared_from(files, plan), plan) * 1000.0).astype(np.float32)
    np.testing.assert_array_equal(canonical(tmp_path / "out.nii"), wanted)


@pytest.mark.parametrize("kind", ["zrefine", "zrefine_lite", "pooled_bigru"])
def test_falling_back_writes_the_generators_own_prediction(
    files: dict[str, Path], tmp_path: Path, kind: Any
) -> None:
    plan = small_plan(kind, generator=GENERATOR)
    done = run(files, tmp_path / "out.nii", plan, site=FITS_NONE, on_concern="fall_back")
    assert done.method == "no_mixer"
    assert done.concern is not None
    prepared = prepared_from(files, plan)
    wanted = (expected(prepared, plan, with_mixer=False) * 1000.0).astype(np.float32)
    np.testing.assert_array_equal(canonical(tmp_path / "out.nii"), wanted)
    assert not np.array_equal(wanted, (expected(prepared, plan) * 1000.0).astype(np.float32))


def test_without_the_sites_curves_it_says_so(files: dict[str, Path], tmp_path: Path) -> None:
    plan = small_plan(generator=GENERATOR)
    done = run(files, tmp_path / "out.nii", plan, site_model=None)
    assert done.method == "mixer"
    assert done.concern is not None
    assert "--curves" in done.concern
    plain = plan.model_copy(update={"mixer": plan.mixer.model_copy(update={"contrast": "none"})})
    assert run(files, tmp_path / "out.nii", plain, site_model=None).concern is None


def test_without_a_concern_there_is_nothing_to_fall_back_from(
    files: dict[str, Path], tmp_path: Path
) -> None:
    plan = small_plan(generator=GENERATOR)
    prepared = prepared_from(files, plan)
    share = hf_share(prepared.source, prepared.mask)
    assert share is not None
    site = SiteProfile("helped", 3.0, 3.0, share, share)
    done = run(files, tmp_path / "out.nii", plan, site=site, on_concern="fall_back")
    assert done == Translated("mixer", None)
    other = dataclasses.replace(site, lowest_hf_share=share / 10, highest_hf_share=share / 9)
    done = run(files, tmp_path / "out.nii", plan, site=other, on_concern="fall_back")
    assert done.method == "no_mixer"


def test_a_mask_of_the_patients_own_is_used_where_the_plan_says_so(
    files: dict[str, Path], tmp_path: Path
) -> None:
    plan = small_plan(generator=GENERATOR, preprocessing={"mask": "file"})
    image = nibabel.load(files["t1n"])
    inside = np.zeros(FILE_SHAPE, np.uint8)
    inside[5:15, 6:17, 1:8] = 1
    mask = tmp_path / "mask.nii.gz"
    nibabel.Nifti1Image(inside, image.affine).to_filename(mask)
    run(files, tmp_path / "out.nii", plan, mask=mask)
    made = np.asarray(nibabel.load(tmp_path / "out.nii").dataobj)
    assert not made[inside == 0].any()
    assert made[inside > 0].any()


def save(path: Path, head: NDArray[Any], affine: NDArray[np.float64]) -> Path:
    nibabel.Nifti1Image(head, affine).to_filename(path)
    return path


def head_on(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.int16]:
    """An ellipsoid around the origin with slow structure, a function of the place in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    inside = (x / 11) ** 2 + (y / 12) ** 2 + (z / 13) ** 2 < 1
    return np.where(inside, 400 + 90 * np.sin(x / 3) * np.cos(z / 4), 0).astype(np.int16)


def around_the_origin(
    shape: tuple[int, int, int], axes: NDArray[np.float64]
) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ ((np.array(shape) - 1) / 2)
    return affine


@pytest.mark.parametrize("streamed", ["zrefine", "pooled_bigru"])
@pytest.mark.parametrize(
    "grid",
    [
        {"kind": "first_source"},
        {"kind": "spacing", "spacing_mm": [1.5, 1.5, 2.0]},
        {"kind": "spacing", "spacing_mm": [None, 2.0, 0.7]},
    ],
)
def test_a_1_mm_scan_and_one_of_5_mm_slices_make_an_output_on_the_firsts_own_grid(
    tmp_path: Path, grid: dict[str, Any], streamed: Any
) -> None:
    fine, thick = (28, 30, 31), (20, 22, 7)
    turned = oblique()[:3, :3] / np.linalg.norm(oblique()[:3, :3], axis=0)
    own = around_the_origin(fine, turned)
    other = around_the_origin(thick, np.diag([1.4, 1.4, 5.0]))
    files = {
        SOURCES[0]: save(tmp_path / "t1.nii", head_on(fine, own), own),
        SOURCES[1]: save(tmp_path / "flair.nii.gz", head_on(thick, other), other),
    }
    plan = small_plan(streamed, generator=GENERATOR, preprocessing={"grid": grid})
    run(files, tmp_path / "out.nii.gz", plan)
    given, made = nibabel.load(files[SOURCES[0]]), nibabel.load(tmp_path / "out.nii.gz")
    assert made.shape == fine
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-5)
    prepared = prepared_from(files, plan)
    # in each channel the same head, at the same place
    inside = prepared.mask[:, 0] > 0
    first, second = prepared.source[:, 0][inside], prepared.source[:, 1][inside]
    assert np.corrcoef(first, second)[0, 1] > 0.5
    wanted = (np.clip(expected(prepared, plan), 0, 1) * 1000.0).astype(np.float32)
    np.testing.assert_array_equal(canonical(tmp_path / "out.nii.gz"), wanted)
    assert float(wanted.max()) > 1.0
    # what was made is where the head is
    shown = np.asarray(made.dataobj)
    head = np.asarray(given.dataobj) > 0
    assert np.count_nonzero(shown[head]) > 0.8 * np.count_nonzero(shown)
    with pytest.raises(LiftError, match=wording.NOT_ON_ONE_GRID):
        run(files, tmp_path / "no.nii", small_plan(generator=GENERATOR))


def test_progress_ends_at_the_last_slice(files: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan = small_plan(generator=GENERATOR)
    translate(
        files,
        tmp_path / "out.nii",
        finished(plan, FITS_ALL),
        GENERATOR,
        mask=None,
        on_concern="warn",
        report=lambda done, depth: seen.append((done, depth)),
    )
    assert seen[-1][0] == seen[-1][1] > 0


# --- what is refused, and that nothing is written then


def assert_refuses(
    kind: type[LiftError], files: dict[str, Path], output: Path, plan: Plan, **options: Any
) -> LiftError:
    with pytest.raises(kind) as caught:
        run(files, output, plan, **options)
    assert_four_parts(caught.value)
    assert not output.exists()
    return caught.value


@pytest.mark.parametrize("fingerprint", ["0" * 64, None])
def test_another_generator_is_refused(
    files: dict[str, Path], tmp_path: Path, fingerprint: str | None
) -> None:
    plan = small_plan().model_copy(update={"generator_fingerprint": fingerprint})
    error = assert_refuses(GeneratorError, files, tmp_path / "out.nii", plan)
    assert GENERATOR.fingerprint[:12] in error.seen


def test_a_missing_or_an_extra_source_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    plan, output = small_plan(generator=GENERATOR), tmp_path / "out.nii"
    error = assert_refuses(ConfigError, {"t1n": files["t1n"]}, output, plan)
    assert "t1n, t2w" in error.seen
    assert_refuses(ConfigError, {**files, "pd": files["t1n"]}, output, plan)
    assert_refuses(ConfigError, {}, output, plan)


def test_a_mask_that_the_plan_does_not_use_is_refused_and_so_is_its_absence(
    files: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out.nii"
    unused = small_plan(generator=GENERATOR)
    assert_refuses(ConfigError, files, output, unused, mask=files["t1n"])
    needed = small_plan(generator=GENERATOR, preprocessing={"mask": "file"})
    assert_refuses(ConfigError, files, output, needed)


def test_a_file_that_cannot_be_used_is_refused_by_name(
    files: dict[str, Path], tmp_path: Path
) -> None:
    plan, output = small_plan(generator=GENERATOR), tmp_path / "out.nii"
    short = tmp_path / "short.nii.gz"
    short.write_bytes(files["t2w"].read_bytes()[:200])
    error = assert_refuses(VolumeError, {**files, "t2w": short}, output, plan)
    assert "short.nii.gz" in str(error)
    absent = {**files, "t2w": tmp_path / "absent.nii"}
    assert "absent.nii" in str(assert_refuses(VolumeError, absent, output, plan))


def part_used(use: Use, tmp_path: Path, files: dict[str, Path]) -> NDArray[Any]:
    plan = small_plan(generator=GENERATOR)
    run(files, tmp_path / "out.nii", plan, site_model=SiteModel(CURVES, use))
    return canonical(tmp_path / "out.nii")


def test_a_site_translates_with_what_it_uses(files: dict[str, Path], tmp_path: Path) -> None:
    plan = small_plan(generator=GENERATOR)
    # the kernels that the command uses, whatever ran in this process before
    fix_threads(plan.threads)
    prepared = prepared_from(files, plan)
    mixer = random_mixer(plan, GENERATOR)
    features = compute_features(prepared, GENERATOR, mixer.tap_names, mixer.pooled_names)
    seen = features.seen_with(CURVES)
    bases: dict[str, NDArray[Any]] = {
        "no_mixer": features.pred,
        "curves": seen.prediction(),
        "z_filter": filtered(seen, TAPS),
        "mixer": mix(mixer, CachedStream(seen, mixer)),
    }
    distinct = set()
    for use in USES:
        result = features.pred + use.strength * (bases[use.base] - features.pred)
        wanted = restore(prepared, np.clip(result, 0, 1) * prepared.mask, background=0.0) * 1000
        made = part_used(use, tmp_path, files)
        np.testing.assert_allclose(made, wanted, atol=0.05)
        distinct.add(made.tobytes())
    assert len(distinct) == len(USES)


# --- what it says of itself, and as a DICOM series


def sidecar(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(("target", "unit"), [("t2f", "arbitrary"), ("ct", "HU")])
def test_a_sidecar_says_that_it_is_synthetic_and_what_made_it(
    files: dict[str, Path], tmp_path: Path, target: str, unit: str
) -> None:
    plan = small_plan(generator=GENERATOR, target=target)
    run(files, tmp_path / "made.nii.gz", plan)
    found = sidecar(tmp_path / "made.json")
    write_mixer(tmp_path / "mixer.safetensors", finished(plan, FITS_ALL))
    assert found.pop("MixerDigest") == file_digest(tmp_path / "mixer.safetensors")
    assert read_mixer(tmp_path / "mixer.safetensors").digest == finished(plan, FITS_ALL).digest
    assert found.pop("GeneratedBy") == [{"Name": "LiFT-federated", "Version": lift.__version__}]
    assert "not acquired" in found.pop("Description")
    assert found == {
        "Synthetic": True,
        "Modality": "CT" if unit == "HU" else "MR",
        "Contrast": target,
        "SourceContrasts": list(SOURCES),
        "Units": unit,
        "Method": "mixer",
        "GeneratorFingerprint": GENERATOR.fingerprint,
        "PlanDigest": plan.digest(),
        "TrainedOnPhantomsAlone": True,
    }
    text = (tmp_path / "made.json").read_text(encoding="utf-8")
    assert not [path for path in files.values() if path.name.split("-t")[0] in text]
    assert str(tmp_path) not in text


def test_a_sidecar_says_when_the_mixer_was_not_used_and_why(
    files: dict[str, Path], tmp_path: Path
) -> None:
    plan = small_plan(generator=GENERATOR)
    done = run(files, tmp_path / "made.nii", plan, site=FITS_NONE, on_concern="fall_back")
    found = sidecar(tmp_path / "made.json")
    assert (found["Method"], found["Concern"]) == ("no_mixer", done.concern)
    run(files, tmp_path / "made.nii", plan, site_model=SiteModel(CURVES, Use("mixer", 0.5)))
    found = sidecar(tmp_path / "made.json")
    assert found["Method"] == "mixer x 0.5"
    assert "Concern" not in found
    own = OwnMixer("mixer, trained on", "d" * 64)
    run(files, tmp_path / "made.nii", plan, site_model=SiteModel(CURVES, own=own))
    found = sidecar(tmp_path / "made.json")
    assert (found["Method"], found["SiteMixerDigest"]) == ("mixer, trained on", "d" * 64)


@pytest.mark.parametrize(
    "content", [b"{}", b'{"Synthetic": true}', b"no JSON", b'{"EchoTime": 0.09}', b"[1]", b"\xff"]
)
def test_a_sidecar_of_somebody_else_is_never_replaced(
    files: dict[str, Path], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "out.json").write_bytes(content)
    output = tmp_path / "out.nii.gz"
    error = assert_refuses(VolumeError, files, output, small_plan(generator=GENERATOR))
    assert "out.json" in error.seen
    assert (tmp_path / "out.json").read_bytes() == content


def test_a_name_that_cannot_be_written_is_refused_before_anything_is_computed(
    files: dict[str, Path], tmp_path: Path
) -> None:
    steps: list[int] = []
    with pytest.raises(VolumeError, match=r"\.nii"):
        translate(
            files,
            tmp_path / "out.mha",
            finished(small_plan(generator=GENERATOR), FITS_ALL),
            GENERATOR,
            mask=None,
            on_concern="warn",
            report=lambda done, _: steps.append(done),
        )
    assert not steps
    assert not list(tmp_path.iterdir())


def as_series(files: dict[str, Path], folder: Path, modality: str = "MR") -> dict[str, Path]:
    """The same volumes as DICOM series of one study."""
    found = {}
    for number, (name, path) in enumerate(files.items()):
        image = nibabel.load(path)

        def change(index: int, dataset: Dataset, number: int = number) -> None:
            dataset.FrameOfReferenceUID = "1.2.826.0.1.3680043.2.7.9"
            dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.2.7.{number + 10}"
            dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.2.7.{number + 10}.{index}"

        data = np.asarray(image.dataobj)
        found[name] = write(
            series(data, image.affine, modality=modality, change=change), folder / name
        )
    return found


@pytest.mark.parametrize("target", ["t2f", "ct"])
@pytest.mark.parametrize("given", ["series", "files"])
def test_series_in_and_a_series_out_with_the_values_of_the_file(
    files: dict[str, Path], tmp_path: Path, target: str, given: str
) -> None:
    plan, folders = small_plan(generator=GENERATOR, target=target), as_series(files, tmp_path)
    output, made = tmp_path / "made.nii.gz", tmp_path / "made"
    translate(
        folders if given == "series" else files,
        output,
        finished(plan, FITS_ALL),
        GENERATOR,
        mask=None,
        site=MODEL,
        on_concern="warn",
        dicom=ToDicom(folders[SOURCES[0]], made),
    )
    file, found = read_volume(output), read_volume(made)
    within = 0 if target == "ct" else 0.5001 * float(file.voxels.max()) / 65535
    assert float(file.voxels.max()) > 1
    np.testing.assert_allclose(found.voxels, file.voxels, rtol=0, atol=within)
    check_same_grid(file, found, ("file", "series"))
    digest = finished(plan, FITS_ALL).digest
    for path in made.iterdir():
        one = pydicom.dcmread(path)
        assert one.Modality == ("CT" if target == "ct" else "MR")
        assert digest in one.DerivationDescription
        # both sources lie on it; a file refers to nothing
        assert len(one.SourceImageSequence) == (len(SOURCES) if given == "series" else 1)


def test_a_series_alone_is_written_where_no_file_is_asked_for(
    files: dict[str, Path], tmp_path: Path
) -> None:
    folders = as_series(files, tmp_path / "given")
    # as far apart as a converter and rounded headers put them
    image = nibabel.load(files[SOURCES[0]])
    image.affine[:3, 2] *= 1.005
    near = {
        name: save(
            tmp_path / "given" / f"{name}.nii", np.asarray(nibabel.load(path).dataobj), image.affine
        )
        for name, path in files.items()
    }
    translate(
        near,
        None,
        finished(small_plan(generator=GENERATOR), FITS_ALL),
        GENERATOR,
        mask=None,
        on_concern="warn",
        dicom=ToDicom(folders[SOURCES[1]], tmp_path / "made"),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "made"]
    assert len(list((tmp_path / "made").iterdir())) == FILE_SHAPE[2]


def test_a_source_that_is_not_there_is_refused_as_ever(
    files: dict[str, Path], tmp_path: Path
) -> None:
    given = as_series(files, tmp_path)
    inputs = {**files, SOURCES[1]: tmp_path / "absent.nii"}
    with pytest.raises(VolumeError, match=r"absent\.nii.*no such file"):
        translate(
            inputs,
            None,
            finished(small_plan(generator=GENERATOR), FITS_ALL),
            GENERATOR,
            mask=None,
            on_concern="warn",
            dicom=ToDicom(given[SOURCES[0]], tmp_path / "made"),
        )


@pytest.mark.parametrize("kind", ["another grid", "shifted", "not empty", "no series", "no name"])
def test_what_cannot_become_a_series_is_refused_and_nothing_is_written(
    files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    plan, made, output = small_plan(generator=GENERATOR), tmp_path / "made", tmp_path / "out.nii"
    affine = oblique()
    affine[:3, 3] += 0.2 if kind == "shifted" else 0
    shape = (22, 26, 8) if kind == "another grid" else FILE_SHAPE
    data = np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)
    other = write_brats_patient(tmp_path / "other", channels=SOURCES[:1])[SOURCES[0]]
    nibabel.Nifti1Image(data, affine).to_filename(other)
    given = as_series({"x": other}, tmp_path)["x"]
    if kind == "not empty":
        made.mkdir()
        (made / "mine.txt").write_text("kept")
    if kind == "no series":
        given = files[SOURCES[0]]
    if kind == "no name":
        output = tmp_path / "out.img"
    steps: list[int] = []
    with pytest.raises(VolumeError) as caught:
        translate(
            files,
            output,
            finished(plan, FITS_ALL),
            GENERATOR,
            mask=None,
            on_concern="warn",
            dicom=ToDicom(given, made),
            report=lambda done, _: steps.append(done),
        )
    assert_four_parts(caught.value)
    assert not steps
    assert not output.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["other", "x", *(["made"] if kind == "not empty" else [])]
    )
    if kind in {"another grid", "shifted"}:
        assert isinstance(caught.value, AffineError)
        assert "first source 't1n'" in caught.value.seen


def test_hounsfield_units_beyond_16_bits_are_no_window_of_a_plan() -> None:
    for window in ({"low": -40000}, {"high": 40000}):
        rule = {"ct": {"rule": "window", **window}}
        with pytest.raises(ConfigError, match=r"32768|32767"):
            small_plan(target="ct", preprocessing={"normalisation": rule})
