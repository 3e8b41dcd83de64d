"""`lift evaluate --generated --real` on folders: its figures, its table, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

import lift.cli.evaluation
from lift.metrics.generated_files import body_box
from tests import wording
from tests.end_to_end.tiny_run import check_refusal, run_here
from tests.lift.metrics.smooth_volumes import Array, body

SHAPE = (16, 20, 18)
NEW = ["precision", "recall", "nearest_distance", "near_copies", "spectrum_z"]
METRICS = [
    *NEW,
    *(
        f"{kind}_{plane}"
        for kind in ("frechet", "mmd")
        for plane in ("axial", "coronal", "sagittal")
    ),
    *("tpr", "diversity", "ms_ssim", "nearest_ratio", "order_correlation"),
]


def write(
    path: Path, volume: Array, spacing_mm: Sequence[float] = (2.0, 2.0, 2.0), *, flip: bool = False
) -> None:
    """A (d, h, w) body as NIfTI; with `flip` its file is stored from the top downwards."""
    voxels = volume.transpose(2, 1, 0) * 800
    affine = np.diag([*spacing_mm, 1.0])
    if flip:
        voxels = voxels[:, :, ::-1]
        affine[2, 2] = -affine[2, 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), affine), path)


def write_set(folder: Path, first: int, count: int) -> Path:
    for index in range(count):
        # half the files are stored upside down: the reader turns them
        write(folder / f"v{index}.nii.gz", body(first + index, SHAPE), flip=index % 2 == 1)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that no test changes."""
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "generated", 1000, 6)
    write_set(root / "real", 0, 9)
    write_set(root / "training", 2000, 8)
    return root


@pytest.fixture
def own(folders: Path, tmp_path: Path) -> Path:
    """Folders to damage."""
    return Path(shutil.copytree(folders, tmp_path / "own"))


def words(root: Path, *, training: bool = True) -> list[str | Path]:
    roles = ["generated", "real", *(["training"] if training else [])]
    return ["evaluate", *(word for role in roles for word in (f"--{role}", root / role))]


def test_figures_of_both_columns_are_written_and_depend_on_no_file_name(
    folders: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "figures.json"
    done = run_here("lift", *words(folders), "-o", output)
    assert done.code == 0, done
    found = json.loads(output.read_text())
    assert json.loads(done.stdout) == found
    assert found["volumes"] == {"generated": 6, "real": 9, "training": 8}
    assert found["frechet_volumes"] == 4
    assert found["protocol"] == "mr"
    assert found["one_spacing"]
    for column in ("metrics", "real_split"):
        assert list(found[column]) == METRICS
        for entry in found[column].values():
            assert set(entry) == {"value", "n", "low", "high", "unit"}
    assert {entry["n"] for entry in found["metrics"].values()} == {6}
    # how near real volumes are to training ones is a figure of all nine
    for name, entry in found["real_split"].items():
        assert entry["n"] == (9 if name in {"nearest_distance", "near_copies"} else 4)
    # files stored downwards were turned: nothing is reversed
    assert found["quality"] == {"volumes": 6, "flat": 0, "reversed": 0}
    assert found["metrics"]["order_correlation"]["value"] > 0.7

    renamed = tmp_path / "renamed"
    for role in ("generated", "real", "training"):
        for index, path in enumerate(sorted((folders / role).iterdir(), reverse=True)):
            (renamed / role / "deep").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, renamed / role / "deep" / f"{index}.nii.gz")
    again = run_here("lift", *words(renamed))
    assert json.loads(again.stdout) == found


def test_copies_of_training_volumes_and_reversed_ones_are_exposed(own: Path) -> None:
    shutil.rmtree(own / "generated")
    for index in range(4):
        # copies in another unit, as a generator might write them
        write(own / "generated" / f"{index}.nii.gz", 3 * body(2000 + index, SHAPE)[::-1] + 0.0)
    done = run_here("lift", *words(own))
    found = json.loads(done.stdout)
    assert found["quality"]["reversed"] == 4
    shutil.rmtree(own / "generated")
    for index in range(4):
        write(own / "generated" / f"{index}.nii.gz", 3 * body(2000 + index, SHAPE))
    found = json.loads(run_here("lift", *words(own)).stdout)
    assert found["metrics"]["nearest_ratio"]["value"] < 0.1
    assert found["metrics"]["near_copies"]["value"] == 1
    nearest = (found[column]["nearest_distance"]["value"] for column in ("metrics", "real_split"))
    assert next(nearest) < 0.1 * next(nearest)
    assert found["quality"]["reversed"] == 0


