"""Volumes of a stated grey scale: the Gaussian's own condition, and who may know a site's style."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.config.plan import Plan
from lift.errors import ConfigError
from lift.mixer.gaussian import GaussianNoise, GaussianTrajectory
from lift.tasks.registry import with_generator
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import plan_mapper, settings_of
from lift.tasks.unconditional.moments import TrajectorySums, fit_gaussian, form_of, patient_moments
from lift.tasks.unconditional.sampling import latent_mapper, volume_latents, write_series
from lift.tasks.unconditional.style import (
    RIDGE,
    named_styles,
    site_style,
    stated_style,
    styles_of,
    under_style,
)
from lift.tasks.unconditional.view import Wanted
from tests.lift.unconditional.tiny_decoder import plan_data, tiny_plan

FORMS = {
    "chain": {"positions": 4, "axes": 3},
    "own chains": {"positions": 4, "axes": 2},
    "whole": {"positions": 4, "covariance": "sketch", "columns": 12},
}
SITES = {"east": 0.8, "west": -0.9}
PATIENTS = 24


def styled_plan(pca: FrozenDecoder, form: str, **changes: object) -> Plan:
    data: dict[str, object] = {
        "unconditional__trajectory": "gaussian",
        "unconditional__gaussian": FORMS[form],
        "unconditional__site_styles": True,
        "federation__rounds": 0,
    }
    return tiny_plan(pca, **(data | changes))


def sums_by_site(plan: Plan, pca: FrozenDecoder) -> dict[str, TrajectorySums]:
    """Random trajectories whose content is tied to their style, of sites of other styles."""
    form = form_of(settings_of(plan).gaussian, pca)
    found = {}
    for site, middle in SITES.items():
        random = torch.Generator().manual_seed(len(site) + int(10 * middle))
        total = TrajectorySums.zero(form)
        for _ in range(PATIENTS):
            style = middle + 0.3 * torch.randn(2, generator=random)
            style[1] = 0.6 * style[0] + 0.4 * style[1]
            content = torch.randn(form.positions, 4, generator=random).cumsum(0) / 2
            content[:, 0] += 0.9 * style[0] * torch.linspace(-1, 1, form.positions)
            length = 0.5 * style[1] + 0.2 * torch.randn(1, generator=random)
            latents = torch.cat([content, style.expand(form.positions, 2)], dim=1)
            state = [
                latents[:, list(form.joint)],
                length.expand(form.positions, 1),
                latents[:, list(form.tail)],
            ]
            total = total + patient_moments([torch.cat(state, dim=1)], form)
        found[site] = total
    return found


def values_of(plan: Plan, pca: FrozenDecoder) -> dict[str, Tensor]:
    sums = sums_by_site(plan, pca)
    return fit_gaussian(sums["east"] + sums["west"]) | named_styles(sums, pca)


def gaussian_of(plan: Plan, pca: FrozenDecoder, values: Mapping[str, Tensor]) -> GaussianTrajectory:
    mapper = latent_mapper(plan, pca, values)
    assert isinstance(mapper, GaussianTrajectory)
    return mapper


def as_map(mapper: GaussianTrajectory, change: Tensor | None, pca: FrozenDecoder) -> np.ndarray:
    """States of no noise, then of one unit of each number of it, (1 + numbers, state)."""
    like = mapper.draw(1, torch.Generator().manual_seed(0))
    sizes = like.joint.numel(), like.tail.numel()
    units = torch.cat([torch.zeros(1, sum(sizes)), torch.eye(sum(sizes))])
    joint, tail = units[:, : sizes[0]], units[:, sizes[0] :]
    noise = GaussianNoise(
        joint.reshape(len(units), *like.joint.shape[1:]),
        tail.reshape(len(units), *like.tail.shape[1:]),
    )
    if change is not None:
        noise = under_style(mapper, noise, change, pca)
    return mapper.states(noise).flatten(1).double().numpy()


@pytest.mark.parametrize("form", FORMS)
def test_volumes_of_a_style_are_the_gaussian_under_its_condition(
    pca: FrozenDecoder, form: str
) -> None:
    """Against mean and covariance of the conditional Gaussian, from the whole covariance."""
    plan = styled_plan(pca, form)
    mapper = gaussian_of(plan, pca, values_of(plan, pca))
    free = as_map(mapper, None, pca)
    mean, covariance = free[0], (free[1:] - free[0]).T @ (free[1:] - free[0])
    width = mapper.mean.shape[1]
    style_at = [width - 2, width - 1] if mapper.columns else [3, 4] if form == "chain" else [2, 3]
    picked = np.zeros((2, mean.size))
    for row, place in enumerate(style_at):
        for position in range(4 if mapper.columns else 1):
            picked[row, position * width + place] = 1 / (4 if mapper.columns else 1)
    of_style = picked @ covariance @ picked.T
    ridge = RIDGE * np.trace(of_style) / 2 * np.eye(2)
    gain = covariance @ picked.T @ np.linalg.inv(of_style + ridge)
    wanted = np.array([0.7, 0.5])
    styled = as_map(mapper, torch.tensor([0.7, 0.5]), pca)
    np.testing.assert_allclose(styled[0], mean + gain @ (wanted - picked @ mean), atol=2e-5)
    left = np.eye(mean.size) - gain @ picked
    np.testing.assert_allclose(
        (styled[1:] - styled[0]).T @ (styled[1:] - styled[0]),
        left @ covariance @ left.T,
        atol=2e-5,
    )
    # and the ridge is small: without it the style would be exactly the stated one
    np.testing.assert_allclose(picked @ styled[0], wanted, atol=0.02)
    # what is tied to the style moves with it
    moved = np.abs(styled[0] - mean).reshape(4, width)
    assert moved[-1, 1 if mapper.columns else 0] > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_every_slice_has_exactly_the_stated_style_and_one_seed_is_one_volume(
    pca: FrozenDecoder, form: str
) -> None:
    plan = styled_plan(pca, form)
    values = values_of(plan, pca)
    mapper = gaussian_of(plan, pca, values)

    def made(index: int, style: Tensor | None) -> Tensor:
        return volume_latents(
            mapper, pca, seed=5, index=index, slices=9, slice_spacing_mm=4.0, style=style
        )

    east, west, mean = (stated_style(n, mapper, values, pca) for n in ("east", "west", "mean"))
    first = made(3, east)
    assert torch.equal(first[:, -2:], east.expand(9, 2))
    made(0, west)
    assert torch.equal(made(3, east), first)
    assert not torch.equal(made(3, west)[:, :-2], first[:, :-2])
    # with its own style as the stated one nothing is changed
    drawn = made(3, None)
    again = made(3, drawn[0, -2:])
    torch.testing.assert_close(again, drawn, atol=0.02, rtol=0)
    # both sites have equally many patients
    torch.testing.assert_close(mean, (east + west) / 2, atol=1e-5, rtol=0)


def test_a_residual_does_not_move_the_stated_style(pca: FrozenDecoder) -> None:
    plan = styled_plan(pca, "chain", federation__rounds=1)
    trained = {
        name: torch.full(shape, 0.05)
        for name, shape in {
            "residual.0.weight": (16, 6 + 1 + 8),
            "residual.0.bias": (16,),
            "residual.2.weight": (6, 16),
            "residual.2.bias": (6,),
        }.items()
    }
    values = values_of(plan, pca) | trained
    mapper = gaussian_of(plan, pca, values)
    style = stated_style("east", mapper, values, pca)
    one = volume_latents(mapper, pca, seed=1, index=0, slices=6, slice_spacing_mm=4.0, style=style)
    assert torch.equal(one[:, -2:], style.expand(6, 2))


def test_a_sites_style_is_the_mean_over_its_patients_whatever_the_form(pca: FrozenDecoder) -> None:
    found = []
    for form in FORMS:
        plan = styled_plan(pca, form)
        sums = sums_by_site(plan, pca)
        found.append(torch.stack([site_style(sums[site], pca) for site in sorted(SITES)]))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    assert float(found[0][0, 0]) == pytest.approx(0.8, abs=0.2)
    assert float(found[0][1, 0]) == pytest.approx(-0.9, abs=0.2)


def test_an_unknown_style_is_refused_with_the_known_ones(
    pca: FrozenDecoder, decoder: FrozenDecoder, tmp_path: Path
) -> None:
    plan = styled_plan(pca, "chain")
    values = values_of(plan, pca)
    mapper = gaussian_of(plan, pca, values)
    with pytest.raises(ConfigError) as caught:
        stated_style("north", mapper, values, pca)
    assert "known: east, west, mean" in caught.value.seen
    silent = {n: t for n, t in values.items() if not n.startswith("style/")}
    with pytest.raises(ConfigError) as caught:
        stated_style("east", mapper, silent, pca)
    assert "known: mean; its run gave no site's" in caught.value.seen
    # a trained decoder has no style, a free mapper no Gaussian
    with pytest.raises(ConfigError) as caught:
        stated_style("mean", mapper, values, decoder)
    assert "no latents of a volume's grey scale" in caught.value.seen
    free = tiny_plan(pca)
    with pytest.raises(ConfigError) as caught:
        stated_style("mean", plan_mapper(free, pca), {}, pca)
    assert "trajectory is free" in caught.value.seen
    wanted = {"number": 1, "seed": 0, "wanted": Wanted(), "style": "north"}
    with pytest.raises(ConfigError, match="does not know this style"):
        list(write_series(tmp_path / "x", mapper, values, pca, plan, **wanted))  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_another_style_or_field_of_view_needs_another_folder(
    pca: FrozenDecoder, tmp_path: Path
) -> None:
    plan = styled_plan(pca, "chain")
    values = values_of(plan, pca)

    def made(folder: Path, style: str | None, wanted: Wanted) -> bytes:
        mapper = latent_mapper(plan, pca, values)
        paths = write_series(
            folder, mapper, values, pca, plan, number=1, seed=2, wanted=wanted, style=style
        )
        return next(iter(paths)).read_bytes()

    first = made(tmp_path / "east", "east", Wanted())
    assert made(tmp_path / "east", "east", Wanted()) == first
    assert made(tmp_path / "west", "west", Wanted()) != first
    for style, wanted in (
        ("west", Wanted()),
        (None, Wanted()),
        ("east", Wanted(field_of_view_mm=(36, 48, 32))),
    ):
        with pytest.raises(ConfigError, match="other volumes") as caught:
            made(tmp_path / "east", style, wanted)
        assert "'style': 'east'" in caught.value.seen
        assert "field_of_view_mm" in caught.value.seen


@pytest.mark.parametrize(
    ("name", "style", "words"),
    [
        ("style/east", torch.zeros(3), "needed (2,)"),
        ("style/east", torch.tensor([0.0, float("nan")]), "needed (2,)"),
        ("style/east", torch.tensor([0.0, 99.0]), "within 8"),
    ],
)
def test_styles_that_no_run_writes_are_refused_on_reading(
    pca: FrozenDecoder, name: str, style: Tensor, words: str
) -> None:
    plan = styled_plan(pca, "chain")
    values = values_of(plan, pca) | {name: style}
    with pytest.raises(ValueError, match=r"the style of east does not fit"):
        styles_of(values, pca)
    with pytest.raises(ConfigError) as caught:
        latent_mapper(plan, pca, values)
    assert words in caught.value.seen


def test_styles_need_a_plan_that_asks_for_them(pca: FrozenDecoder) -> None:
    plan = styled_plan(pca, "chain")
    values = values_of(plan, pca)
    assert plan.unconditional is not None
    silent = plan.unconditional.model_copy(update={"site_styles": False})
    with pytest.raises(ConfigError, match="its plan asks for none"):
        latent_mapper(plan.model_copy(update={"unconditional": silent}), pca, values)


def test_plans_without_styles_keep_their_digests_and_some_are_refused(
    pca: FrozenDecoder, decoder: FrozenDecoder
) -> None:
    gaussian = {"unconditional__trajectory": "gaussian"}
    plain = Plan.from_data(plan_data(**gaussian), "test")
    assert "site_styles" not in plain.canonical_json()
    said = Plan.from_data(plan_data(**gaussian, unconditional__site_styles=False), "test")
    assert said.digest() == plain.digest()
    asked = Plan.from_data(plan_data(**gaussian, unconditional__site_styles=True), "test")
    assert asked.digest() != plain.digest()
    assert asked == Plan.model_validate_json(asked.canonical_json())
    with pytest.raises(ConfigError, match="gathers none"):
        Plan.from_data(plan_data(unconditional__site_styles=True), "test")
    noise = {"mode": "stats-once", "delta": 1e-4, "public_patients": 6, "noise_multiplier": 1.0}
    with pytest.raises(ConfigError, match="mostly noise"):
        Plan.from_data(
            plan_data(
                **gaussian,
                unconditional__site_styles=True,
                unconditional__gaussian={"tied": True},
                privacy=noise,
            ),
            "test",
        )
    # a trained decoder has no latents of a volume's grey scale
    with pytest.raises(ConfigError, match="the decoder has none"):
        with_generator(asked, decoder)
    assert with_generator(asked, pca).unconditional is not None
