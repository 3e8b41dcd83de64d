"""Public moments in a bundle: written, read, refused; and at other positions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lift.config.decoder import DecoderCard
from lift.config.plan import Plan
from lift.errors import ConfigError, GeneratorError
from lift.generator.card import CARD_FILE, builtin_bundle, read_card
from lift.tasks.registry import with_generator
from lift.tasks.unconditional.bundle import MOMENTS_FILE, check_public_files, load_decoder
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.moments import TrajectoryForm, form_of, gaussian_shapes
from lift.tasks.unconditional.private.worth import noise_warnings
from lift.tasks.unconditional.public_gaussian import fallback_of, public_gaussian, stretched
from lift.tasks.unconditional.public_moments import PublicMoments
from tests.lift.unconditional.tiny_decoder import CPU, plan_data, tiny_decoder

NOISE = {"mode": "stats-once", "delta": 1e-3, "public_patients": 60, "noise_multiplier": 2.0}
TIED = {"trajectory": "gaussian", "gaussian": {"positions": 12, "axes": 3, "tied": True}}


def noisy_plan(**changes: object) -> Plan:
    data = plan_data(privacy=NOISE, federation__rounds=0)
    data["unconditional"] = TIED
    return Plan.from_data({**data, **changes}, "test")


@pytest.fixture
def copy(pca_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pca_bundle, tmp_path / "copy"))


def edit_card(folder: Path, version: int, digest: str | None) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    card["format_version"] = version
    if digest is None:
        card["features"].pop("moments_digest", None)
    else:
        card["features"]["moments_digest"] = digest
    (folder / CARD_FILE).write_text(json.dumps(card))


def test_the_bundle_holds_the_moments_that_its_card_names(pca: FrozenDecoder) -> None:
    moments = pca.public.moments
    assert moments is not None
    assert moments.digest == pca.card.features.moments_digest
    assert pca.card.format_version == 2
    assert moments.patients == 20
    assert moments.latent == pca.card.network.latent
    # of a PCA the latents have variance 1 over public slices, the means' share included
    joint = moments.mean[:, list(moments.joint)].double()
    total = joint.square().mean(0) + moments.within.double().diagonal()[:-1]
    assert float(total.mean()) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "changed"])
def test_damaged_or_other_moments_are_refused(copy: Path, damage: str) -> None:
    path = copy / MOMENTS_FILE
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "other":
        path.write_bytes(safetensors.torch.save({"x": torch.zeros(2)}))
    elif damage == "changed":
        path.write_bytes(content)
        edit_card(copy, 2, "0" * 64)
    with pytest.raises(GeneratorError, match=MOMENTS_FILE):
        tiny_decoder(copy)


def test_an_older_bundle_still_loads_and_has_nothing_to_fall_back_on(copy: Path) -> None:
    edit_card(copy, 1, None)
    (copy / MOMENTS_FILE).unlink()
    old = tiny_decoder(copy)
    assert old.public.moments is None
    plan = with_generator(noisy_plan(), old)
    assert plan.unconditional is not None
    assert plan.unconditional.moments_digest is None
    assert "moments_digest" not in plan.unconditional.model_dump()
    assert fallback_of(plan, old, form_of(plan.unconditional.gaussian, old)) is None
    assert "no public moments" in noise_warnings(plan, old, ["a"])[0]
    # the version says whether there are any
    edit_card(copy, 2, None)
    with pytest.raises(GeneratorError, match="format 2 names public moments"):
        tiny_decoder(copy)


def test_a_plan_with_noise_names_the_moments_and_other_ones_are_refused(
    pca: FrozenDecoder, copy: Path
) -> None:
    plan = with_generator(noisy_plan(), pca)
    assert plan.unconditional is not None
    assert plan.unconditional.moments_digest == pca.card.features.moments_digest
    form = form_of(plan.unconditional.gaussian, pca)
    assert fallback_of(plan, pca, form) is not None
    edit_card(copy, 1, None)
    (copy / MOMENTS_FILE).unlink()
    for refuse in (check_public_files, lambda p, d: fallback_of(p, d, form)):
        with pytest.raises(ConfigError, match="other public moments"):
            refuse(plan, tiny_decoder(copy))
    # without noise a plan is what it was
    plain = with_generator(noisy_plan(privacy={"mode": "none"}), pca)
    assert plain.unconditional is not None
    assert plain.unconditional.moments_digest is None


@pytest.mark.parametrize("positions", [2, 5, 31, 32, 70])
def test_the_public_gaussian_has_any_plans_positions_and_layout(
    pca: FrozenDecoder, positions: int
) -> None:
    assert pca.public.moments is not None
    form = TrajectoryForm(positions, (0, 2, 4, 5), (3,), tied=True, rest=(1,), steady=3)
    found = public_gaussian(pca.public.moments, form)
    tensors = found.tensors()
    assert {name: tuple(t.shape) for name, t in tensors.items()} == gaussian_shapes(form)
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    mean = pca.public.moments.mean.double()
    for end in (0, -1):
        assert torch.allclose(found.mean[end], mean[end, [0, 2, 4, 5, 6, 3]])


def test_ties_at_the_same_distance_are_the_same_and_two_steps_are_one_of_two() -> None:
    random = torch.Generator().manual_seed(4)
    root = torch.randn(5, 5, generator=random).double()
    within = root @ root.mT
    axes, _ = torch.linalg.qr(torch.randn(5, 5, generator=random).double())
    half = torch.linalg.cholesky(within)
    levels, vectors = torch.linalg.eigh(within)
    half = (vectors * levels.sqrt()) @ vectors.mT
    chain = axes @ torch.tensor([0.95, 0.9, 0.8, 0.5, 0.3]).double().diag() @ axes.mT
    turn = torch.randn(5, 5, generator=random).double()
    following = half @ (chain + 0.02 * (turn - turn.mT)) @ half
    same = stretched(within, following, 1.0)
    assert torch.allclose(same[0], within)
    assert torch.allclose(same[1], following)
    plain = half @ chain @ half
    assert torch.allclose(stretched(within, plain, 2.0)[1], half @ chain @ chain @ half)
    # a negative control: the ties of one step are others
    assert not torch.allclose(stretched(within, plain, 2.0)[1], plain, atol=1e-2)


def test_the_built_in_decoder_has_public_moments_and_its_dry_run_warns_of_small_cohorts() -> None:
    folder = builtin_bundle("phantom-t1n-slices")
    card = read_card(folder)
    assert isinstance(card, DecoderCard)
    assert (folder / MOMENTS_FILE).stat().st_size < 30_000
    decoder = load_decoder(folder, expected_fingerprint=None, device=CPU)
    assert isinstance(decoder.public.moments, PublicMoments)
    few = with_generator(noisy_plan(privacy=NOISE | {"public_patients": 15}), decoder)
    many = with_generator(noisy_plan(privacy=NOISE | {"public_patients": 900}), decoder)
    (warning,) = noise_warnings(few, decoder, ["a", "b"])
    assert "30 patients at 2 sites" in warning
    assert noise_warnings(many, decoder, ["a", "b"]) == []
