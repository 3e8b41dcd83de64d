"""A decoder's bundle: written, read, refused; pre-training resumes bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lift.config.decoder import DecoderCard, DecoderPretrainConfig, SliceDecoderConfig
from lift.config.plan import PreprocessingPlan, TaskPlan
from lift.device import fix_threads
from lift.errors import ConfigError, DataError, GeneratorError
from lift.generator.bundle import load_bundle
from lift.generator.card import CARD_FILE, WEIGHTS_FILE, check_task, read_card
from lift.tasks.registry import load_generator
from lift.tasks.unconditional.bundle import (
    PROJECTION_FILE,
    STANDARDISATION_FILE,
    check_public_files,
    load_decoder,
)
from lift.tasks.unconditional.decoder import FrozenDecoder, SliceDecoder
from lift.tasks.unconditional.pretraining import pretrain_decoder, read_public_volumes
from tests import wording
from tests.lift.unconditional.tiny_decoder import (
    CPU,
    pretrain_data,
    tiny_plan,
    write_bodies,
)


@pytest.fixture(params=["decoder_bundle", "pca_bundle"], ids=["trained", "pca"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A bundle of either kind, to damage."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "copy"))


def load(folder: Path) -> FrozenDecoder:
    return load_decoder(folder, expected_fingerprint=None, device=CPU)


def test_what_is_written_is_read(copy: Path) -> None:
    card = read_card(copy)
    assert isinstance(card, DecoderCard)
    decoder = load_generator(copy, expected_fingerprint=card.fingerprint, device=CPU)
    assert isinstance(decoder, FrozenDecoder)
    assert decoder.fingerprint == card.fingerprint
    assert decoder.public.projection.digest == card.features.projection_digest
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    assert card.body_length_mm == pytest.approx(30, abs=4)
    slices = decoder(torch.zeros(2, 3, 6))
    assert slices.shape == (2, 1, 3, 24, 16)


@pytest.mark.parametrize("kind", ["decoder", "pca"])
def test_a_slice_does_not_depend_on_its_batch(kind: str, request: pytest.FixtureRequest) -> None:
    decoder: FrozenDecoder = request.getfixturevalue(kind)
    latents = torch.randn(1, 16, 6, generator=torch.Generator().manual_seed(1))
    whole = decoder(latents)
    alone = torch.cat([decoder(latents[:, i : i + 1]) for i in range(16)], dim=2)
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["decoder", "pca"])
def test_a_standard_normal_vector_is_a_likely_slice(
    kind: str, decoder_bundle: Path, request: pytest.FixtureRequest
) -> None:
    decoder: FrozenDecoder = request.getfixturevalue(kind)
    config = DecoderPretrainConfig.from_data(
        pretrain_data(decoder_bundle.parent / "public"), "test"
    )
    real = torch.cat(
        [v.slices for v in read_public_volumes(config, decoder_bundle.parent / "again")]
    )
    latents = torch.randn(1, 300, 6, generator=torch.Generator().manual_seed(1))
    made = decoder(latents)[0, 0]
    # neither collapsed to one slice nor outside of what slices are
    assert float(made.mean()) == pytest.approx(float(real.mean()), abs=0.1)
    assert float(made.std(0).mean()) > 0.4 * float(real.std(0).mean())


@pytest.mark.parametrize("layers", ["dense", "convolutional"])
def test_both_forms_of_decoder_give_the_image(layers: str) -> None:
    config = SliceDecoderConfig.from_data(
        {"layers": layers, "latent": 5, "hidden": [8, 12], "image": [32, 24], "pixel_mm": 1.0},
        "test",
    )
    with torch.no_grad():
        made = SliceDecoder(config)(torch.randn(3, 5))
    assert made.shape == (3, 1, 32, 24)
    assert float(made.min()) > 0
    assert float(made.max()) < 1


@pytest.mark.parametrize("name", [WEIGHTS_FILE, STANDARDISATION_FILE, PROJECTION_FILE, CARD_FILE])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_bundle_is_refused(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "other":
        path.write_bytes(safetensors.torch.save({"x": torch.zeros(2)}))
    with pytest.raises(GeneratorError) as caught:
        load(copy)
    assert str(copy) in caught.value.where
    assert caught.value.remedy


def test_changed_weights_and_another_fingerprint_are_refused(copy: Path) -> None:
    with pytest.raises(GeneratorError, match=wording.PLAN_SAYS):
        load_decoder(copy, expected_fingerprint="0" * 64, device=CPU)
    tensors = safetensors.torch.load_file(copy / WEIGHTS_FILE)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    (copy / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(GeneratorError, match=wording.CARD_SAYS):
        load(copy)


def test_public_files_of_another_bundle_are_refused(copy: Path) -> None:
    card = json.loads((copy / CARD_FILE).read_text())
    card["features"]["encoder_seed"] += 1
    (copy / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(GeneratorError, match="do not belong together"):
        load(copy)
    card["features"]["encoder_seed"] -= 1
    card["features"]["projection_digest"] = "0" * 64
    (copy / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(GeneratorError, match=PROJECTION_FILE):
        load(copy)


def test_bundles_of_the_other_kind_are_refused(
    decoder_bundle: Path, decoder: FrozenDecoder
) -> None:
    with pytest.raises(GeneratorError, match="kind unconditional"):
        load_bundle(decoder_bundle, expected_fingerprint=None, device=CPU)
    plan = tiny_plan(decoder)
    check_public_files(plan, decoder)
    unconditional = plan.unconditional
    assert unconditional is not None
    other = unconditional.model_copy(update={"projection_digest": "0" * 64})
    with pytest.raises(ConfigError, match="another public projection"):
        check_public_files(plan.model_copy(update={"unconditional": other}), decoder)
    with pytest.raises(ConfigError, match="from nothing"):
        check_task(decoder.card, TaskPlan(source=("t2w",), target="t1n"), PreprocessingPlan())
    with pytest.raises(ConfigError, match="coronal"):
        check_task(
            decoder.card,
            TaskPlan(kind="unconditional", target="t1n"),
            PreprocessingPlan(plane="coronal"),
        )


def test_pretraining_that_was_interrupted_gives_the_same_bundle(
    decoder_bundle: Path, tmp_path: Path
) -> None:
    short = pretrain_data(decoder_bundle.parent / "public", steps=6, checkpoint_steps=2)
    config = DecoderPretrainConfig.from_data(short, "test")
    fix_threads(1)
    whole = pretrain_decoder(config, tmp_path / "a", work=tmp_path / "wa", device=CPU)

    def kill(step: int, total: int, loss: float) -> None:
        del total, loss
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_decoder(config, tmp_path / "b", work=tmp_path / "wb", device=CPU, report=kill)
    again = pretrain_decoder(config, tmp_path / "b", work=tmp_path / "wb", device=CPU)
    assert again == whole
    names = (WEIGHTS_FILE, STANDARDISATION_FILE, PROJECTION_FILE, CARD_FILE)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_patient_or_too_few_for_the_public_files_are_refused(tmp_path: Path) -> None:
    public = write_bodies(tmp_path / "one", 1, 1)
    config = DecoderPretrainConfig.from_data(pretrain_data(public), "test")
    with pytest.raises(DataError, match="1 patient; at least 2"):
        pretrain_decoder(config, tmp_path / "b", work=tmp_path / "w", device=CPU)
    write_bodies(public, 1, 3)
    few = DecoderPretrainConfig.from_data(pretrain_data(public, steps=2, windows=2), "test")
    with pytest.raises(DataError, match="feature vectors; at least"):
        pretrain_decoder(few, tmp_path / "b", work=tmp_path / "w", device=CPU)
    assert not (tmp_path / "b" / CARD_FILE).exists()