def test_a_terminal_gets_a_table_with_real_against_real_beside(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    lift.cli.evaluation.evaluate(generated=folders / "generated", real=folders / "real")
    text = screen.getvalue()
    for word in ("generated", "real, by halves", "frechet_coronal", "order_correlation"):
        assert word in text
    assert "6 generated, 9 real volumes; real halves of 4" in " ".join(text.split())
    assert "Without --training" in text
    assert "nearest_ratio" not in text
    assert "no classifier is asked" in " ".join(text.split())
    rows = [line for line in text.splitlines() if "│" in line]
    # no row is broken over two lines; three figures are about training volumes
    assert len(rows) == len(METRICS) - 3


def test_large_sets_are_put_before_a_classifier_and_mixed_spacings_before_half_of_it(
    tmp_path: Path,
) -> None:
    write_set(tmp_path / "generated", 1000, 22)
    write_set(tmp_path / "real", 0, 40)
    done = run_here("lift", *words(tmp_path, training=False))
    assert done.code == 0, done
    found = json.loads(done.stdout)
    assert list(found["metrics"])[:2] == ["auc_content", "auc_texture"]
    for name in ("auc_content", "auc_texture"):
        for column, n in (("metrics", 22), ("real_split", 20)):
            entry = found[column][name]
            assert entry["n"] == n
            assert entry["low"] <= 0.5 <= entry["high"]
    for index in range(22):
        volume = body(1000 + index, SHAPE)[np.random.default_rng(index).permutation(16)]
        write(tmp_path / "generated" / f"v{index}.nii.gz", volume, (2.0, 2.0, 2.4))
    found = json.loads(run_here("lift", *words(tmp_path, training=False)).stdout)
    assert not found["one_spacing"]
    assert found["metrics"]["auc_content"]["value"] > 0.9
    assert not {"auc_texture", "spectrum_z"} & set(found["metrics"])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def four_dimensional(path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).random((9, 9, 9, 2)), np.eye(4)), path
    )


def constant(path: Path) -> None:
    write(path, np.full(SHAPE, 0.5))


def nearly_constant(path: Path) -> None:
    volume = np.full(SHAPE, 0.5)
    volume[3, 4, 5] = 1
    write(path, volume)


def coarse(path: Path) -> None:
    write(path, body(7, SHAPE), (2.0, 2.0, 9.0))


def thin(path: Path) -> None:
    write(path, body(7, SHAPE)[6:10])


@pytest.mark.parametrize("role", ["generated", "real"])
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (truncate, "damaged"),
        (four_dimensional, "3D"),
        (constant, "400"),
        (nearly_constant, "nearly all of it is one value"),
        (coarse, "9.00 and 2.00 mm along depth"),
        (thin, f"spans 4 {wording.SLICES_ALONG_DEPTH}"),
    ],
)
def test_a_bad_volume_is_refused_by_name_and_the_earlier_file_stays(
    own: Path, role: str, damage: Callable[[Path], None], word: str
) -> None:
    output = own / "figures.json"
    output.write_text("earlier", encoding="utf-8")
    damage(own / role / "v3.nii.gz")
    done = run_here("lift", *words(own, training=False), "-o", output)
    check_refusal(done, 3, names=["v3.nii.gz", word])
    assert done.stdout == ""
    assert output.read_text() == "earlier"


@pytest.mark.parametrize(
    ("role", "count", "word"),
    [("generated", 1, wording.TOO_FEW_VOLUMES[1]), ("real", 3, wording.TOO_FEW_VOLUMES[3])],
)
def test_too_small_a_set_is_refused(own: Path, role: str, count: int, word: str) -> None:
    for path in sorted((own / role).iterdir())[count:]:
        path.unlink()
    check_refusal(run_here("lift", *words(own)), 3, names=[word, str(own / role)])


@pytest.mark.parametrize("role", ["generated", "real", "training"])
def test_a_missing_or_empty_folder_is_refused(own: Path, role: str) -> None:
    shutil.rmtree(own / role)
    check_refusal(run_here("lift", *words(own)), 3, names=["no such folder", str(own / role)])
    (own / role).mkdir()
    (own / role / ".hidden.nii").write_bytes(b"")
    check_refusal(run_here("lift", *words(own)), 3, names=["no file of a volume", role])


