"""Encoders: frozen, differentiable, named by a digest; user weights checked before use."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lift.drifting.digests import digest_of
from lift.drifting.encoder import Encoder, RandomPyramid
from lift.drifting.user_encoder import _build, user_encoder
from lift.errors import ConfigError


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


def test_the_pyramid_needs_no_slow_import() -> None:
    script = (
        "import sys, lift.drifting.encoder, lift.drifting.user_encoder, lift.drifting.loss\n"
        "print([m for m in ('monai', 'scipy', 'sklearn', 'flwr') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@functools.cache
def network(arch: str) -> nn.Module:
    torch.manual_seed(0)
    built = _build(arch)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, buffer in built.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return built.eval()


def written(folder: Path, tensors: dict[str, Tensor], *, suffix: str = ".pt") -> tuple[Path, str]:
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("arch", "size", "suffix"),
    [("resnet10_2d", 512, ".pt"), ("resnet10_2d", 512, ".safetensors")],
)
def test_user_weights_give_the_networks_pooled_features(
    tmp_path: Path, arch: str, size: int, suffix: str
) -> None:
    state = network(arch).state_dict()
    head = {"fc.weight": torch.zeros(3, size), "fc.bias": torch.zeros(3)}
    given = {f"module.{name}": value for name, value in (state | head).items()}
    path, sha = written(tmp_path, given, suffix=suffix)
    encoder = user_encoder(path, sha.upper(), arch)  # type: ignore[arg-type]
    image = torch.rand(2, 1, 40, 36, requires_grad=True)
    features = encoder(image)
    assert features.shape == (2, size) == (2, encoder.size)
    with torch.no_grad():
        expected = network(arch)(image.repeat(1, 3, 1, 1))
    torch.testing.assert_close(features, expected)
    (gradient,) = torch.autograd.grad(features.square().sum(), image)
    assert float(gradient.abs().max()) > 0
    encoder.train()
    encoder(image)
    assert encoder.digest == user_encoder(path, sha, arch).digest  # type: ignore[arg-type]
    after = encoder.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())


def test_resnet50_has_the_names_and_shapes_of_imagenets() -> None:
    state = network("resnet50_2d").state_dict()
    counted = sum(v.numel() for k, v in state.items() if "running" not in k and "num_" not in k)
    assert counted == 25_557_032 - 2048 * 1000 - 1000  # torchvision's ResNet-50 without its head
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["conv1.weight"].shape == (64, 3, 7, 7)


def test_user_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = dict(network("resnet10_2d").state_dict())
    path, sha = written(tmp_path, state)
    with pytest.raises(ConfigError, match="SHA-256"):
        user_encoder(path, "0" * 64, "resnet10_2d")
    with pytest.raises(ConfigError, match="known are"):
        user_encoder(path, sha, "vgg")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="No such file"):
        user_encoder(tmp_path / "absent.pt", sha, "resnet10_2d")
    with pytest.raises(ConfigError, match=r"missing|not part|needs"):
        user_encoder(path, sha, "resnet50_2d")
    # MedicalNet's kernels have three axes
    cases = {
        "architecture needs": state | {"conv1.weight": torch.zeros(64, 1, 7, 7, 7)},
        "missing": {k: v for k, v in state.items() if k != "bn1.bias"},
        "not part": state | {"extra": torch.zeros(1)},
        "NaN": state | {"bn1.bias": torch.full((64,), torch.nan)},
    }
    for match, tensors in cases.items():
        path, sha = written(tmp_path, tensors)
        with pytest.raises(ConfigError, match=match) as caught:
            user_encoder(path, sha, "resnet10_2d")
        assert caught.value.remedy


def test_files_that_may_run_code_or_are_damaged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(nn.Linear(2, 2), path)
    for content in (path.read_bytes(), b"nothing", b""):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="damaged, or holds more"):
            user_encoder(path, hashlib.sha256(content).hexdigest(), "resnet10_2d")
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x08\x00")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        user_encoder(path, hashlib.sha256(b"\x08\x00").hexdigest(), "resnet10_2d")
    path = tmp_path / "list.pt"
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ConfigError, match="name -> tensor"):
        user_encoder(path, hashlib.sha256(path.read_bytes()).hexdigest(), "resnet10_2d")
