"""The phantom cohort: physics, geometry, corruption, files. All of it is simulated."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lift.cohort.layouts import list_patients
from lift.cohort.phantom.anatomy import Grid, Head, _displacement, make_head
from lift.cohort.phantom.physics import RELAXIVITY_L_MMOL_S, TISSUES, signal
from lift.cohort.phantom.scanner import (
    _jittered,
    _on_grid,
    _slice_profile,
    acquire,
    body_share,
    without_corruption,
)
from lift.cohort.phantom.write import (
    _affine,
    _grid,
    write_patient,
    write_phantom_cohort,
    write_truth,
)
from lift.cohort.preprocessing import prepare
from lift.config.cohort import BratsData, SynthradData
from lift.config.phantom import (
    MR_CHANNELS,
    SCANNERS,
    PhantomCohortConfig,
    ScannerConfig,
    SequenceConfig,
)
from lift.config.plan import Plan, PreprocessingPlan, TaskPlan
from lift.config.privacy import NoPrivacy
from lift.errors import ConfigError
from lift.files import file_digest

Floats = NDArray[np.floating]
sites = pytest.mark.parametrize("site", SCANNERS)


def cohort(scanner: str = "north", **more: object) -> PhantomCohortConfig:
    return PhantomCohortConfig.from_data(
        {"scanner": scanner, "patients": 2, "seed": 5, "in_plane_mm": 4.0, **more}, "test"
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def steady(scanner: ScannerConfig, **more: object) -> ScannerConfig:
    """Without noise, coil field and timing jitter: what is left is slices."""
    update = {"snr": 1e9, "bias": 0.0, "timing_jitter": 0.0, "slice_noise": 0.0, **more}
    return scanner.model_copy(update=update)


def uniform_head(depth: int) -> tuple[Head, Grid]:
    """White matter everywhere: a slice's signal is its gain."""
    shape = (2, 2, depth)
    ones, zeros = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    head = Head({"wm": ones}, ones, zeros, zeros, np.ones(1))
    return head, Grid(shape, (0, 0, 0), (4.0, 4.0, 1.0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients of each of the demo's scanners."""
    folder = tmp_path_factory.mktemp("phantom")
    for site in SCANNERS:
        write_phantom_cohort(cohort(site), folder / site, workers=1)
    return folder


@pytest.fixture(scope="module")
def whole_head() -> tuple[Head, Grid]:
    grid = _grid(cohort(), SCANNERS["north"], whole_head=True)
    return make_head(grid, np.random.default_rng(3), whole_head=True), grid


# --- physics -------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", [False, True])
@sites
def test_signals_follow_the_relaxation_equations(site: str, contrast: bool) -> None:
    scanner = SCANNERS[site]
    for tissue in TISSUES.values():
        t1_s, t2_s = (t[scanner.field_t] / 1000 for t in (tissue.t1_ms, tissue.t2_ms))
        concentration = tissue.gadolinium_mmol_l if contrast else 0.0
        r1 = 1 / t1_s + RELAXIVITY_L_MMOL_S[scanner.field_t] * concentration
        for sequence in (scanner.t1, scanner.t2, scanner.flair):
            # longitudinal magnetisation after one repetition, step by step: saturated by the echo,
            # it recovers, is inverted, and recovers again until the next excitation
            start = 0.0
            tr, ti = sequence.tr_ms / 1000, sequence.ti_ms
            if ti is None:
                mz = 1 + (start - 1) * np.exp(-tr * r1)
            else:
                before = 1 + (start - 1) * np.exp(-(tr - ti / 1000) * r1)
                mz = 1 + (-before - 1) * np.exp(-ti / 1000 * r1)
            expected = tissue.density * abs(mz) * np.exp(-sequence.te_ms / 1000 / t2_s)
            found = signal(tissue, sequence, scanner.field_t, contrast=contrast)
            assert found == pytest.approx(expected, rel=1e-9)


@sites
def test_fluid_is_dark_on_flair(site: str) -> None:
    scanner = SCANNERS[site]
    rng = np.random.default_rng(0)

    def fluid_over_white(flair: SequenceConfig) -> float:
        csf, wm = (
            signal(TISSUES[name], flair, scanner.field_t, contrast=False) for name in ("csf", "wm")
        )
        return csf / wm

    assert fluid_over_white(scanner.flair) < 0.1
    jittered = [_jittered(scanner.flair, scanner.timing_jitter, rng) for _ in range(100)]
    # the inversion time follows a jittered TR to first order only: some fluid comes back
    assert max(map(fluid_over_white, jittered)) < 0.16


@pytest.mark.parametrize(
    "site",
    [
        "north",
        pytest.param(
            "harbour",
            marks=pytest.mark.xfail(
                reason="spin echo 500/14 at 1.5 T with these densities: white is 2% below grey"
            ),
        ),
        "valley",
    ],
)
def test_white_matter_is_brighter_than_grey_on_t1(site: str) -> None:
    assert _level(site, "wm", "t1") > _level(site, "gm", "t1")


@sites
def test_tissues_are_ordered_as_radiologists_expect(site: str) -> None:
    assert min(_level(site, name, "t1") for name in ("wm", "gm")) > 1.5 * _level(site, "csf", "t1")
    assert _level(site, "csf", "t2") == max(_level(site, name, "t2") for name in TISSUES)
    assert _level(site, "gm", "t2") > _level(site, "wm", "t2")
    for lesion in ("hyperintensity", "oedema"):
        assert _level(site, lesion, "flair") > _level(site, "wm", "flair")
    for sequence in ("t1", "t2", "flair"):
        assert _level(site, "bone", sequence) < 1e-3


@sites
def test_contrast_agent_brightens_exactly_the_tissues_with_uptake(site: str) -> None:
    scanner = SCANNERS[site]
    for tissue in TISSUES.values():
        plain, enhanced = (
            signal(tissue, scanner.t1, scanner.field_t, contrast=contrast)
            for contrast in (False, True)
        )
        assert (enhanced > plain) == (tissue.gadolinium_mmol_l > 0)
        if tissue.gadolinium_mmol_l == 0:
            assert enhanced == plain


def test_the_three_sites_differ_in_t1_contrast_as_their_timing_says(
    whole_head: tuple[Head, Grid],
) -> None:
    head, grid = whole_head
    ratios = {}
    for site, scanner in SCANNERS.items():
        quiet = without_corruption(steady(scanner))
        image = acquire(head, grid, "t1n", quiet, np.random.default_rng(0), is_target=False).voxels
        spacing, count = scanner.slice_spacing_mm, image.shape[2]
        means = []
        for tissue in ("wm", "gm"):
            share = _slice_profile(head.maps[tissue], spacing)[:, :, :count]
            means.append(float(image[share > 0.9].mean()))
        expected = [
            signal(TISSUES[t], scanner.t1, scanner.field_t, contrast=False) for t in ("wm", "gm")
        ]
        ratios[site] = means[0] / means[1]
        # some grey matter is left in those voxels, and the other way round
        assert ratios[site] == pytest.approx(expected[0] / expected[1], rel=0.06)
    found = sorted(ratios.values())
    assert min(b / a for a, b in itertools.pairwise(found)) > 1.03


# --- anatomy -------------------------------------------------------------------------------


def test_deformations_have_no_folds() -> None:
    for seed in range(5):
        flow, jacobian = _displacement(np.random.default_rng(seed))
        assert jacobian.min() > 0
        # an independent determinant, by the rule of Sarrus on central differences
        rows = [
            [np.gradient(flow[i].astype(float), 4.0, axis=j) for j in range(3)] for i in range(3)
        ]
        (a, b, c), (d, e, f), (g, h, i) = rows
        a, e, i = 1 + a, 1 + e, 1 + i
        expected = a * e * i + b * f * g + c * d * h - c * e * g - b * d * i - a * f * h
        np.testing.assert_allclose(jacobian, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_shares_of_tissue_are_shares_and_every_head_has_a_glioma(seed: int) -> None:
    whole = seed == 0
    grid = _grid(cohort(), SCANNERS["valley"], whole_head=whole)
    head = make_head(grid, np.random.default_rng(seed), whole_head=whole)
    assert head.jacobian.min() > 0
    total = np.zeros(grid.shape)
    for share in head.maps.values():
        assert share.shape == grid.shape
        assert share.min() >= 0
        total += share
    assert total.max() <= 1 + 1e-5
    # white and grey matter of an adult, and none of it cut off by the field's border
    brain = head.maps["wm"] + head.maps["gm"]
    assert 0.8 < brain.sum() * np.prod(grid.spacing_mm) / 1e6 < 2.0
    for axis in range(3):
        for face in (0, -1):
            assert np.take(brain, face, axis=axis).mean() < 0.02
    for tissue in ("oedema", "enhancing", "necrosis"):
        assert head.maps[tissue].max() > 0.5
    assert head.texture.std() == pytest.approx(1, rel=1e-3)
    assert np.abs(head.coil).max() == pytest.approx(1, rel=1e-5)


def test_the_sequences_of_an_examination_share_most_of_the_coils_field() -> None:
    head, grid = uniform_head(60)
    scanner = SCANNERS["valley"]
    ramp = np.linspace(-1, 1, 60, dtype=np.float32) * np.ones(grid.shape, np.float32)
    head = Head(head.maps, head.brain, head.texture, ramp, head.jacobian)
    clean = without_corruption(steady(scanner)).model_copy(update={"bias": scanner.bias})
    fields = [
        acquire(head, grid, channel, clean, np.random.default_rng(i), is_target=False).voxels
        / signal(TISSUES["wm"], sequence, scanner.field_t, contrast=False)
        for i, (channel, sequence) in enumerate((("t1n", scanner.t1), ("t2w", scanner.t2)))
    ]
    for field in fields:
        assert np.abs(field - 1).max() <= scanner.bias * (1 + 1e-4)
        common = _slice_profile(ramp, scanner.slice_spacing_mm)
        assert np.corrcoef(field.ravel(), common.ravel())[0, 1] > 0.9
    assert not np.allclose(fields[0], fields[1], atol=1e-3)


def test_two_seeds_give_two_heads() -> None:
    grid = Grid((20, 24, 20), (-80.0, -110.0, -70.0), (8.0, 8.0, 8.0))
    first, second, again = (
        make_head(grid, np.random.default_rng(seed), whole_head=False) for seed in (1, 2, 1)
    )
    np.testing.assert_array_equal(first.maps["wm"], again.maps["wm"])
    assert np.abs(first.maps["wm"] - second.maps["wm"]).mean() > 0.01


# --- scanner -------------------------------------------------------------------------------


@given(thickness=st.integers(1, 7), slices=st.integers(2, 9), seed=st.integers(0, 99))
def test_a_slice_profile_of_whole_fine_slices_is_their_mean(
    thickness: int, slices: int, seed: int
) -> None:
    fine = np.random.default_rng(seed).random((2, 3, thickness * slices)).astype(np.float32)
    found = _slice_profile(fine, float(thickness))
    expected = fine.reshape(2, 3, slices, thickness).mean(axis=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@given(tenths=st.integers(10, 65), seed=st.integers(0, 99))
def test_a_slice_profile_of_any_thickness_is_the_exact_integral(tenths: int, seed: int) -> None:
    fine = np.random.default_rng(seed).random((2, 1, 30)).astype(np.float32)
    found = _slice_profile(fine, tenths / 10)
    # every fine slice as ten thin ones: now each box is whole
    thin = np.repeat(fine, 10, axis=2)
    count = thin.shape[2] // tenths
    expected = thin[:, :, : count * tenths].reshape(2, 1, count, tenths).mean(axis=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found.mean(), thin[:, :, : count * tenths].mean(), rtol=1e-5)


def test_thick_slices_are_interpolated_at_the_delivered_centres() -> None:
    # a ramp along depth stays that ramp wherever it is interpolated, not extrapolated
    ramp = np.arange(60, dtype=np.float32)[None, None, :] + 0.5
    found = _on_grid(_slice_profile(ramp, 5.0), 5.0, 4.0, 15)[0, 0]
    centres = 4.0 * np.arange(15) + 2.0
    np.testing.assert_allclose(found, np.clip(centres, 2.5, 57.5), rtol=1e-5)


def test_noise_in_air_is_rician(whole_head: tuple[Head, Grid]) -> None:
    head, grid = whole_head
    scanner = without_corruption(SCANNERS["north"].model_copy(update={"timing_jitter": 0.0}))
    image = acquire(head, grid, "t1n", scanner, np.random.default_rng(1), is_target=False).voxels
    air = image[body_share(head, scanner, grid) == 0]
    white = signal(TISSUES["wm"], scanner.t1, scanner.field_t, contrast=False)
    sigma = white / scanner.snr
    assert air.size > 3000
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)
    assert air.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.04)


@pytest.mark.parametrize("is_target", [False, True])
@sites
def test_without_corruption_every_slice_has_the_same_gain(site: str, is_target: bool) -> None:
    head, grid = uniform_head(240)
    scanner = without_corruption(steady(SCANNERS[site]))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        image = acquire(head, grid, "t2w", scanner, rng, is_target=is_target).voxels
        white = signal(TISSUES["wm"], scanner.t2, scanner.field_t, contrast=False)
        np.testing.assert_allclose(image, white, rtol=1e-5)


@sites
def test_corruption_varies_the_gain_and_loses_slices_at_the_stated_rates(site: str) -> None:
    head, grid = uniform_head(600)
    scanner = steady(SCANNERS[site])
    white = signal(TISSUES["wm"], scanner.t2, scanner.field_t, contrast=False)

    def gains(*, is_target: bool) -> Floats:
        images = [
            acquire(head, grid, "t2w", scanner, np.random.default_rng(s), is_target=is_target)
            for s in range(60)
        ]
        return np.concatenate([image.voxels[0, 0] / white for image in images])

    source = gains(is_target=False)
    is_lost = source < 0.45
    rate = scanner.lost_slice_rate
    assert abs(is_lost.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / source.size)
    assert source[is_lost].min() > 0.05
    kept = source[~is_lost]
    assert kept.mean() == pytest.approx(1, abs=0.02)
    # a quarter of the variance is shared by all even (and all odd) slices of a volume
    assert kept.std() == pytest.approx(scanner.slice_gain_sd, rel=0.15)
    target = gains(is_target=True)
    assert target.min() > 0.9
    assert target.std() == pytest.approx(scanner.target_slice_gain_sd, rel=0.15)


# --- files ---------------------------------------------------------------------------------


@sites
def test_a_cohort_is_brats_with_one_grid_in_the_scanners_orientation(
    written: Path, site: str
) -> None:
    scanner = SCANNERS[site]
    patients, refusals = list_patients(
        BratsData(layout="brats", root=written / site), list(MR_CHANNELS)
    )
    assert not refusals
    assert [patient.id for patient in patients] == ["BraTS-PHA-00001-000", "BraTS-PHA-00002-000"]
    assert len({patient.subject for patient in patients}) == 2
    for patient in patients:
        images = [nibabel.load(patient.channels[name]) for name in MR_CHANNELS]
        shapes, affines = {image.shape for image in images}, [image.affine for image in images]
        assert len(shapes) == 1
        for affine in affines[1:]:
            np.testing.assert_array_equal(affine, affines[0])
        assert "".join(nibabel.aff2axcodes(affines[0])) == scanner.orientation
        spacing = sorted(float(zoom) for zoom in images[0].header.get_zooms())
        np.testing.assert_allclose(spacing, sorted([4.0, 4.0, scanner.slice_spacing_mm]), rtol=1e-5)
        inside = [np.asarray(image.dataobj) > 0 for image in images]
        for other in inside[1:]:
            np.testing.assert_array_equal(other, inside[0])


@sites
def test_a_brats_phantom_can_be_prepared_and_its_fluid_is_dark_on_flair(
    written: Path, site: str
) -> None:
    root = written / site
    plan = Plan(
        task=TaskPlan(source=("t1n", "t1c", "t2w"), target="t2f"), privacy=NoPrivacy(mode="none")
    )
    patients, _ = list_patients(BratsData(layout="brats", root=root), list(MR_CHANNELS))
    prepared = prepare(patients[0], plan, root=root, with_target=True)
    assert prepared.spacing_mm[0] == pytest.approx(SCANNERS[site].slice_spacing_mm, rel=1e-5)
    litres = prepared.mask.sum() * np.prod(prepared.spacing_mm) / 1e6
    assert 1.0 < litres < 2.6
    assert prepared.target is not None
    inside = prepared.mask[:, 0] > 0
    t2w, flair = prepared.source[:, 2], prepared.target[:, 0]
    # the brightest of T2 inside is fluid, and fluid is what FLAIR suppresses
    fluid = inside & (t2w > np.percentile(t2w[inside], 98))
    assert np.median(flair[fluid]) < 0.6 * np.median(flair[inside])


def test_the_whole_head_is_synthrad_with_plausible_hounsfield_units(tmp_path: Path) -> None:
    config = cohort(patients=1, channels=["mr", "ct"], target="ct", seed=8)
    write_phantom_cohort(config, tmp_path, workers=1)
    patients, refusals = list_patients(
        SynthradData(layout="synthrad", root=tmp_path), ["mr", "ct"], needs_mask=True
    )
    assert not refusals
    (patient,) = patients
    assert patient.mask is not None
    images = [nibabel.load(path) for path in (*patient.channels.values(), patient.mask)]
    assert len({image.shape for image in images}) == 1
    for image in images[1:]:
        np.testing.assert_array_equal(image.affine, images[0].affine)
    mask = np.asarray(images[2].dataobj)
    assert set(np.unique(mask)) == {0, 1}
    hu = np.asarray(nibabel.load(patient.channels["ct"]).dataobj, dtype=float)
    assert hu.min() >= -1024
    assert hu.max() <= 3071
    assert np.median(hu[mask == 0]) == pytest.approx(-1000, abs=5)
    # the middle of the head is brain
    middle = tuple(slice(n // 2 - 4, n // 2 + 4) for n in hu.shape)
    assert 10 < np.median(hu[middle]) < 45
    # the vault is thinner than a voxel here: partial volume, but nothing else comes near it
    assert 600 < np.percentile(hu[mask == 1], 99) < 1300
    assert 0.02 < (hu[mask == 1] > 300).mean() < 0.35
    plan = Plan(
        task=TaskPlan(source=("mr",), target="ct"),
        preprocessing=PreprocessingPlan(mask="file"),
        privacy=NoPrivacy(mode="none"),
    )
    prepared = prepare(patient, plan, root=tmp_path, with_target=True)
    assert prepared.mask.sum() == mask.sum()
    assert prepared.target is not None
    assert 0.2 < prepared.target[prepared.mask > 0].mean() < 0.4


def test_half_of_the_patients_keep_their_skull(tmp_path: Path) -> None:
    config = cohort(skull_strip="half", channels=["t1n"], target="t1n")
    for index in range(2):
        write_patient(config, index, tmp_path)
    zeros = []
    for index in (1, 2):
        name = f"BraTS-PHA-{index:05d}-000"
        image = nibabel.load(tmp_path / name / f"{name}-t1n.nii.gz")
        zeros.append(float((np.asarray(image.dataobj) == 0).mean()))
    assert zeros[0] > 0.3
    # with the skull on, air holds noise instead of zeros
    assert zeros[1] < 0.05


def test_the_folder_says_that_it_is_a_phantom(written: Path) -> None:
    for site in SCANNERS:
        card = json.loads((written / site / "PHANTOM.json").read_text())
        assert card["statement"].startswith("PHANTOM")
        assert "No patient" in card["statement"]
        assert card["settings"] == cohort(site).model_dump(mode="json")
        assert card["digest"] == cohort(site).digest()


def test_the_bytes_do_not_depend_on_processes_or_on_the_number_of_patients(
    written: Path, tmp_path: Path
) -> None:
    steps = []
    write_phantom_cohort(
        cohort("valley"),
        tmp_path,
        workers=2,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert digests(tmp_path) == digests(written / "valley")
    assert steps == [(1, 2), (2, 2)]
    alone = tmp_path / "alone"
    write_patient(cohort("valley", patients=9), 1, alone)
    first = digests(alone)
    assert len(first) == len(MR_CHANNELS)
    whole = digests(written / "valley")
    assert first == {name: whole[name] for name in first}


def test_another_seed_gives_other_patients(written: Path, tmp_path: Path) -> None:
    write_patient(cohort("valley", seed=6), 0, tmp_path)
    other, whole = digests(tmp_path), digests(written / "valley")
    assert all(whole[name] != digest for name, digest in other.items())


def test_a_finished_cohort_is_not_rewritten_and_a_half_written_one_is_finished(
    written: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "harbour"
    shutil.copytree(written / "harbour", folder)
    times = _times(folder)
    write_phantom_cohort(cohort("harbour"), folder, workers=1)
    assert _times(folder) == times
    (folder / "PHANTOM.json").unlink()
    (folder / "BraTS-PHA-00002-000" / "BraTS-PHA-00002-000-t2f.nii.gz").unlink()
    write_phantom_cohort(cohort("harbour"), folder, workers=1)
    assert digests(folder) == digests(written / "harbour")


def test_the_delivered_grid_is_a_rotation_with_the_scanners_spacing() -> None:
    scanner = SCANNERS["harbour"]
    grid = _grid(cohort("harbour"), scanner, whole_head=False)
    tilts = set()
    for seed in range(5):
        affine = _affine(grid, scanner, np.random.default_rng(seed))
        spacing = np.array([4.0, 4.0, scanner.slice_spacing_mm])
        turn = affine[:3, :3] / spacing
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)
        tilts.add(round(float(turn[2, 1]), 6))
    assert len(tilts) == 5


def _level(site: str, tissue: str, sequence: str) -> float:
    scanner = SCANNERS[site]
    timing: SequenceConfig = getattr(scanner, sequence)
    return signal(TISSUES[tissue], timing, scanner.field_t, contrast=False)


def _times(folder: Path) -> Mapping[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_truth_lies_where_the_volume_shows_it(tmp_path: Path) -> None:
    config = cohort("valley", patients=1, channels=["t1n"], target="t1n")
    write_phantom_cohort(config, tmp_path / "cohort", workers=1)
    write_truth(config, tmp_path / "wm", "wm")
    (path,) = (tmp_path / "wm").iterdir()
    (volume,) = (tmp_path / "cohort" / path.name.removesuffix(".nii.gz")).iterdir()
    truth, shown = nibabel.load(path), nibabel.load(volume)
    np.testing.assert_array_equal(truth.affine, shown.affine)
    inside = np.asarray(truth.dataobj) > 0
    values = np.asarray(shown.dataobj)
    assert inside.shape == values.shape
    assert 0.2 < inside.sum() / (values > 1).sum() < 0.5

    def brighter(where: NDArray[np.bool_]) -> float:
        brain = values > 1
        found = values[where & brain].mean() - values[brain & ~where].mean()
        return float(found / values[brain].std())

    # white matter is the brightest tissue of a T1; mirrored truth is no truth
    assert brighter(inside) > 1.0
    for axis in range(3):
        assert brighter(np.flip(inside, axis)) < 0.6
    kept = file_digest(path)
    path.write_bytes(b"kept")
    write_truth(config, tmp_path / "wm", "wm")
    assert path.read_bytes() == b"kept"
    path.unlink()
    write_truth(config, tmp_path / "wm", "wm")
    assert file_digest(path) == kept
    with pytest.raises(ConfigError, match="no such tissue"):
        write_truth(config, tmp_path / "none", "gold")
    assert not (tmp_path / "none").exists()
