"""The frozen generator: independence of slices, taps, freezing, cost, devices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lift.config.generator import (
    GeneratorDescription,
    MonaiBasicUNetConfig,
    MonaiSegResNetConfig,
    MonaiUNetConfig,
    NetworkConfig,
    PretrainConfig,
    UNetConfig,
)
from lift.device import (
    fix_threads,
    inference_autocast,
    to_device,
)
from lift.errors import ConfigError
from lift.generator.base import SliceGenerator, Tap
from lift.generator.bundle import make_card
from lift.generator.networks import (
    FrozenGenerator,
    UNet,
    build_network,
    neighbour_channels,
    network_fingerprint,
)

SMALL = UNetConfig(n_source=2, width=4, multipliers=(1, 2, 2))
MONAI: tuple[NetworkConfig, ...] = (
    MonaiBasicUNetConfig(n_source=2, features=(4, 4, 8, 8, 8, 4)),
    MonaiUNetConfig(n_source=2, channels=(4, 8, 8), residual_units=1),
    MonaiSegResNetConfig(n_source=2, width=16, blocks=(1, 1)),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def frozen(config: NetworkConfig, seed: int = 1) -> FrozenGenerator:
    description = GeneratorDescription(
        network=config,
        source=tuple(f"s{i}" for i in range(config.n_source)),
        target="t2f",
        training_data="random weights",
        licence="Apache-2.0",
    )
    network = build_network(config, seed=seed)
    return FrozenGenerator(network, make_card(network, description, trained_steps=0))


def slices(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", [SMALL, *MONAI], ids=lambda config: config.name)
@pytest.mark.parametrize("sides", [(1, 1), (7, 13), (24, 16)])
def test_a_slice_does_not_depend_on_its_batch(
    config: NetworkConfig, sides: tuple[int, int]
) -> None:
    generator = frozen(config)
    x = slices(16, 2, *sides)
    together, _ = generator.predict(x)
    alone = torch.cat([generator.predict(x[i : i + 1])[0] for i in range(16)])
    assert together.shape == (16, 1, *sides)
    # MONAI's untrained outputs are of size 10, ours of size 1
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_batch_norm_in_training_mode_would_fail_the_batch_test() -> None:
    x = slices(16, 2, 8, 8)
    with torch.no_grad():
        mixed = nn.BatchNorm2d(2)(x)[:1] - nn.BatchNorm2d(2)(x[:1])
    assert float(mixed.abs().max()) > 1e-3


@pytest.mark.parametrize("config", [SMALL, *MONAI], ids=lambda config: config.name)
def test_no_network_has_batch_norm_or_hidden_buffers(config: NetworkConfig) -> None:
    network = build_network(config, seed=0)
    assert not any("BatchNorm" in type(module).__name__ for module in network.modules())
    held = {name for name, _ in network.named_parameters()}
    held |= {name for name, _ in network.named_buffers()}
    assert held == set(network.state_dict())


@settings(max_examples=25)
@given(
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    n=st.integers(1, 3),
    multipliers=st.sampled_from([(1, 1), (1, 2, 2), (1, 2, 3, 1)]),
)
def test_decode_of_the_taps_is_the_prediction(
    height: int, width: int, n: int, multipliers: tuple[int, ...]
) -> None:
    generator = frozen(UNetConfig(n_source=1, width=4, multipliers=multipliers))
    pred, taps = generator.predict(slices(n, 1, height, width), tuple(generator.taps))
    for name, tap in generator.taps.items():
        sides = (-(-height // tap.stride), -(-width // tap.stride))
        assert taps[name].shape == (n, tap.channels, *sides)
    assert torch.equal(generator.decode(taps), pred)


def test_head_is_linear_on_feat() -> None:
    generator = frozen(SMALL)
    pred, taps = generator.predict(slices(3, 2, 12, 12), ("feat",))
    weight = generator.head_weight
    assert weight is not None
    offset = pred[:, 0] - torch.einsum("nchw,c->nhw", taps["feat"], weight)
    assert float(offset.max() - offset.min()) < 1e-6


def test_taps_are_named_from_full_resolution_to_bottleneck() -> None:
    generator: SliceGenerator = frozen(UNetConfig(n_source=3))
    assert generator.encoder_tap_names == ("enc0", "enc1", "enc2", "bottleneck")
    assert generator.taps == {
        "enc0": Tap(12, 1),
        "enc1": Tap(24, 2),
        "enc2": Tap(48, 4),
        "bottleneck": Tap(48, 8),
        "feat": Tap(12, 1),
    }


def test_decode_gives_gradients_to_taps_and_none_to_weights() -> None:
    generator = frozen(SMALL)
    _, taps = generator.predict(slices(2, 2, 9, 10), generator.encoder_tap_names)
    leaves = {name: tap.clone().requires_grad_() for name, tap in taps.items()}
    generator.decode(leaves).sum().backward()  # type: ignore[no-untyped-call]
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert float(leaf.grad.abs().sum()) > 0, name
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_decode_takes_the_cache_s_half_precision() -> None:
    generator = frozen(SMALL)
    pred, taps = generator.predict(slices(2, 2, 8, 8), generator.encoder_tap_names)
    halved = generator.decode({name: tap.half() for name, tap in taps.items()})
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, pred, atol=5e-3, rtol=0)


def test_generator_stays_frozen_inside_a_trained_module() -> None:
    generator = frozen(SMALL)
    before = generator.fingerprint
    mixer = nn.Conv2d(1, 1, 1)
    whole = nn.ModuleList([generator, mixer]).train()
    optimiser = torch.optim.SGD(whole.parameters(), lr=1.0)
    pred, _ = generator.predict(slices(2, 2, 8, 8))
    mixer(pred).sum().backward()
    optimiser.step()
    assert not any(module.training for module in generator.modules())
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert generator.fingerprint == before


def test_fingerprint_sees_every_tensor_and_the_architecture() -> None:
    network = build_network(SMALL, seed=1)
    tensors = network.state_dict()
    first = network_fingerprint(SMALL, tensors)
    assert first == network_fingerprint(SMALL, dict(reversed(tensors.items())))
    seen = {first, network_fingerprint(SMALL.model_copy(update={"context_slices": 1}), tensors)}
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1
        seen.add(network_fingerprint(SMALL, {**tensors, name: changed}))
    reshaped = {**tensors, "stem.bias": tensors["stem.bias"].reshape(2, 2)}
    seen.add(network_fingerprint(SMALL, reshaped))
    assert len(seen) == len(tensors) + 3


def test_fingerprint_covers_buffers() -> None:
    norm = nn.BatchNorm2d(2)
    before = network_fingerprint(SMALL, norm.state_dict())
    norm.running_mean = torch.ones(2)
    assert network_fingerprint(SMALL, norm.state_dict()) != before


def test_build_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (build_network(SMALL, seed=seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.weight"], other["stem.weight"])


@pytest.mark.parametrize(
    ("width", "multipliers", "gflop", "million"),
    [
        (32, (1, 2, 4, 8), 21.0, 2.1),
        (64, (1, 2, 4, 8), 83.8, 8.3),
        (64, (1, 2, 4, 8, 8), 99.6, 20.6),
    ],
)
def test_cost_is_that_of_the_method_s_table(
    width: int, multipliers: tuple[int, ...], gflop: float, million: float
) -> None:
    with torch.device("meta"):
        network = UNet(UNetConfig(n_source=3, width=width, multipliers=multipliers))
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 240, 240))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.005)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == million


@given(
    depth=st.integers(1, 6),
    n_source=st.integers(1, 3),
    reach=st.integers(0, 4),
)
def test_neighbours_are_ordered_by_offset_then_source(
    depth: int, n_source: int, reach: int
) -> None:
    source = np.arange(depth * n_source, dtype=np.float32).reshape(depth, n_source, 1, 1)
    made = neighbour_channels(torch.from_numpy(source), reach).numpy()[:, :, 0, 0]
    for d in range(depth):
        needed = [
            source[min(max(d + offset, 0), depth - 1), channel, 0, 0]
            for offset in range(-reach, reach + 1)
            for channel in range(n_source)
        ]
        assert made[d].tolist() == needed


def test_a_2_5d_generator_takes_its_neighbours() -> None:
    generator = frozen(UNetConfig(n_source=2, context_slices=1, width=4, multipliers=(1, 1)))
    pred, _ = generator.predict(neighbour_channels(slices(5, 2, 8, 8), 1))
    assert pred.shape == (5, 1, 8, 8)
    with pytest.raises(ValueError, match="6, h, w"):
        generator.predict(slices(5, 2, 8, 8))


@pytest.mark.parametrize("config", MONAI, ids=lambda config: config.name)
def test_a_network_without_taps_refuses_what_needs_them(config: NetworkConfig) -> None:
    generator = frozen(config)
    assert (generator.taps, generator.encoder_tap_names, generator.head_weight) == ({}, (), None)
    with pytest.raises(ConfigError, match="zrefine_lite"):
        generator.decode({})
    with pytest.raises(ConfigError, match="tap 'feat'"):
        generator.predict(slices(1, 2, 8, 8), ("feat",))


@pytest.mark.parametrize(
    "network",
    [
        {"name": "monai_attention_unet", "n_source": 1},
        {"name": "unet", "n_source": 1, "width": 7},
        {"name": "unet", "n_source": 1, "multipliers": [2, 4]},
        {"name": "unet", "n_source": 1, "multipliers": [1]},
        {"name": "unet", "n_source": 2},
        {"name": "monai_segresnet", "n_source": 1, "width": 12},
    ],
)
def test_networks_that_cannot_work_are_refused(network: dict[str, object]) -> None:
    data = {
        "network": network,
        "source": ["t1n"],
        "target": "t2f",
        "training_data": "none",
        "licence": "none",
    }
    with pytest.raises(ConfigError, match="network"):
        GeneratorDescription.from_data(data, "bundle.yaml")


def test_pretraining_settings_name_a_wrong_cohort() -> None:
    data = {
        "network": {"name": "unet", "n_source": 1},
        "source": ["t1n"],
        "target": "t2f",
        "training_data": "none",
        "licence": "none",
        "steps": 1,
        "cohorts": [{"layout": "dicom", "root": "data"}],
    }
    with pytest.raises(ConfigError, match=r"cohorts\.0: .*'brats'.*'phantom'.*'dicom'") as caught:
        PretrainConfig.from_data(data, "pretrain.yaml")
    # the list is not empty: its one item is refused
    assert "at least 1" not in str(caught.value)


def test_inference_on_the_cpu_is_full_precision() -> None:
    device = torch.device("cpu")
    x = slices(1, 2, 8, 8)
    with inference_autocast(device):
        inside, _ = frozen(SMALL).predict(to_device(x, device))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, frozen(SMALL).predict(x)[0])


def test_fixed_threads_train_a_convolution() -> None:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        fix_threads(1)
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        network = build_network(SMALL, seed=0)
        network(slices(1, 2, 8, 8)).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
