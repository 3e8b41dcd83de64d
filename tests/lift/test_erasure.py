"""Whoever is taken out of a site's data leaves the site's cache at the next opening."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lift.config.cohort import BratsData
from lift.config.site import CacheSettings, SiteSettings
from lift.errors import DataError
from lift.files import write_json
from lift.generator.features import FeatureCache, files_name
from lift.generator.networks import FrozenGenerator
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.site_cohort import SiteCohort, open_cohort
from tests.lift.small_world import small_generator, small_plan, write_brats_patient

PATIENTS = 3


@pytest.fixture(scope="module")
def generator() -> FrozenGenerator:
    return small_generator()


def patients_in(root: Path, first: int = 0) -> Path:
    for index in range(first, first + PATIENTS):
        write_brats_patient(root, f"BraTS-GLI-{index:05d}-000", seed=index)
    return root


def opened(
    generator: FrozenGenerator, root: Path, folder: Path, *, name: str = "north", seed: int = 0
) -> SiteCohort:
    """A cohort; `folder` is the cache's own place, or the work folder's."""
    cache = CacheSettings(folder=folder) if folder.name == "shared" else CacheSettings()
    settings = SiteSettings(name=name, data=BratsData(root=root), cache=cache, device="cpu")
    plan = small_plan(generator=generator).model_copy(update={"seed": seed})
    return open_cohort(settings, plan, generator, plan_mixer(plan, generator), work=folder)


def entries(folder: Path) -> set[str]:
    return {card.parent.name for card in folder.glob("**/entry.json")}


def test_a_deleted_patient_leaves_the_cache(generator: FrozenGenerator, tmp_path: Path) -> None:
    root, work = patients_in(tmp_path / "data"), tmp_path / "work"
    opened(generator, root, work)
    before = entries(work)
    assert len(before) == PATIENTS
    # whoever is still there is not computed again
    opened(generator, root, work, seed=5)
    assert entries(work) == before

    shutil.rmtree(root / "BraTS-GLI-00001-000")
    cohort = opened(generator, root, work, seed=5)
    assert len(cohort.patients) == PATIENTS - 1
    assert entries(work) < before
    assert len(entries(work)) == PATIENTS - 1
    assert "00001" not in (work / "split.json").read_text()


def test_a_changed_volume_s_old_images_leave_it_too(
    generator: FrozenGenerator, tmp_path: Path
) -> None:
    root, work = patients_in(tmp_path / "data"), tmp_path / "work"
    opened(generator, root, work)
    before = entries(work)
    shutil.rmtree(root / "BraTS-GLI-00001-000")
    write_brats_patient(root, "BraTS-GLI-00001-000", seed=77)
    opened(generator, root, work)
    assert len(entries(work)) == PATIENTS
    assert len(entries(work) & before) == PATIENTS - 1


def test_the_last_patient_leaves_it(generator: FrozenGenerator, tmp_path: Path) -> None:
    root, work = patients_in(tmp_path / "data"), tmp_path / "work"
    opened(generator, root, work)
    away = root.rename(tmp_path / "away")
    # a folder that is not mounted says nothing of its patients
    with pytest.raises(DataError):
        opened(generator, root, work)
    assert len(entries(work)) == PATIENTS
    for folder in away.iterdir():
        shutil.rmtree(folder)
    away.rename(root)
    with pytest.raises(DataError, match="no patient"):
        opened(generator, root, work)
    assert entries(work) == set()


def test_sites_that_share_a_folder_keep_each_other_s(
    generator: FrozenGenerator, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    north, south = patients_in(tmp_path / "n"), patients_in(tmp_path / "s", PATIENTS)
    opened(generator, north, shared)
    opened(generator, south, shared, name="south")
    assert len(entries(shared)) == 2 * PATIENTS
    shutil.rmtree(south / f"BraTS-GLI-{PATIENTS:05d}-000")
    opened(generator, north, shared)
    assert len(entries(shared)) == 2 * PATIENTS
    opened(generator, south, shared, name="south")
    assert len(entries(shared)) == 2 * PATIENTS - 1


def test_an_entry_that_names_nobody_goes(tmp_path: Path) -> None:
    for name in ("old", "damaged"):
        (tmp_path / name).mkdir()
    write_json(tmp_path / "old" / "entry.json", {"arrays": {}, "slice_spacing_mm": 1.0})
    (tmp_path / "damaged" / "entry.json").write_text("{")
    cache = FeatureCache(tmp_path, largest_gb=1.0)
    assert cache.forget_all_but({files_name(["a"])}, owner="north") == 2
    assert list(tmp_path.iterdir()) == []
