"""The PCA decoder: what its numbers mean, that the data alone decides them, what it refuses."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.config.decoder import PcaDecoderConfig
from lift.errors import DataError
from lift.tasks.unconditional.decoder import build_decoder, decoder_fingerprint
from lift.tasks.unconditional.pca import PcaDecoder, fit_pca, inward_clip

HEIGHT, WIDTH = 20, 16


def settings(axes: int) -> PcaDecoderConfig:
    return PcaDecoderConfig(name="pca", axes=axes, image=(HEIGHT, WIDTH), pixel_mm=2.0)


def volumes(count: int, depth: int, seed: int = 0) -> list[Tensor]:
    """Smooth random volumes of as many brightnesses and contrasts, inside [0, 1]."""
    found = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        rough = torch.from_numpy(rng.standard_normal((1, 1, depth + 2, 8, 6)))
        smooth = torch.nn.functional.interpolate(rough, (depth, HEIGHT, WIDTH), mode="trilinear")
        middle, contrast = rng.uniform(0.4, 0.6), rng.uniform(0.05, 0.15)
        found.append((middle + contrast * smooth[0, 0]).clamp(0, 1).float())
    return found


def by_numpy(public: list[Tensor], axes: int) -> tuple[NDArray[np.float64], ...]:
    """Mean, scaled axes and style of a singular value decomposition."""
    arrays = [v.numpy().astype(np.float64) for v in public]
    slices = np.concatenate([((a - a.mean()) / a.std()).reshape(len(a), -1) for a in arrays])
    mean = slices.mean(0)
    _, values, vectors = np.linalg.svd(slices - mean, full_matrices=False)
    style = np.array([(a.mean(), np.log(a.std())) for a in arrays])
    scaled = vectors[:axes] * values[:axes, None] / math.sqrt(len(slices))
    return mean, scaled, np.stack([style.mean(0), style.std(0)], axis=1)


# fewer slices than pixels, and more of them: two covariances, one result
@pytest.mark.parametrize("count", [6, 30])
def test_it_is_what_a_singular_value_decomposition_gives(count: int) -> None:
    public = volumes(count, 15)
    decoder = fit_pca(settings(12), public)
    mean, axes, style = by_numpy(public, 12)
    np.testing.assert_allclose(decoder.mean, mean, atol=1e-3)
    np.testing.assert_allclose(decoder.style, style, rtol=1e-3)
    signs = np.sign((decoder.axes.numpy() * axes).sum(1, keepdims=True))
    np.testing.assert_allclose(decoder.axes, signs * axes, atol=2e-3)
    peaks = decoder.axes.numpy()[np.arange(12), np.abs(decoder.axes.numpy()).argmax(1)]
    assert peaks.min() > 0


def test_latents_have_mean_0_and_variance_1_over_public_slices_and_volumes() -> None:
    public = volumes(30, 15)
    decoder = fit_pca(settings(12), public)
    found = [decoder.latents_of(v) for v in public]
    scores = torch.cat(found)[:, :12]
    torch.testing.assert_close(scores.mean(0), torch.zeros(12), atol=0.01, rtol=0)
    torch.testing.assert_close(scores.std(0, unbiased=False), torch.ones(12), atol=0.01, rtol=0)
    style = torch.stack([latents[0, 12:] for latents in found])
    torch.testing.assert_close(style.mean(0), torch.zeros(2), atol=0.01, rtol=0)
    torch.testing.assert_close(style.std(0, unbiased=False), torch.ones(2), atol=0.01, rtol=0)


def test_the_grey_scale_is_in_the_last_two_latents_and_nowhere_else() -> None:
    decoder = fit_pca(settings(12), volumes(30, 15))
    (volume,) = volumes(1, 9, seed=5)
    latents = decoder.latents_of(volume)
    assert latents.shape == (9, 14)
    assert torch.equal(latents[:, 12:], latents[:1, 12:].expand(9, -1))
    other = decoder.latents_of(0.1 + 0.5 * volume)
    torch.testing.assert_close(other[:, :12], latents[:, :12], atol=1e-5, rtol=1e-5)
    middle, log_spread = (other - latents)[0, 12:].tolist()
    assert log_spread == pytest.approx(math.log(0.5) / float(decoder.style[1, 1]), rel=1e-4)
    expected = (0.1 - 0.5 * float(volume.mean())) / float(decoder.style[0, 1])
    assert middle == pytest.approx(expected, rel=1e-4)


def test_decoding_gives_the_projection_back_and_more_axes_a_nearer_one() -> None:
    public = volumes(30, 15)
    unseen = volumes(4, 15, seed=5)
    errors = []
    for axes in (4, 12, 24, 44):
        decoder = fit_pca(settings(axes), public)
        mean, scaled, _ = by_numpy(public, axes)
        unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
        found = []
        for volume in unseen:
            values = volume.numpy().astype(np.float64)
            plain = ((values - values.mean()) / values.std()).reshape(15, -1)
            near = mean + (plain - mean) @ unit.T @ unit
            expected = np.clip(values.mean() + values.std() * near, 0, 1).reshape(values.shape)
            made = decoder(decoder.latents_of(volume))[:, 0]
            np.testing.assert_allclose(made, expected, atol=2e-3)
            found.append(float((made - volume).square().mean()))
        errors.append(np.mean(found))
    assert all(more > 1.2 * less for more, less in pairwise(errors))


def test_slices_in_the_span_of_the_axes_come_back() -> None:
    public = volumes(3, 6)
    decoder = fit_pca(settings(17), public)  # as many as 18 slices have directions
    for volume in public:
        made = decoder(decoder.latents_of(volume))[:, 0]
        torch.testing.assert_close(made, volume, atol=1e-3, rtol=0)


def test_neither_the_order_of_volumes_nor_the_volumes_beside_one_change_a_bit() -> None:
    public = volumes(20, 11)
    mixed = random.Random(3).sample(public, len(public))
    assert not all(torch.equal(a, b) for a, b in zip(public, mixed, strict=True))
    one, other = (fit_pca(settings(12), each).state_dict() for each in (public, mixed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    # and a volume does matter
    fewer = fit_pca(settings(12), public[1:]).state_dict()
    assert not torch.equal(one["axes"], fewer["axes"])


def test_mirrored_slices_make_a_decoder_that_does_not_know_left_from_right() -> None:
    public = volumes(20, 11)
    plain, mirrored = (fit_pca(settings(12), public, mirror=m) for m in (False, True))
    images = [decoder.mean.view(HEIGHT, WIDTH) for decoder in (plain, mirrored)]
    before, after = (float((image - image.flip(1)).abs().max()) for image in images)
    assert before > 0.05
    assert after < 1e-3


def test_weights_fit_half_precision_and_the_fingerprint_knows_them_and_the_image() -> None:
    decoder = fit_pca(settings(12), volumes(20, 11))
    weights = decoder.state_dict()
    assert all(torch.equal(t, t.half().float()) for t in weights.values())
    fingerprint = decoder_fingerprint(decoder.config, weights)
    again = build_decoder(decoder.config)
    again.load_state_dict({name: t.half() for name, t in weights.items()})
    assert decoder_fingerprint(again.config, again.state_dict()) == fingerprint
    for name in weights:
        changed = weights | {name: weights[name] * 1.01}
        assert decoder_fingerprint(decoder.config, changed) != fingerprint
    finer = decoder.config.model_copy(update={"pixel_mm": 1.0})
    assert decoder_fingerprint(finer, weights) != fingerprint


def test_the_gradient_is_that_of_finite_differences_where_nothing_is_clipped() -> None:
    decoder = fit_pca(settings(6), volumes(20, 11)).double()
    latents = (0.3 * torch.randn(3, 8, generator=torch.Generator().manual_seed(1))).double()
    made = decoder(latents)
    assert 0 < float(made.min()) < float(made.max()) < 1
    assert torch.autograd.gradcheck(decoder, (latents.requires_grad_(),))


def test_pixels_that_are_clipped_are_drawn_back_inside_and_never_further_out() -> None:
    values = torch.tensor([-0.5, -0.5, 0.5, 1.5, 1.5], requires_grad=True)
    clipped = inward_clip(values, 0.0, 1.0)
    assert clipped.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    (gradient,) = torch.autograd.grad(clipped @ torch.tensor([-1.0, 1.0, 2.0, -1.0, 1.0]), [values])
    assert gradient.tolist() == [-1.0, 0.0, 2.0, 0.0, 1.0]
    # the same one by one, as per-patient gradients are taken
    upward = torch.func.vmap(torch.func.grad(lambda value: inward_clip(value, 0.0, 1.0)))(values)
    assert upward.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_latents_far_outside_the_prior_give_slices_and_find_their_way_back() -> None:
    decoder = fit_pca(settings(6), volumes(20, 11))
    goal = decoder(torch.zeros(1, 8))
    latents = torch.full((1, 8), 200.0, requires_grad=True)
    assert bool(torch.isfinite(decoder(latents)).all())
    latents = torch.tensor([[0.0] * 6 + [20.0, 0.0]], requires_grad=True)
    # white: a plain clamp has no gradient here
    assert float(decoder(latents).detach().min()) == 1.0
    optimiser = torch.optim.Adam([latents], lr=0.3)
    for _ in range(200):
        loss = (decoder(latents) - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1e-3


def test_a_flat_volume_has_finite_latents_and_comes_back() -> None:
    decoder = fit_pca(settings(6), volumes(20, 11))
    latents = decoder.latents_of(torch.full((4, HEIGHT, WIDTH), 0.25))
    assert bool(torch.isfinite(latents).all())
    torch.testing.assert_close(
        decoder(latents), torch.full((4, 1, HEIGHT, WIDTH), 0.25), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("public", "seen"),
    [
        (volumes(3, 6), "18 public slices vary in 17 directions; 18 are needed"),
        (volumes(1, 6) * 9, "54 public slices vary in 5 directions; 18 are needed"),
        ([torch.full((6, HEIGHT, WIDTH), 0.5)] * 9, "vary in 0 directions"),
    ],
    ids=["few", "copies", "flat"],
)
def test_more_axes_than_the_slices_have_directions_are_refused(
    public: list[Tensor], seen: str
) -> None:
    with pytest.raises(DataError) as caught:
        fit_pca(settings(18), public)
    assert seen in caught.value.seen
    assert caught.value.where == "network.axes"


def test_volumes_of_one_brightness_leave_a_scale_to_others() -> None:
    alike = [(v - v.mean()) / v.std(unbiased=False) * 0.1 + 0.5 for v in volumes(20, 11)]
    decoder: PcaDecoder = fit_pca(settings(6), alike)
    assert float(decoder.style[:, 1].min()) > 0
    latents = decoder.latents_of(alike[0] + 0.1)
    assert bool(torch.isfinite(latents).all())
    assert float(decoder(latents).mean()) == pytest.approx(float(alike[0].mean()) + 0.1, abs=0.01)
