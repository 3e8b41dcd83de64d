"""The loss: its gradient is the force, and following it makes two sets alike."""

from __future__ import annotations

import dataclasses
import functools
from typing import get_args

import pytest
import torch
from torch import Tensor

from lift.errors import ConfigError
from lift.tasks.unconditional.drifting.attraction import Anchors, RandomFeatures, SampleQueue
from lift.tasks.unconditional.drifting.field import TEMPERATURES
from lift.tasks.unconditional.drifting.loss import DriftingLoss, LossKind, row_weights
from lift.tasks.unconditional.drifting.statistics import Sums, patient_sums
from lift.triplanar.encoder import RandomPyramid
from lift.triplanar.features import Rows, generated_rows, patient_features, raw_features
from lift.triplanar.groups import GroupLayout, RandomPlaces, body_extent
from lift.triplanar.projection import fit_projection
from lift.triplanar.standardise import clip_length, fit_standardisation
from tests.lift.drifting.small import GROUPS, features, patients, projection, stacked, summed

KINDS = get_args(LossKind)
ALL = tuple(range(GROUPS))


@functools.cache
def sources() -> tuple[Anchors, RandomFeatures]:
    sums = summed(1, 60)
    return Anchors(projection(), sums), RandomFeatures(projection(), sums)


def leaves(seed: int, count: int = 6, windows: int = 2) -> dict[int, Rows]:
    cohort = patients(seed, count, windows=windows)
    found = {}
    for group in ALL:
        x, owner = stacked(cohort, group)
        found[group] = Rows((x + 0.3).requires_grad_(), owner)
    return found


def gradients(loss: Tensor, rows: dict[int, Rows]) -> Tensor:
    return torch.stack(torch.autograd.grad(loss, [rows[group].features for group in ALL]))


def test_the_gradient_is_the_force_times_minus_the_weight() -> None:
    anchors, random = sources()
    rows = leaves(2)
    x = torch.stack([rows[group].features.detach() for group in ALL])
    inside = clip_length(x, 2.0)
    owner = rows[0].owner
    drift = 0.3 * anchors.net(inside, owner, ALL).force
    descent = 0.7 * random.mmd_force(inside, owner, ALL)[0]
    forces = {"drift": drift, "mmd": descent, "hybrid": drift + descent}
    for kind in KINDS:
        loss, figures = DriftingLoss(kind, anchors, random, eta=0.3, mmd_weight=0.7)(rows)
        expected = -row_weights(owner).float()[:, None] * forces[kind] / GROUPS
        torch.testing.assert_close(gradients(loss, rows), expected, rtol=1e-4, atol=1e-7)
        assert figures["loss"] == pytest.approx(float(loss.detach()))


def test_figures_fall_as_the_sets_meet_and_the_drift_loss_does_not() -> None:
    anchors, random = sources()
    hybrid = DriftingLoss("hybrid", anchors, random)
    near, far = patients(1, 60), [[y + 0.8 for y in p] for p in patients(3, 60)]

    def figures(cohort: list[list[Tensor]]) -> dict[str, float]:
        return hybrid({g: Rows(*stacked(cohort, g)) for g in ALL})[1]

    one, other = figures(near), figures(far)
    assert set(one) == {
        "loss",
        "outside",
        "drift_rms_0.35",
        "drift_rms_0.5",
        "drift_rms_1",
        "mmd2_0.5",
        "mmd2_1",
    }
    assert one["mmd2_1"] < 1e-6
    assert one["drift_rms_0.5"] < 1e-3
    assert one["outside"] == 0
    assert min(other["mmd2_1"], other["drift_rms_0.5"], other["outside"]) > 0.1


def test_volumes_and_windows_have_the_same_say() -> None:
    owner = torch.tensor([0, 0, 0, 1, 2, 2])
    weights = row_weights(owner)
    assert float(weights.sum()) == pytest.approx(1)
    for volume in range(3):
        assert float(weights[owner == volume].sum()) == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_features_outside_the_radius_are_pulled_inwards(kind: LossKind) -> None:
    rows = {
        g: Rows((30 * torch.nn.functional.normalize(x)).requires_grad_(), torch.arange(8))
        for g, x in enumerate(features(4, 8))
    }
    loss, figures = DriftingLoss(kind, *sources())(rows)
    assert figures["outside"] == 1
    step = -gradients(loss, rows)
    outward = torch.stack([rows[g].features.detach() for g in ALL])
    assert float((step * outward).sum(2).mean()) < 0


def clouds(spread: float = 0.1, shift: float = 0.5) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [(spread * torch.randn(32, 10, generator=random) + shift).requires_grad_() for _ in ALL]


def follow(loss_of: DriftingLoss, x: list[Tensor], steps: int, rate: float) -> None:
    """Move every point by `rate` times the force on it, again and again."""
    for _ in range(steps):
        loss, _ = loss_of({g: Rows(cloud, torch.arange(32)) for g, cloud in enumerate(x)})
        with torch.no_grad():
            for cloud, gradient in zip(x, torch.autograd.grad(loss, x), strict=True):
                cloud.sub_(rate * 32 * GROUPS * gradient)


