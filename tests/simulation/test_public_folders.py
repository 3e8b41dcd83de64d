"""Official folders: what is found in them, what is said of a wrong one, and who is where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift.config.simulation import SimulationConfig
from lift.errors import ConfigError, DataError
from lift.volumes.volume import read_volume
from lift_benchmarks.public.config import Division
from lift_benchmarks.public.division import FEWEST, divide, read_mapping, table_text
from lift_benchmarks.public.folders import Benchmark, Examination, find_examinations
from lift_benchmarks.public.phantoms import metaimage, write_official
from lift_benchmarks.public.published import published
from lift_benchmarks.public.run import _place_of, check_missing

BRATS = ("t1n", "t1c", "t2w", "t2f")
TRAINING = "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _brats(root: Path, name: str, *channels: str) -> None:
    _touch(*(root / name / f"{name}-{channel}.nii.gz" for channel in channels or BRATS))


def _head(place: Path, *names: str) -> None:
    _touch(*(place / name for name in names or ("mr.mha", "ct.mha", "mask.mha")))


def _refused(root: Path, benchmark: Benchmark, *words: str, region: str | None = None) -> None:
    with pytest.raises(DataError) as refusal:
        find_examinations(root, benchmark, region=region)
    said = refusal.value
    assert "needed: DATA/" in said.seen
    assert said.where == str(root)
    for word in words:
        assert word in f"{said.seen} {said.remedy}", (word, str(said))


def test_brats_is_found_below_its_download_by_person(tmp_path: Path) -> None:
    for name in ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000"):
        _brats(tmp_path / TRAINING, name, *BRATS, "seg")
    _brats(tmp_path / TRAINING, "BraTS-GLI-00005-000", "t1n", "t2w", "t2f", "seg")
    found = find_examinations(tmp_path, "brats")
    assert [one.id[-9:] for one in found.examinations] == ["00000-000", "00000-001", "00002-000"]
    assert len({one.person for one in found.examinations}) == 2
    assert set(found.examinations[0].channels) == set(BRATS)
    assert found.incomplete == {"t1c": 1}


@pytest.mark.parametrize(
    ("place", "name", "centre", "region", "ending"),
    [
        ("Task1/brain", "1BA001", "A", "brain", "nii.gz"),
        ("Task1/pelvis", "1PC012", "C", "pelvis", "nii.gz"),
        ("Task1/AB", "1ABA005", "A", "abdomen", "mha"),
        ("synthRAD2025_Task1_Train/Task1/HN", "1HNE101", "E", "head-neck", "mha"),
        ("Task1/TH", "1THB210", "B", "thorax", "mha"),
        (".", "1BB003", "B", "brain", "nii.gz"),
    ],
)
def test_synthrad_of_both_years_is_found_with_centre_and_region(
    tmp_path: Path, place: str, name: str, centre: str, region: str, ending: str
) -> None:
    _head(tmp_path / place / name, *(f"{one}.{ending}" for one in ("mr", "ct", "mask")))
    _touch(tmp_path / place / "overview" / f"{name}_train.png")
    (one,) = find_examinations(tmp_path, "synthrad").examinations
    assert (one.id, one.person, one.centre, one.region) == (name, name, centre, region)
    assert one.channels["ct"].name == f"ct.{ending}"
    assert one.mask is not None


def test_the_folder_of_one_examination_is_not_taken_for_the_download(tmp_path: Path) -> None:
    _head(tmp_path / "Task1/AB/1ABA005")
    _head(tmp_path / "Task1/TH/1THA005")
    _refused(tmp_path, "synthrad", "several regions: abdomen (1), thorax (1)", "REGION=")
    (one,) = find_examinations(tmp_path, "synthrad", region="thorax").examinations
    assert one.id == "1THA005"
    _refused(tmp_path, "synthrad", "no examination of 'brain'", region="brain")


def test_an_empty_or_missing_folder_is_explained(tmp_path: Path) -> None:
    for benchmark in ("brats", "synthrad"):
        _refused(tmp_path, benchmark, "the folder holds nothing")
        _refused(tmp_path / "nowhere", benchmark, "there is no such folder")
    _touch(tmp_path / "notes.txt")
    _refused(tmp_path, "brats", "'notes.txt'")


def test_a_folder_without_ct_is_explained(tmp_path: Path) -> None:
    _head(tmp_path / "Task1/brain/1BA002", "mr.nii.gz", "mask.nii.gz")
    _refused(tmp_path, "synthrad", "1 without ct", "training part")


def test_a_folder_of_labels_alone_is_explained(tmp_path: Path) -> None:
    _brats(tmp_path, "BraTS-GLI-00000-000", "seg")
    _refused(tmp_path, "brats", "1 without t1n, t1c, t2w, t2f", "labels")


def test_the_other_benchmark_and_the_other_task_are_named(tmp_path: Path) -> None:
    _head(tmp_path / "mr" / "Task1/brain/1BA001")
    _refused(tmp_path / "mr", "brats", "1 examinations of SynthRAD", "make synthrad")
    _brats(tmp_path / "tumours", "BraTS-GLI-00000-000")
    _refused(tmp_path / "tumours", "synthrad", "1 examinations of BraTS 2023", "make brats")
    _head(tmp_path / "cone" / "Task2/brain/2BA001", "cbct.nii.gz", "ct.nii.gz")
    _refused(tmp_path / "cone", "synthrad", "Task 2", "Task 1")
    _touch(tmp_path / "old" / "BraTS2021_00000" / "BraTS2021_00000_t1ce.nii.gz")
    _refused(tmp_path / "old", "brats", "an earlier BraTS", "2023")


def test_an_archive_that_was_not_unpacked_is_named(tmp_path: Path) -> None:
    _touch(tmp_path / f"{TRAINING}.zip")
    _refused(tmp_path, "brats", f"'{TRAINING}.zip'", "unzip")
    # beside folders that nothing was unpacked into
    (tmp_path / "BraTS-GLI-00000-000").mkdir()
    _refused(tmp_path, "brats", "1 folders", "without an image")


def test_an_archive_unpacked_into_itself_is_read_and_a_second_copy_is_refused(
    tmp_path: Path,
) -> None:
    name = "BraTS-GLI-00000-000"
    _brats(tmp_path / TRAINING / TRAINING / name, name)
    (one,) = find_examinations(tmp_path, "brats").examinations
    assert one.channels["t1n"].parent.parent.name == name
    _brats(tmp_path / "copy", name)
    _refused(tmp_path, "brats", "1 examinations are there twice", "copy")


def test_images_that_are_links_to_nothing_are_no_images(tmp_path: Path) -> None:
    _brats(tmp_path, "BraTS-GLI-00000-000", "t1n", "t1c", "t2w")
    file = tmp_path / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-t2f.nii.gz"
    file.symlink_to("../.git/annex/objects/nowhere")
    _refused(tmp_path, "brats", "1 without t2f")


def _people(counts: Mapping[str, int], times: int = 1) -> list[Examination]:
    return [
        Examination(f"{centre}{index}-{time}", f"{centre}{index}", centre, "", {}, None)
        for centre, count in counts.items()
        for index in range(count)
        for time in range(times)
    ]


@given(
    counts=st.dictionaries(st.sampled_from("ABCDE"), st.integers(4, 12), min_size=1),
    share=st.floats(0.05, 0.3),
    times=st.integers(1, 2),
    named=st.booleans(),
)
def test_nobody_is_in_two_places_and_order_does_not_matter(
    counts: dict[str, int], share: float, times: int, *, named: bool
) -> None:
    people = _people(counts, times)
    if not named:
        people = [Examination(e.id, e.person, "", "", {}, None) for e in people]
    rule = Division(sites=2, public_share=share)
    try:
        found = divide(people, rule)
    except DataError:
        # one site gives one public person only
        assert len(counts) == 1 or not named
        return
    parts: list[Sequence[Examination]] = [found.public, *found.sites.values()]
    persons = [{one.person for one in part} for part in parts]
    assert sum(map(len, persons)) == len(set().union(*persons))
    assert all(len(own) >= FEWEST for own in persons[1:])
    # all examinations of a person are where the person is
    assert all(len(part) == times * len(own) for part, own in zip(parts, persons, strict=True))
    assert divide(people[::-1], rule) == found


def test_a_whole_site_may_be_the_public_part() -> None:
    people = _people({"A": 5, "B": 6})
    found = divide(people, Division(public_site="B"))
    assert {one.centre for one in found.public} == {"B"}
    assert set(found.sites) == {"site-A"}
    with pytest.raises(ConfigError, match="no such site") as refusal:
        divide(people, Division(public_site="D"))
    assert "site-A, site-B" in refusal.value.seen


def test_a_mapping_gives_the_sites_and_small_ones_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "mapping.csv"
    rows = [("A0", "12"), ("A1", "12"), *((f"A{i}", "UPenn, PA") for i in range(2, 9))]
    rows += [("A9-0", "7"), ("A10", "7"), ("B0", "none of ours")]
    lines = ["patient,site", *(f'{name},"{site}"' for name, site in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    mapping = read_mapping(path)
    found = divide(_people({"A": 11}), Division(public_share=0.2), mapping)
    assert set(found.sites) == {"UPenn-PA", "others"}
    told = " ".join(found.rule)
    assert "mapping file" in told
    assert "others" in told
    assert "hash: the generator" in told
    with pytest.raises(DataError, match="mapping") as refusal:
        divide(_people({"Z": 9}), Division(), mapping)
    assert "nobody" in refusal.value.seen
    path.write_text("patient,site\nA0,1\nA0,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="mapping"):
        read_mapping(path)


def test_a_person_of_two_sites_is_refused() -> None:
    with pytest.raises(DataError, match="mapping") as refusal:
        divide(_people({"A": 9}, times=2), Division(), {"A0-0": "x", "A0-1": "y"})
    assert "at two sites" in refusal.value.seen


def test_too_few_persons_are_counted() -> None:
    with pytest.raises(DataError, match="too few") as refusal:
        divide(_people({"A": 2}), Division())
    assert "site-A 1" in refusal.value.seen


def test_a_table_names_files_below_the_folder(tmp_path: Path) -> None:
    _head(tmp_path / "Task1/AB/1ABA005")
    text = table_text(find_examinations(tmp_path, "synthrad").examinations, tmp_path, ("mr", "ct"))
    place = "Task1/AB/1ABA005"
    assert text.splitlines() == [
        "patient,subject,mr,ct,mask",
        f"1ABA005,1ABA005,{place}/mr.mha,{place}/ct.mha,{place}/mask.mha",
    ]


def test_phantoms_of_both_years_hold_the_same_volumes(tmp_path: Path) -> None:
    for year in ("2023", "2025"):
        write_official(tmp_path / year, "synthrad", year=year, persons=1, in_plane_mm=4.0)
        assert (tmp_path / year / "PHANTOM.json").is_file()
    with pytest.raises(DataError, match="phantom"):
        write_official(tmp_path / "2023", "brats")
    older = find_examinations(tmp_path / "2023", "synthrad").examinations
    newer = find_examinations(tmp_path / "2025", "synthrad").examinations
    assert [one.centre for one in older] == [one.centre for one in newer] == ["A", "B", "C"]
    for first, second in zip(older, newer, strict=True):
        for channel in ("mr", "ct"):
            a, b = read_volume(first.channels[channel]), read_volume(second.channels[channel])
            np.testing.assert_array_equal(a.voxels, b.voxels)
            np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)


def test_a_metaimage_keeps_voxels_and_place(tmp_path: Path) -> None:
    voxels = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    affine = np.array([[2.0, 0, 0, -7], [0, 0, -3, 5], [0, 1.5, 0, 11], [0, 0, 0, 1]])
    path = tmp_path / "one.mha"
    path.write_bytes(metaimage(voxels, affine))
    read = read_volume(path)
    place = read.affine @ [0, 0, 0, 1]
    index = np.linalg.inv(affine) @ place
    assert read.voxels[0, 0, 0] == voxels[tuple(np.rint(index[:3]).astype(int))]
    assert sorted(read.voxels.ravel()) == sorted(voxels.ravel())


def _simulation(*roots: Path) -> SimulationConfig:
    return SimulationConfig.from_data(
        {
            "name": "one",
            "data_statement": "PHANTOM or not",
            "generator": {"builtin": "phantom-t1n-t1c-t2w-t2f"},
            "sites": [
                {"name": f"s{index}", "data": {"layout": "synthrad", "root": str(root)}}
                for index, root in enumerate(roots)
            ],
            "plan": {
                "task": {"source": ["mr"], "target": "ct"},
                "privacy": {"mode": "none"},
            },
        },
        "test",
    )


def test_volumes_below_the_mark_of_phantoms_are_phantoms_wherever_they_are_named(
    tmp_path: Path,
) -> None:
    phantoms, real = tmp_path / "phantoms", tmp_path / "real"
    _head(phantoms / "Task1/HN/1HNA001")
    _head(real / "Task1/TH/1THA001")
    _touch(phantoms / "PHANTOM.json")
    for below in (phantoms, phantoms / "Task1", phantoms / "Task1/HN"):
        assert _simulation(below, phantoms).phantom
        place, is_phantom = _place_of(find_examinations(below, "synthrad").examinations)
        assert is_phantom
        assert place == phantoms / "Task1/HN"
    above = find_examinations(tmp_path, "synthrad", region="head-neck").examinations
    assert _place_of(above)[1]
    assert not _simulation(real, phantoms).phantom
    thorax = find_examinations(tmp_path, "synthrad", region="thorax").examinations
    assert not _place_of(thorax)[1]
    with pytest.raises(DataError, match="phantoms and real volumes"):
        _place_of([*above, *thorax])


@pytest.mark.parametrize("phantom", [True, False])
def test_published_figures_have_a_source_and_say_what_differs(*, phantom: bool) -> None:
    for benchmark, region in (("brats", ""), ("synthrad", "brain"), ("synthrad", "abdomen")):
        found = published(benchmark, "t2f", region, phantom=phantom)  # type: ignore[arg-type]  # the two words
        assert found.statement.startswith("PHANTOM") == phantom
        assert all(row.source and row.differs.endswith(".") for row in found.rows)
    figures = {row.low for row in published("synthrad", "ct", "brain", phantom=False).rows}
    assert {57.5, 64.8, 67.2, 67.5, 80.0, 102.0} == figures
    (cwdm, wfm) = published("brats", "t2f", "", phantom=False).rows
    assert (cwdm.low, cwdm.high, wfm.low) == (27.3, 29.7, 26.8)


def test_only_a_contrast_of_brats_can_be_missing() -> None:
    assert [check_missing(name) for name in BRATS] == list(BRATS)
    with pytest.raises(ConfigError, match="contrast") as refusal:
        check_missing("flair")
    assert "t2f (FLAIR)" in refusal.value.remedy
