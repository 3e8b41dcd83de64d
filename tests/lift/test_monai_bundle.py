"""Generator and mixer as a MONAI bundle: MONAI's own parser reads it and gives the same volume."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import safetensors.torch
import torch
from monai.bundle import ConfigParser

from lift.files import file_digest
from lift.generator.bundle import save_bundle
from lift.mixer.curves import ChosenCurves
from lift.mixer.finished import FinishedMixer, read_mixer, write_mixer
from lift.tasks.paired.choice import Use
from lift.tasks.paired.contrast import CURVES_FILE, write_site_curves
from tests import wording
from tests.end_to_end.tiny_run import check_refusal, run_here, torch_as_before
from tests.lift.mixer_cases import TAPS
from tests.lift.small_world import (
    SOURCES,
    random_mixer,
    small_generator,
    small_plan,
    write_brats_patient,
)
from tests.lift.test_translation import CURVES, FITS_ALL, oblique
from tests.release.made import list_files

GENERATOR = small_generator()
PLAN = small_plan(generator=GENERATOR)


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    with torch_as_before():
        yield


@dataclass(frozen=True)
class World:
    """A finished mixer, its generator's bundle, and one patient."""

    mixer: Path
    generator: Path
    inputs: dict[str, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    save_bundle(folder / "generator", GENERATOR.network, GENERATOR.card)
    values = random_mixer(PLAN, GENERATOR).values()
    finished = FinishedMixer(values, TAPS, PLAN, (FITS_ALL,), phantom=True)
    write_mixer(folder / "run" / "mixer.safetensors", finished)
    inputs = write_brats_patient(folder / "cohort", channels=SOURCES, affine=oblique())
    return World(folder / "run", folder / "generator", inputs)


def export(world: World, output: Path) -> Path:
    done = run_here(
        "lift", "export-bundle", world.mixer, "-o", output, "--generator", world.generator
    )
    assert (done.code, done.stdout) == (0, f"{output}\n"), done
    return output


def translated(world: World, output: Path, *options: str | Path) -> bytes:
    words = [f"{name}={path}" for name, path in world.inputs.items()]
    done = run_here("lift", "translate", *words, "-o", output, "--device", "cpu", *options)
    assert done.code == 0, done
    return voxels(output)


def voxels(path: Path) -> bytes:
    image = nibabel.load(path)
    data = np.asanyarray(image.dataobj)
    assert data.std() > 0
    return bytes(data.tobytes()) + bytes(np.asarray(image.affine).tobytes())


def parsed(folder: Path, **changes: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.read_meta(folder / "configs" / "metadata.json")
    for key, value in {"bundle_root": str(folder), "device": "cpu", **changes}.items():
        parser[key] = value
    return parser


@pytest.mark.parametrize("with_curves", [False, True])
def test_monais_parser_gives_the_volume_of_lift_translate_bit_by_bit(
    tmp_path: Path, world: World, with_curves: bool
) -> None:
    options: tuple[str | Path, ...] = ("--mixer", world.mixer, "--generator", world.generator)
    curves = None
    if with_curves:
        curves = tmp_path / CURVES_FILE
        write_site_curves(curves, ChosenCurves(CURVES, None, {}), Use(), {}, PLAN)
        options = (*options, "--curves", curves)
    expected = translated(world, tmp_path / "expected.nii.gz", *options)
    folder = export(world, tmp_path / "bundle")
    output = tmp_path / "found.nii.gz"
    parser = parsed(
        folder,
        inputs={name: str(path) for name, path in world.inputs.items()},
        output=str(output),
        curves=None if curves is None else str(curves),
    )
    (done,) = parser.get_parsed_content("run")
    assert done.method == "mixer"
    assert voxels(output) == expected
    # the control: without the mixer it is another volume
    changed = parser.get_parsed_content("translator")
    changed._finished = replace(
        changed._finished, values={n: 0 * t for n, t in changed._finished.values.items()}
    )
    changed.translate(world.inputs, output, curves=curves)
    assert voxels(output) != expected


def test_the_commands_on_the_model_card_work(tmp_path: Path, world: World) -> None:
    expected = translated(
        world, tmp_path / "a.nii.gz", "--mixer", world.mixer, "--generator", world.generator
    )
    folder = export(world, tmp_path / "bundle")
    card = (folder / "docs" / "README.md").read_text()
    python = card.partition("```python\n")[2].partition("```")[0]
    ast.parse(python)
    models = folder / "models"
    assert "--mixer BUNDLE/models/mixer.safetensors --generator BUNDLE/models/generator" in card
    again = translated(
        world,
        tmp_path / "b.nii.gz",
        *("--mixer", models / "mixer.safetensors", "--generator", models / "generator"),
    )
    assert again == expected
    for name, path in world.inputs.items():
        python = python.replace(f'"{name}.nii.gz"', f'"{path}"')
    python = python.replace('"t2f.nii.gz"', f'"{tmp_path / "c.nii.gz"}"')
    exec(python.replace("BUNDLE", str(folder)), {})  # noqa: S102  # our own card, as a reader runs it
    assert voxels(tmp_path / "c.nii.gz") == expected


def test_card_and_metadata_name_what_the_bundle_holds(tmp_path: Path, world: World) -> None:
    folder = export(world, tmp_path / "bundle")
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    ours = metadata["lift"]
    mixer = folder / "models" / "mixer.safetensors"
    assert ours["generator_fingerprint"] == GENERATOR.fingerprint
    assert ours["generator_licence"] == "Apache-2.0"
    assert ours["mixer_sha256"] == file_digest(mixer) == file_digest(world.mixer / mixer.name)
    assert ours["plan_digest"] == PLAN.digest()
    assert (ours["synthetic"], ours["phantom"]) == (True, True)
    assert "no release" in ours["audit"]
    for key in ("version", "monai_version", "pytorch_version", "numpy_version", "task"):
        assert metadata[key]
    assert set(metadata["network_data_format"]["inputs"]) == set(SOURCES)
    card = (folder / "docs" / "README.md").read_text()
    for word in (
        *(GENERATOR.fingerprint, "Apache-2.0", ours["mixer_sha256"], PLAN.digest(), *SOURCES),
        *("t2f", "SYNTHETIC", "**For:**", "**Not for:**", "phantom", "none: random weights"),
    ):
        assert word in card


def test_a_mixer_that_is_not_marked_as_phantom_is_not_called_one(
    tmp_path: Path, world: World
) -> None:
    finished = replace(read_mixer(world.mixer), phantom=False)
    write_mixer(tmp_path / "run" / "mixer.safetensors", finished)
    folder = export(replace(world, mixer=tmp_path / "run"), tmp_path / "bundle")
    card = (folder / "docs" / "README.md").read_text()
    assert "(phantom) volumes alone" not in card
    assert "hospital" not in card
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["lift"]["phantom"] is False


def test_the_bundle_is_data_and_names_one_class(tmp_path: Path, world: World) -> None:
    folder = export(world, tmp_path / "bundle")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert found == [
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "models/generator/generator.json",
        "models/generator/weights.safetensors",
        "models/mixer.safetensors",
    ]
    config = (folder / "configs" / "inference.json").read_text()
    assert config.count("_target_") == 1
    assert json.loads(config)["translator"]["_target_"] == "lift.Translator"


def test_foreign_words_stay_text_on_the_card(tmp_path: Path, world: World) -> None:
    generator = tmp_path / "generator"
    card = GENERATOR.card.model_copy(
        update={"licence": "a | b `<script>` [x](javascript:1)\n# Safe", "training_data": "\x1b[2J"}
    )
    save_bundle(generator, GENERATOR.network, card)
    folder = export(replace(world, generator=generator), tmp_path / "bundle")
    text = (folder / "docs" / "README.md").read_text()
    assert "| licence of the generator | `a \\| b '<script>' [x](javascript:1)\\n# Safe` |" in text
    assert "| generator trained on | `\\x1b[2J` |" in text


def test_an_earlier_export_is_replaced_and_another_folder_is_not(
    tmp_path: Path, world: World
) -> None:
    folder = export(world, tmp_path / "bundle")
    config = folder / "configs" / "inference.json"
    before = config.read_bytes()
    config.write_text("damaged")
    export(world, folder)
    assert config.read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    done = run_here(
        *("lift", "export-bundle", world.mixer, "-o", tmp_path / "mine"),
        *("--generator", world.generator),
    )
    check_refusal(done, 3, names=["thesis.txt"])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_export_that_broke_off_has_no_config(tmp_path: Path, world: World) -> None:
    folder = export(world, tmp_path / "bundle")
    card = folder / "docs" / "README.md"
    card.unlink()
    (card / "in the way").mkdir(parents=True)
    done = run_here(
        "lift", "export-bundle", world.mixer, "-o", folder, "--generator", world.generator
    )
    check_refusal(done, 3, names=["README.md"])
    assert not (folder / "configs" / "inference.json").exists()


def test_another_generator_is_refused_at_the_export_and_at_the_use(
    tmp_path: Path, world: World
) -> None:
    other = small_generator(seed=9)
    save_bundle(tmp_path / "other", other.network, other.card)
    done = run_here(
        *("lift", "export-bundle", world.mixer, "-o", tmp_path / "bundle"),
        *("--generator", tmp_path / "other"),
    )
    check_refusal(done, 3, names=["fingerprint"])
    assert not (tmp_path / "bundle").exists()
    folder = export(world, tmp_path / "bundle")
    save_bundle(folder / "models" / "generator", other.network, other.card)
    with pytest.raises(RuntimeError) as caught:
        parsed(folder).get_parsed_content("translator")
    assert "fingerprint" in str(caught.value.__cause__)


def test_the_card_says_what_a_release_says_of_its_audits(tmp_path: Path, world: World) -> None:
    folder = tmp_path / "release"
    write_mixer(folder / "mixer.safetensors", read_mixer(world.mixer))
    (folder / "release.json").write_text(json.dumps({"audit_statement": wording.UNAUDITED}))
    list_files(folder, {})
    bundle = export(replace(world, mixer=folder), tmp_path / "bundle")
    card = (bundle / "docs" / "README.md").read_text()
    assert f"| audit | `{wording.UNAUDITED}` |" in card
    for text in ("[]", "{", "{}"):
        (folder / "release.json").write_text(text)
        list_files(folder)
        card = (export(replace(world, mixer=folder), bundle) / "docs" / "README.md").read_text()
        assert "| audit | `not stated` |" in card
    (folder / "release.json").write_text(json.dumps({"audit_statement": "audited"}))
    done = run_here(
        *("lift", "export-bundle", folder, "-o", tmp_path / "other"),
        *("--generator", world.generator),
    )
    check_refusal(done, 9, names=["release.json"])
    assert not (tmp_path / "other").exists()


def test_weights_of_the_bundle_open_as_safetensors(tmp_path: Path, world: World) -> None:
    folder = export(world, tmp_path / "bundle")
    tensors = safetensors.torch.load_file(folder / "models" / "generator" / "weights.safetensors")
    own = GENERATOR.network.state_dict()
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in own)
