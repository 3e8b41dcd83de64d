"""Encoders: frozen, differentiable, named by a digest; user weights checked before use."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lift.errors import ConfigError
from lift.tasks.unconditional.drifting.user_encoder import _build, user_encoder
from lift.triplanar.digests import digest_of
from lift.triplanar.encoder import Encoder, RandomPyramid, _halved
from tests import wording

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
    torch.testing.assert_close(_halved(x), F.avg_pool2d(x, 2, ceil_mode=True))


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
    for name in ("encoder", "user_encoder", "loss"):
        importlib.import_module(f"lift.tasks.unconditional.drifting.{name}")
    assert slow_imports.asked == []
    # it would have been noticed: a user's encoder does need one
    with pytest.raises(ModuleNotFoundError):
        sys.modules["lift.tasks.unconditional.drifting.user_encoder"].__dict__["_build"](
            "resnet10_2d"
        )
    assert slow_imports.asked == ["monai"]


@functools.cache
def network(arch: str) -> nn.Module:
    torch.manual_seed(0)
    built = _build(arch)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, buffer in built.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return built.eval()


def written(folder: Path, tensors: dict[str, Tensor]) -> tuple[Path, str]:
    path = folder / "weights.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path, sha_of(path)


def sha_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_user_weights_give_the_networks_pooled_features(tmp_path: Path) -> None:
    state = network("resnet10_2d").state_dict()
    head = {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    path, sha = written(tmp_path, {f"module.{name}": v for name, v in (state | head).items()})
    encoder = user_encoder(path, sha.upper(), "resnet10_2d")
    image = torch.rand(2, 1, 40, 36, requires_grad=True)
    features = encoder(image)
    assert features.shape == (2, 512) == (2, encoder.size)
    with torch.no_grad():
        expected = network("resnet10_2d")(image.repeat(1, 3, 1, 1))
    torch.testing.assert_close(features, expected)
    (gradient,) = torch.autograd.grad(features.square().sum(), image)
    assert float(gradient.abs().max()) > 0
    encoder.train()
    encoder(image)
    assert encoder.digest == user_encoder(path, sha, "resnet10_2d").digest
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
    with pytest.raises(ConfigError, match=wording.NO_SUCH_FILE):
        user_encoder(tmp_path / "absent.safetensors", sha, "resnet10_2d")
    with pytest.raises(ConfigError, match=r"missing|not part|needs"):
        user_encoder(path, sha, "resnet50_2d")
    # MedicalNet's kernels have three axes
    cases = {
        "network needs": state | {"conv1.weight": torch.zeros(64, 1, 7, 7, 7)},
        "missing": {k: v for k, v in state.items() if k != "bn1.bias"},
        "not part": state | {"extra": torch.zeros(1)},
        "NaN": state | {"bn1.bias": torch.full((64,), torch.nan)},
    }
    for match, tensors in cases.items():
        path, sha = written(tmp_path, tensors)
        with pytest.raises(ConfigError, match=match) as caught:
            user_encoder(path, sha, "resnet10_2d")
        assert caught.value.remedy


class _MakesFolder:
    """Unpickled, this makes a folder: what an attacker's file would do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w", "w.safetensors"])
def test_a_pickle_is_refused_and_not_run_whatever_its_name(tmp_path: Path, name: str) -> None:
    trap, path = tmp_path / "attacked", tmp_path / name
    path.write_bytes(pickle.dumps({"conv1.weight": _MakesFolder(trap)}))
    with pytest.raises(ConfigError, match="needed is a safetensors file") as caught:
        user_encoder(path, sha_of(path), "resnet10_2d")
    assert not trap.exists()
    error = caught.value
    assert all((error.what, error.where, error.seen, error.remedy))
    # the trap is a real one: unpickling springs it
    pickle.loads(path.read_bytes())  # noqa: S301
    assert trap.exists()


@pytest.mark.parametrize("nested", [False, True])
def test_a_state_dict_is_refused_and_the_remedys_commands_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    # what safetensors refuses to save: not contiguous, and two tensors in one memory
    shared = torch.arange(6.0)
    state = {"conv1.weight": torch.rand(3, 4).T, "bn1.bias": shared, "bn1.weight": shared}
    path = Path("weights.pt")
    torch.save({"state_dict": state, "epoch": 3} if nested else state, path)
    with pytest.raises(ConfigError, match=r"ends in '\.pt'") as caught:
        user_encoder(path, sha_of(path), "resnet10_2d")
    _, *commands, _ = caught.value.remedy.splitlines()
    exec("\n".join(commands), {"torch": torch, "safetensors": safetensors})  # noqa: S102
    converted = path.with_suffix(".safetensors")
    tensors = safetensors.torch.load_file(converted)
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], value) for name, value in state.items())
    with pytest.raises(ConfigError, match="needs"):
        user_encoder(converted, sha_of(converted), "resnet10_2d")  # read, only not the network's


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    path, sha = written(tmp_path, {"conv1.weight": torch.ones(4, 3)})
    whole = path.read_bytes()
    with pytest.raises(ConfigError, match=r"bn1\.bias is missing"):
        user_encoder(path, sha, "resnet10_2d")  # whole, only not the network's
    damaged = {
        "empty": b"",
        "cut in its length": whole[:2],
        "cut in its header": whole[:40],
        "cut in its tensors": whole[:-1],
        "another length of its header": b"\xff" + whole[1:],
        "another number format": whole.replace(b"F32", b"F31"),
        "another shape": whole.replace(b"[4,3]", b"[4,4]"),
        "text": b"nothing of the kind",
    }
    for what, content in damaged.items():
        assert content != whole, what
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="truncated or damaged, or of another format"):
            user_encoder(path, sha_of(path), "resnet10_2d")