def test_real_volumes_that_training_saw_are_refused(own: Path) -> None:
    shutil.copy(own / "training" / "v2.nii.gz", own / "real" / "seen.nii.gz")
    check_refusal(run_here("lift", *words(own)), 3, names=["seen.nii.gz", "held out"])


def subjects(path: Path, persons: dict[str, str]) -> Path:
    rows = [f"{file},{person}" for file, person in persons.items()]
    path.write_text("\n".join(["file,subject", *rows, ""]), encoding="utf-8")
    return path


def test_a_person_with_several_real_volumes_is_compared_once(folders: Path, tmp_path: Path) -> None:
    # three volumes of one person, one each of six others
    persons = {f"real/v{index}.nii.gz": f"p{max(index, 2)}" for index in range(9)}
    persons |= {f"training/v{index}.nii.gz": f"t{index // 2}" for index in range(8)}
    done = run_here("lift", *words(folders), "--subjects", subjects(tmp_path / "s.csv", persons))
    assert done.code == 0, done
    found = json.loads(done.stdout)
    assert found["volumes"] == {"generated": 6, "real": 7, "training": 8}
    assert found["persons"] == {"real": 7, "training": 4}
    assert (found["left_out"], found["note"]) == (2, "")
    alone = json.loads(run_here("lift", *words(folders)).stdout)
    assert alone["persons"] == {"real": 9, "training": 8}
    assert "each file is taken for a person" in alone["note"]


def test_a_person_who_is_in_training_is_not_held_out(folders: Path, tmp_path: Path) -> None:
    # one table for both folders: the same name would be the same person
    names = {f"v{index}.nii.gz": f"p{index}" for index in range(9)}
    done = run_here("lift", *words(folders), "--subjects", subjects(tmp_path / "s.csv", names))
    check_refusal(done, 3, names=["8 persons have volumes in both", "held out"])
    names |= {f"training/{name}": f"t-{person}" for name, person in names.items()}
    done = run_here("lift", *words(folders), "--subjects", subjects(tmp_path / "s.csv", names))
    assert done.code == 0, done


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ((), "--predicted"),
        (("--generated", "a"), "--real"),
        (("--real", "a"), "--generated"),
        (("--training", "a"), "--generated"),
        (("--generated", "a", "--real", "b", "--predicted", "c"), "--predicted"),
        (("--generated", "a", "--real", "b", "--mask", "c"), "--mask"),
        (("--predicted", "a", "--target", "b"), "--protocol"),
        (("--predicted", "a", "--protocol", "mr"), "--target"),
        (("--generated", "a", "--real", "b", "--protocol", "us"), "us"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    options: tuple[str, ...], word: str
) -> None:
    done = run_here("lift", "evaluate", *options)
    assert done.code == 2
    assert word in done.stderr
    assert "[config, exit 2]" in done.stderr
    assert done.stdout == ""


def test_the_help_names_both_ways() -> None:
    done = run_here("lift", "evaluate", "--help")
    assert done.code == 0
    for word in ("--predicted", "--generated", "--training", "compare two sets", "file by file"):
        assert word in " ".join(done.stdout.split())


def test_ct_volumes_are_compared_in_their_window(tmp_path: Path) -> None:
    for role, first in (("generated", 1000), ("real", 0)):
        for index in range(4):
            # body() * 800 is what `write` stores: -1024 to 976 HU here
            write(tmp_path / role / f"{index}.nii", 2.5 * body(first + index, SHAPE) - 1.28)
    done = run_here("lift", *words(tmp_path, training=False), "--protocol", "ct")
    assert done.code == 0, done
    assert json.loads(done.stdout)["protocol"] == "ct"


def test_the_body_box_passes_over_faint_noise_and_single_bright_voxels() -> None:
    values = np.random.default_rng(0).uniform(0, 0.04, (30, 40, 50)).astype(np.float32)
    values[5:20, 10:31, 8:44] = 0.6
    values[25, 3, 2] = 1
    assert body_box(values).tolist() == [[5, 19], [10, 30], [8, 43]]
    assert body_box(np.zeros((3, 4, 5), np.float32)).tolist() == [[0, 2], [0, 3], [0, 4]]