def apart(x: list[Tensor]) -> tuple[float, float]:
    """Squared MMD (width .7) to patients that no loss ever saw, and the relative spread."""
    mmd2, spread = 0.0, 0.0
    for g in ALL:
        a, b = x[g].detach(), stacked(patients(5, 60), g)[0]
        same_a, same_b, cross = (
            torch.exp(-torch.cdist(u, v).square() / 0.98).mean()
            for u, v in ((a, a), (b, b), (a, b))
        )
        mmd2 += float(same_a + same_b - 2 * cross) / GROUPS
        spread += float(torch.pdist(a).mean() / torch.pdist(b).mean()) / GROUPS
    return mmd2, spread


def queue(*, mask_self: bool) -> SampleQueue:
    # without the mask the official temperatures are too low: the cloud shrinks to a point
    temperatures = TEMPERATURES if mask_self else (0.1, 0.2, 0.5)
    filled = SampleQueue(GROUPS, mask_self=mask_self, temperatures=temperatures)
    for group in ALL:
        filled.push(stacked(patients(1, 60), group)[0], group)
    return filled


# from 1.11 at the start; other patients of the same kind are at .011
@pytest.mark.parametrize(
    ("kind", "most_apart", "spread"),
    [
        ("drift", 0.03, (0.85, 1.15)),
        ("hybrid", 0.03, (0.85, 1.15)),
        # small forces near the end: slow, and from the outside
        ("mmd", 0.15, (1.0, 1.8)),
        ("unmasked queue", 0.15, (0.5, 1.15)),
    ],
)
def test_following_the_loss_brings_a_distant_cloud_to_the_patients(
    kind: str, most_apart: float, spread: tuple[float, float]
) -> None:
    if kind == "unmasked queue":
        loss_of = DriftingLoss("drift", queue(mask_self=False))
    else:
        loss_of = DriftingLoss(kind, *sources())  # type: ignore[arg-type]
    x = clouds()
    before, _ = apart(x)
    follow(loss_of, x, 30, 0.2)
    follow(dataclasses.replace(loss_of, eta=0.2), x, 20, 0.1)
    after, seen = apart(x)
    assert before > 1
    assert after < most_apart
    assert spread[0] < seen < spread[1]


def test_the_official_rule_comes_near_at_first() -> None:
    x = clouds()
    follow(DriftingLoss("drift", queue(mask_self=True)), x, 10, 0.1)
    assert apart(x)[0] < 0.2


def test_a_loss_without_its_sources_or_groups_is_refused() -> None:
    anchors, random = sources()
    for kind, kept in (
        ("drift", (None, random)),
        ("mmd", (anchors, None)),
        ("hybrid", (None, random)),
    ):
        with pytest.raises(ValueError, match="needs"):
            DriftingLoss(kind, *kept)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="drift, mmd or hybrid"):
        DriftingLoss("other", anchors, random)  # type: ignore[arg-type]
    loss = DriftingLoss("drift", anchors)
    with pytest.raises(ValueError, match="at least one group"):
        loss({})
    rows = leaves(1)
    rows[2] = leaves(1, windows=3)[2]
    with pytest.raises(ValueError, match="same volumes"):
        loss(rows)


def test_from_volumes_to_a_gradient_on_volumes() -> None:
    layout = GroupLayout(axial=1, coronal=1, sagittal=1)
    encoder = RandomPyramid(5)
    random = torch.Generator().manual_seed(1)
    volumes = torch.rand(24, 1, 12, 14, 10, generator=random)
    extent = body_extent(torch.ones_like(volumes))
    spacing = (2.0, 1.0, 1.0)
    raw = raw_features(volumes, spacing, extent, layout, encoder)
    public = fit_standardisation(raw, layout, encoder.digest, dimension=8)
    standardised = [public.transform(x, g) for g, x in enumerate(raw)]
    of = fit_projection(standardised, public, seed=1, n_anchors=16, n_features=64)
    sums = Sums.zero(of)
    for p in range(24):
        rows = patient_features(volumes[p : p + 1], spacing, extent[:1], encoder, public)
        torch.testing.assert_close(rows[0], standardised[0][2 * p : 2 * p + 2], rtol=0, atol=1e-4)
        sums += patient_sums(of, rows)
    generated = (0.5 * volumes[:4]).requires_grad_()
    groups = generated_rows(
        generated,
        spacing,
        extent[:4],
        encoder,
        public,
        groups=(0, 2),
        places=RandomPlaces(2, random),
    )
    loss, _ = DriftingLoss("hybrid", Anchors(of, sums), RandomFeatures(of, sums))(groups)
    (gradient,) = torch.autograd.grad(loss, generated)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0
    with pytest.raises(ConfigError, match="feature encoder"):
        generated_rows(
            generated, spacing, extent[:4], RandomPyramid(6), public, groups=(0,), places=None
        )
