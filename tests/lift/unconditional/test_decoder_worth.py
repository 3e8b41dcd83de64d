"""A decoder's way back from slices to latents, and whether a trained one is worth its place."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lift.config.decoder import DecoderCard, DecoderPretrainConfig
from lift.device import fix_threads
from lift.errors import ConfigError, DataError, GeneratorError
from lift.generator.card import CARD_FILE, WEIGHTS_FILE, read_card
from lift.generator.pretraining import CHECKPOINT_FILE
from lift.mixer.trajectory import slice_positions
from lift.tasks.unconditional.bundle import PROJECTION_FILE, STANDARDISATION_FILE
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import (
    features_of,
    plan_mapper,
    statistics_loss,
    sums_of,
    train_mapper_round,
)
from lift.tasks.unconditional.pretraining import PublicVolume, pretrain_decoder, read_public_volumes
from lift.tasks.unconditional.public_worth import MARGIN_DB, ceiling_psnr_db, check_worth
from tests.end_to_end.tiny_run import patient_name, write_nifti
from tests.lift.unconditional.tiny_decoder import (
    CHANNEL,
    CPU,
    pca_data,
    pretrain_data,
    tiny_plan,
    write_bodies,
)

FILES = (WEIGHTS_FILE, STANDARDISATION_FILE, PROJECTION_FILE, CARD_FILE)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> list[PublicVolume]:
    folder = tmp_path_factory.mktemp("unseen")
    data = pca_data(write_bodies(folder / "data", 31, 3))
    return read_public_volumes(DecoderPretrainConfig.from_data(data, "test"), folder)


@pytest.mark.parametrize("kind", ["decoder", "pca"])
def test_latents_of_a_volume_make_it_again_better_than_another_volumes_do(
    kind: str, unseen: list[PublicVolume], request: pytest.FixtureRequest
) -> None:
    decoder: FrozenDecoder = request.getfixturevalue(kind)
    one, other = (volume.voxels for volume in unseen[:2])
    latents = decoder.latents_of(one)
    assert latents.shape == (len(one), 6)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, decoder.latents_of(one))
    shared = decoder.card.network.volume_latents
    assert shared == (2 if kind == "pca" else 0)
    of_volume = latents[:, 6 - shared :]
    assert torch.equal(of_volume, of_volume[:1].expand_as(of_volume))
    with torch.no_grad():
        made = decoder(latents[None])[0, 0]
        resting = decoder(torch.zeros(1, len(one), 6))[0, 0]
    error = float((made - one).square().mean())
    assert error < 0.5 * float((resting - one).square().mean())
    depth = min(len(one), len(other))
    assert error < 0.5 * float((other[:depth] - one[:depth]).square().mean())


@pytest.mark.parametrize("kind", ["decoder", "pca"])
def test_independent_slices_share_the_grey_scale_of_their_volume_alone(
    kind: str, request: pytest.FixtureRequest
) -> None:
    decoder: FrozenDecoder = request.getfixturevalue(kind)
    own = 6 - decoder.card.network.volume_latents
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([decoder.draw_slices(50, generator) for _ in range(40)])
    assert drawn.shape == (40, 50, 6)
    assert torch.equal(drawn[..., own:], drawn[:, :1, own:].expand(-1, 50, -1))
    together = drawn[..., :own].mean(1).std(0)
    torch.testing.assert_close(together, torch.full((own,), 50**-0.5), atol=0.06, rtol=0)
    torch.testing.assert_close(drawn.std((0, 1)), torch.ones(6), atol=0.4, rtol=0)


def test_a_mapper_learns_through_a_pca_decoder(
    pca: FrozenDecoder, unseen: list[PublicVolume]
) -> None:
    plan = tiny_plan(pca, training={"steps": 3, "warmup_steps": 1})
    fix_threads(plan.threads)
    mapper = plan_mapper(plan, pca)
    noise = mapper.draw(2, torch.Generator().manual_seed(1))
    assert mapper(noise, slice_positions(12)).shape == (2, 12, 6)
    sums = sums_of([features_of([volume.body], pca.public) for volume in unseen], pca.public)
    loss = statistics_loss(plan, pca.public, sums)
    start = mapper.values()
    done = train_mapper_round(mapper, start, pca, loss, plan, round_index=1, site="a")
    assert any(not torch.equal(done.values[name], start[name]) for name in start)
    assert all(bool(torch.isfinite(value).all()) for value in done.values.values())


def test_the_order_of_public_volumes_and_patients_changes_nothing(
    decoder_bundle: Path, tmp_path: Path
) -> None:
    public = decoder_bundle.parent / "public"
    names = sorted(folder.name for folder in public.iterdir())
    data = pca_data(public)
    for order, listed in (("as they are", names), ("reversed", names[::-1])):
        rows = [f"{name},{public / name / f'{name}-{CHANNEL}.nii.gz'}" for name in listed]
        (tmp_path / order).mkdir()
        table = tmp_path / order / "table.csv"
        table.write_text("\n".join([f"patient,{CHANNEL}", *rows]) + "\n")
        data["cohorts"] = [{"layout": "table", "root": str(public), "table": str(table)}]
        config = DecoderPretrainConfig.from_data(data, "test")
        pretrain_decoder(config, tmp_path / order / "d", work=tmp_path / "work", device=CPU)
    for name in FILES:
        one, other = (tmp_path / order / "d" / name for order in ("as they are", "reversed"))
        assert one.read_bytes() == other.read_bytes()


def test_the_figure_of_a_pca_is_of_patients_that_its_fit_had_not(
    decoder_bundle: Path, tmp_path: Path
) -> None:
    public = decoder_bundle.parent / "public"
    cards = {}
    for axes, share in ((4, 0.1), (16, 0.1), (4, 0.0)):
        data = pca_data(public, network__axes=axes, validation_share=share)
        config = DecoderPretrainConfig.from_data(data, "test")
        folder = tmp_path / f"{axes}-{share}"
        cards[axes, share] = pretrain_decoder(config, folder, work=tmp_path / "w", device=CPU)
    few, many = (cards[axes, 0.1].validation_psnr_db for axes in (4, 16))
    assert few is not None
    assert many is not None
    assert many > few + 3
    assert cards[4, 0.1].pca_psnr_db == few
    # the shipped axes are of all patients either way
    assert cards[4, 0.0].fingerprint == cards[4, 0.1].fingerprint
    assert cards[4, 0.0].validation_psnr_db is None
    assert {card.trained_steps for card in cards.values()} == {0}


def test_a_trained_decoder_that_is_no_better_than_a_pca_is_refused_and_may_be_taken_all_the_same(
    decoder_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    public = decoder_bundle.parent / "public"
    folder, work = tmp_path / "decoder", tmp_path / "work"
    strict = pretrain_data(public, steps=4, allow_weaker_than_pca=False)
    with pytest.raises(GeneratorError) as caught:
        pretrain_decoder(
            DecoderPretrainConfig.from_data(strict, "test"), folder, work=work, device=CPU
        )
    assert not folder.exists()
    assert (work / CHECKPOINT_FILE).is_file()
    allowed = DecoderPretrainConfig.from_data(strict | {"allow_weaker_than_pca": True}, "test")
    steps: list[int] = []
    with caplog.at_level(logging.WARNING):
        card = pretrain_decoder(
            allowed, folder, work=work, device=CPU, report=lambda step, *_: steps.append(step)
        )
    assert steps == []  # the checkpoint that was kept is used
    assert card.weaker_than_pca
    assert card == read_card(folder)
    assert card.validation_psnr_db is not None
    assert card.pca_psnr_db is not None
    assert card.validation_psnr_db < card.pca_psnr_db
    for figure in (card.validation_psnr_db, card.pca_psnr_db):
        assert f"{figure:.2f} dB" in caught.value.seen
        assert f"{figure:.3f}" in caplog.text


def test_a_trained_decoder_that_is_better_is_accepted(tmp_path: Path) -> None:
    # one bright spot that moves: two numbers say all, and no two axes do
    x, y, z = np.meshgrid(*(np.arange(n) for n in (16, 24, 12)), indexing="ij")
    for index in range(20):
        ends = np.random.default_rng([5, index]).uniform((3, 3), (13, 21), (2, 2))
        places = ends[0] + (ends[1] - ends[0]) * z[..., None] / 11
        apart = (x - places[..., 0]) ** 2 + (y - places[..., 1]) ** 2
        name = patient_name(index)
        path = tmp_path / "public" / name / f"{name}-{CHANNEL}.nii.gz"
        write_nifti(path, 400 + 600 * np.exp(-apart / 8))
    data = pretrain_data(
        tmp_path / "public",
        allow_weaker_than_pca=False,
        network__latent=4,
        noise_variance=0.001,
        steps=1000,
        validation_share=0.2,
    )
    config = DecoderPretrainConfig.from_data(data, "test")
    card = pretrain_decoder(config, tmp_path / "decoder", work=tmp_path / "work", device=CPU)
    assert isinstance(card, DecoderCard)
    assert card.validation_psnr_db is not None
    assert card.pca_psnr_db is not None
    assert card.validation_psnr_db >= card.pca_psnr_db + MARGIN_DB
    assert not card.weaker_than_pca


def test_the_margin_is_needed_and_enough() -> None:
    assert not check_worth(20.25, 20.0, allow_weaker=False)
    assert check_worth(20.24, 20.0, allow_weaker=True)
    with pytest.raises(GeneratorError, match=r"20\.24 dB; a PCA with as many latents 20\.00 dB"):
        check_worth(20.24, 20.0, allow_weaker=False)


def test_without_held_out_patients_a_trained_decoder_cannot_show_its_worth(
    decoder_bundle: Path, tmp_path: Path
) -> None:
    data = pretrain_data(
        decoder_bundle.parent / "public", validation_share=0.0, allow_weaker_than_pca=False
    )
    config = DecoderPretrainConfig.from_data(data, "test")
    with pytest.raises(DataError, match="0 public patients are held out"):
        pretrain_decoder(config, tmp_path / "d", work=tmp_path / "w", device=CPU)
    shutil.rmtree(tmp_path / "w", ignore_errors=True)
    assert not (tmp_path / "d").exists()


def test_settings_of_the_other_kind_are_refused(decoder_bundle: Path) -> None:
    public = decoder_bundle.parent / "public"
    with pytest.raises(ConfigError, match="a PCA is not trained: leave out learning_rate, steps"):
        DecoderPretrainConfig.from_data(pca_data(public, steps=5, learning_rate=0.1), "test")
    with pytest.raises(ConfigError, match="network: the key 'name' is missing"):
        DecoderPretrainConfig.from_data(
            pca_data(public, network={"image": [24, 16], "pixel_mm": 4.0}), "test"
        )
    given = {flip: pca_data(public) | {"flip": flip} for flip in (True, False, None)}
    mirrors = {f: DecoderPretrainConfig.from_data(d, "test").mirrors for f, d in given.items()}
    assert mirrors == {True: True, False: False, None: False}
    assert DecoderPretrainConfig.from_data(pretrain_data(public), "test").mirrors


def test_the_ceiling_is_that_of_the_volumes_whatever_their_order(
    pca: FrozenDecoder, unseen: list[PublicVolume]
) -> None:
    errors = []
    volumes = [volume.voxels for volume in unseen]
    for voxels in volumes:
        made = pca(pca.latents_of(voxels)[None])[0, 0]
        errors.append(-10 * np.log10(float((made - voxels).double().square().mean())))
    found = ceiling_psnr_db(pca.network, volumes)
    assert found == pytest.approx(np.mean(errors), abs=0.01)
    assert found == ceiling_psnr_db(pca.network, volumes[::-1])
