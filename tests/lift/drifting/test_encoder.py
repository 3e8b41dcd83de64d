"""Encoders: frozen, differentiable, named by a digest; user weights checked before use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from lift.triplanar.digests import digest_of
from lift.triplanar.encoder import Encoder, RandomPyramid, halved

SLOW = ("monai", "scipy", "sklearn", "flwr")


def test_the_pyramid_has_the_same_bits_everywhere() -> None:
    # golden: another machine or library that gives other weights must fail here, not in a study
    assert RandomPyramid(7).digest == (
        "f19bb5c7641ab5bab3c44481ce2dae9ea246b83a9a24836a2c649e6b723dc0c3"
    )
    assert RandomPyramid(7).digest == RandomPyramid(7).digest
    assert RandomPyramid(7).digest != RandomPyramid(8).digest


def test_the_digest_covers_the_weights() -> None:
    encoder = RandomPyramid(1)
    weight = encoder.network.get_buffer("weight1")
    changed = weight.clone()
    changed[0, 0, 0, 0] += 1e-6
    state = encoder.network.state_dict()
    assert digest_of({}, state) != digest_of({}, state | {"weight1": changed})
    assert digest_of({"a": 1}, state) != digest_of({"a": 2}, state)


@pytest.mark.parametrize("size", [(48, 40), (33, 17), (5, 4), (1, 1)])
def test_features_have_one_size_and_depend_on_their_own_image(size: tuple[int, int]) -> None:
    encoder: Encoder = RandomPyramid(3)
    images = torch.rand(4, 1, *size, generator=torch.Generator().manual_seed(1))
    features = encoder(images)
    assert features.shape == (4, encoder.size) == (4, 720)
    torch.testing.assert_close(encoder(images[2:3]), features[2:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 4), (7, 9), (8, 5), (1, 1)])
def test_halving_is_the_average_pooling_of_torch(size: tuple[int, int]) -> None:
    x = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(halved(x), F.avg_pool2d(x, 2, ceil_mode=True))


def test_the_pyramid_is_frozen_and_differentiable_to_its_input() -> None:
    encoder = RandomPyramid(3)
    encoder.train()
    assert not encoder.training
    assert not list(encoder.parameters())
    image = torch.rand(1, 1, 9, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(encoder.double(), image, fast_mode=True)


def test_images_of_several_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="needed"):
        RandomPyramid(1)(torch.zeros(1, 2, 8, 8))


class SlowImports:
    """A finder before all others: notes and refuses whoever asks for a slow package."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in SLOW:
            self.asked.append(name)
            raise ModuleNotFoundError(name=name)


@pytest.fixture
def slow_imports() -> Iterator[SlowImports]:
    """Our modules and the slow packages as in a new process (which would load torch anew)."""

    def unload() -> None:
        for name in list(sys.modules):
            if name.partition(".")[0] in {"lift", *SLOW}:
                del sys.modules[name]

    loaded, finder = dict(sys.modules), SlowImports()
    unload()
    sys.meta_path.insert(0, finder)
    yield finder
    sys.meta_path.remove(finder)
    unload()
    sys.modules.update(loaded)


def test_the_pyramid_needs_no_slow_import(slow_imports: SlowImports) -> None:
    for name in ("lift.triplanar.encoder", "lift.tasks.unconditional.drifting.loss"):
        importlib.import_module(name)
    assert slow_imports.asked == []
    # it would have been noticed: a benchmark's module does need one
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("monai.networks.nets")
    assert slow_imports.asked == ["monai"]
