"""Plain networks: FedAvg by hand, what the 2.5D one sees, and the generator in three planes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from lift.cohort.patients import Patient
from lift.cohort.split import Split
from lift.config.plan import Plan
from lift.config.simulation import PlainMode, RivalsSettings
from lift.generator.features import Features
from lift.generator.networks import FrozenGenerator
from lift.privacy.accounting import Mechanism, epsilon
from lift.tasks.paired.site_cohort import SiteCohort
from lift.tasks.paired.training import train_round
from lift_simulation.plain.networks import NEIGHBOURS, PlainSliceUNet, predict_window
from lift_simulation.plain.planes import three_planes
from lift_simulation.plain.training import PlainTraining, build, network_plan, private_section
from lift_simulation.progress import Reporter
from tests.lift.small_world import small_cohort, small_generator, small_plan

SETTINGS = RivalsSettings.from_data(
    {
        "unet_25d": {"learning_rate": 0.01, "steps": 3, "window": [4, 16, 24]},
        "patients_per_step": 1,
        "local_steps": 1,
        "pooled_steps": 1,
        "checkpoint_steps": 1,
    },
    "test",
)
PATIENTS = {"east": (0,), "north": (3,), "west": (1, 2)}
SHARES = {"east": 0.25, "north": 0.25, "west": 0.5}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan()


@pytest.fixture(scope="module")
def features() -> list[Features]:
    return small_cohort(small_generator(), depths=(7, 9, 6, 5))


def _cohort(site: str, features: list[Features]) -> SiteCohort:
    ids = {f"p{index}": features[index] for index in PATIENTS[site]}
    patients = {name: Patient(name, name, {}, None) for name in ids}
    return SiteCohort(site, Split(tuple(ids), (), ()), patients, ids, ())


def _of(mode: PlainMode) -> RivalsSettings:
    return SETTINGS.model_copy(update={"modes": (mode,)})


def _training(plan: Plan, folder: Path, settings: RivalsSettings) -> PlainTraining:
    return PlainTraining(
        plan,
        settings,
        ["unet_25d"],
        folder,
        joined=list(PATIENTS),
        measured=list(PATIENTS),
        reporter=Reporter(Console(quiet=True), {}, quiet=True),
        device=torch.device("cpu"),
    )


def test_a_federated_round_is_the_mean_of_the_sites_by_their_patients(
    plan: Plan, features: list[Features], tmp_path: Path
) -> None:
    cohorts = {site: _cohort(site, features) for site in PATIENTS}
    (found,) = _training(plan, tmp_path, _of("federated")).train(cohorts)
    assert found.steps == 3
    own = network_plan(plan, SETTINGS, "unet_25d")
    training = own.training.model_copy(update={"steps": 1})
    # so many rounds that the rate does not fall
    federation = own.federation.model_copy(update={"rounds": 1_000_000})
    own = own.model_copy(update={"training": training, "federation": federation})
    network = build("unet_25d", 2, plan.seed)
    start = network.values()
    ends = {
        site: train_round(
            network, start, [[features[i]] for i in numbers], own, round_index=1, site=site
        ).values
        for site, numbers in PATIENTS.items()
    }
    apart = 0.0
    for name, tensor in found.values["east"].items():
        by_hand = sum(SHARES[site] * end[name].double().numpy() for site, end in ends.items())
        np.testing.assert_allclose(tensor.numpy(), by_hand, rtol=0, atol=1e-7)
        assert torch.equal(found.values["west"][name], tensor)
        equal = sum(end[name].double().numpy() / 3 for end in ends.values())
        apart = max(apart, float(np.abs(by_hand - equal).max()))
    # negative control: equal weights are something else
    assert apart > 1e-4


def test_a_local_network_is_of_one_site(
    plan: Plan, features: list[Features], tmp_path: Path
) -> None:
    cohorts = {site: _cohort(site, features) for site in PATIENTS}
    (found,) = _training(plan, tmp_path, _of("local")).train(cohorts)
    assert found.sent_bytes is None
    east, west = found.values["east"], found.values["west"]
    assert any(not torch.equal(east[name], west[name]) for name in east)
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {
        "unet_25d_local_east",
        "unet_25d_local_north",
        "unet_25d_local_west",
    }


def test_noise_costs_the_epsilon_that_was_asked_for(
    plan: Plan, features: list[Features], tmp_path: Path
) -> None:
    cohorts = {site: _cohort(site, features) for site in PATIENTS}
    noisy = SETTINGS.model_copy(update={"epsilon": 2.0, "modes": ()})
    (found,) = _training(plan, tmp_path, noisy).train(cohorts)
    assert (found.row, found.epsilon) == ("unet_25d_private", 2.0)
    assert (found.stopped, found.kept_steps) == ("budget", 3)
    # one step of each site
    privacy = private_section(plan, noisy, {"east": 1, "north": 1, "west": 2}, 1)
    mechanism = Mechanism(privacy.noise_multiplier, privacy.sampling_rate, 1)
    assert 1.9 < epsilon([mechanism], privacy.delta) <= 2.0
    assert privacy.patients_of("west") == 2
    # the noise is the operating system's: no second training is the same
    again = _training(plan, tmp_path / "again", noisy).train(cohorts)[0].values["east"]
    assert all(
        not torch.equal(again[name], tensor) for name, tensor in found.values["east"].items()
    )


def test_the_25d_network_sees_three_slices_on_either_side() -> None:
    network = PlainSliceUNet(4, 2, seed=0).eval()
    source = torch.rand(1, 9, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 9, 1, 32, 32)
    with torch.no_grad():
        before = predict_window(network, source, mask)
        source[:, 8] += 1
        after = predict_window(network, source, mask)
    moved = (before - after).abs().amax((0, 2, 3, 4)) > 0
    assert moved.tolist() == [False] * (8 - NEIGHBOURS) + [True] * (NEIGHBOURS + 1)


class _Pixelwise(FrozenGenerator):
    """A generator whose result does not depend on the plane."""

    def predict(
        self, x: Tensor, tap_names: tuple[str, ...] = (), *, mask: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        del tap_names, mask
        return x.mean(1, keepdim=True), {}


def test_three_planes_of_a_pixelwise_generator_are_one(features: list[Features]) -> None:
    frozen = small_generator()
    generator = _Pixelwise(frozen.network, frozen.card)
    patient = features[0]
    pred = np.asarray(patient.source).mean(1, keepdims=True)
    seen = replace(patient, pred=pred)
    mask = np.asarray(patient.mask)
    # square pixels: nothing is interpolated
    np.testing.assert_allclose(
        three_planes(generator, seen, (2.0, 2.0, 2.0)), pred * mask, atol=1e-6
    )
    # thick slices: a ramp along depth is kept, its ends apart
    depth, _, height, width = pred.shape
    ramp = np.broadcast_to(
        np.linspace(0, 1, depth, dtype=np.float32)[:, None, None, None], (depth, 2, height, width)
    )
    thick = replace(patient, source=ramp, pred=ramp[:, :1])
    found = three_planes(generator, thick, (6.0, 2.0, 2.0))
    np.testing.assert_allclose(found[1:-1], (ramp[:, :1] * mask)[1:-1], atol=1e-5)
    # negative control: the real one depends on the plane
    real = three_planes(frozen, patient, (2.0, 2.0, 2.0))
    assert np.abs(real - np.asarray(patient.pred) * mask).max() > 1e-3
