"""Bundles: what is written is what is loaded, and nothing else ever loads."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lift.config.generator import (
    GeneratorDescription,
    MonaiUNetConfig,
    NetworkConfig,
    UNetConfig,
)
from lift.config.plan import PercentileRule, PreprocessingPlan, TaskPlan, WindowRule
from lift.errors import ConfigError, GeneratorError, LiftError, VersionMismatchError
from lift.generator.bundle import load_bundle, make_card, save_bundle
from lift.generator.card import (
    CARD_FILE,
    WEIGHTS_FILE,
    builtin_bundle,
    check_task,
    list_builtin,
    read_card,
)
from lift.generator.importing import import_state_dict
from lift.generator.networks import MonaiNetwork, SliceNetwork, build_network
from lift.tasks.registry import load_generator
from tests import wording

CPU = torch.device("cpu")
SMALL = UNetConfig(n_source=2, width=4, multipliers=(1, 2))
MONAI = MonaiUNetConfig(n_source=2, channels=(4, 8), residual_units=0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def described(network: NetworkConfig) -> GeneratorDescription:
    return GeneratorDescription(
        network=network,
        source=("t1n", "t2w"),
        target="t2f",
        training_data="random weights",
        licence="Apache-2.0",
    )


def written(folder: Path, config: NetworkConfig = SMALL) -> tuple[SliceNetwork, str]:
    network = build_network(config, seed=3)
    card = make_card(network, described(config), trained_steps=7)
    return network, save_bundle(folder, network, card)


def load(folder: Path, expected: str | None = None) -> None:
    load_bundle(folder, expected_fingerprint=expected, device=CPU)


def assert_four_parts(error: LiftError) -> None:
    assert all((error.what, error.where, error.seen, error.remedy))


def rewrite_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / CARD_FILE).read_text())
    change(data)
    (folder / CARD_FILE).write_text(json.dumps(data))


def rewrite_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.parametrize("config", [SMALL, MONAI], ids=lambda config: config.name)
def test_a_bundle_loads_as_it_was_saved(tmp_path: Path, config: NetworkConfig) -> None:
    network, fingerprint = written(tmp_path, config)
    generator = load_bundle(tmp_path, expected_fingerprint=fingerprint, device=CPU)
    x = torch.rand(2, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(generator.predict(x)[0], network(x))
    assert generator.fingerprint == generator.card.fingerprint == fingerprint
    assert generator.card == read_card(tmp_path)
    assert generator.card.trained_steps == 7
    assert generator.card.normalisation == {n: PercentileRule() for n in ("t1n", "t2w", "t2f")}
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD_FILE, WEIGHTS_FILE]


def test_the_demo_s_network_fits_in_one_megabyte(tmp_path: Path) -> None:
    config = UNetConfig(n_source=3)
    network = build_network(config, seed=0)
    description = described(SMALL).model_copy(
        update={"network": config, "source": ("t1n", "t1c", "t2w")}
    )
    save_bundle(tmp_path, network, make_card(network, description, trained_steps=0))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1_000_000


def test_another_fingerprint_than_the_plan_s_is_refused(tmp_path: Path) -> None:
    _, fingerprint = written(tmp_path)
    with pytest.raises(GeneratorError, match=wording.PLAN_SAYS) as caught:
        load(tmp_path, "0" * 64)
    assert fingerprint[:16] in caught.value.seen
    assert_four_parts(caught.value)


def test_a_changed_weight_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    rewrite_weights(tmp_path, lambda tensors: tensors["head.bias"].add_(1e-6))
    with pytest.raises(GeneratorError, match=wording.CARD_SAYS):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda tensors: tensors.pop("stem.bias"), r"missing: stem\.bias"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "not known: more"),
        (lambda tensors: tensors.update({"stem.bias": torch.zeros(5)}), r"stem\.bias is \[5\]"),
        (
            lambda tensors: tensors.update({"stem.bias": torch.zeros(4, dtype=torch.bfloat16)}),
            "bfloat16",
        ),
        (lambda tensors: tensors["stem.bias"].fill_(torch.nan), "NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], seen: str
) -> None:
    written(tmp_path)
    rewrite_weights(tmp_path, change)
    with pytest.raises(GeneratorError, match=seen) as caught:
        load(tmp_path)
    assert_four_parts(caught.value)


@pytest.mark.parametrize("name", [CARD_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(GeneratorError, match=name) as caught:
        load(tmp_path)
    assert_four_parts(caught.value)


@settings(max_examples=25)
@given(share=st.floats(0, 0.999), name=st.sampled_from([CARD_FILE, WEIGHTS_FILE]))
def test_a_file_cut_anywhere_never_loads(
    tmp_path_factory: pytest.TempPathFactory, share: float, name: str
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    written(folder)
    content = (folder / name).read_bytes().rstrip()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(GeneratorError):
        load(folder)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda card: card.update(fingerprint="0" * 64), wording.CARD_SAYS),
        (lambda card: card["network"].update(context_slices=1), r"stem\.weight is"),
        (lambda card: card["network"].update(name="pickle"), "one of 'unet'.*seen: 'pickle'"),
        (lambda card: card["taps"]["feat"].update(channels=9), "taps"),
        (lambda card: card.update(source=["t1n"]), "1 source channels"),
        (lambda card: card["normalisation"].pop("t2f"), "normalisation"),
        (lambda card: card.pop("licence"), "licence"),
        (lambda card: card.update(licences="?"), f"{wording.DID_YOU_MEAN}licence'"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], seen: str
) -> None:
    written(tmp_path)
    rewrite_card(tmp_path, change)
    with pytest.raises(GeneratorError, match=seen) as caught:
        load(tmp_path)
    assert_four_parts(caught.value)


def test_another_version_of_the_format_is_refused_as_such(tmp_path: Path) -> None:
    written(tmp_path)
    rewrite_card(tmp_path, lambda card: card.update(format_version=3, new_key=1))
    with pytest.raises(VersionMismatchError, match="format 3"):
        load(tmp_path)


def test_a_card_of_other_weights_is_not_saved(tmp_path: Path) -> None:
    network, _ = written(tmp_path / "first")
    card = make_card(build_network(SMALL, seed=4), described(SMALL), trained_steps=0)
    with pytest.raises(ValueError, match="other weights"):
        save_bundle(tmp_path / "second", network, card)
    assert not (tmp_path / "second").exists()


def test_a_bundle_replaced_by_halves_does_not_load(tmp_path: Path) -> None:
    written(tmp_path / "old")
    network = build_network(SMALL, seed=9)
    save_bundle(tmp_path / "new", network, make_card(network, described(SMALL), trained_steps=1))
    (tmp_path / "new" / WEIGHTS_FILE).replace(tmp_path / "old" / WEIGHTS_FILE)
    with pytest.raises(GeneratorError, match=wording.CARD_SAYS):
        load(tmp_path / "old")


def test_a_plan_with_other_channels_or_rules_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    card = read_card(tmp_path)
    plain = PreprocessingPlan()
    check_task(card, TaskPlan(source=("t1n", "t2w"), target="t2f"), plain)
    with pytest.raises(ConfigError, match="from t2w, t1n"):
        check_task(card, TaskPlan(source=("t2w", "t1n"), target="t2f"), plain)
    with pytest.raises(ConfigError, match="wants t1c"):
        check_task(card, TaskPlan(source=("t1n", "t2w"), target="t1c"), plain)
    with pytest.raises(ConfigError, match="t2w: the bundle was trained with"):
        check_task(
            card,
            TaskPlan(source=("t1n", "t2w"), target="t2f"),
            PreprocessingPlan(normalisation={"t2w": WindowRule()}),
        )


def test_builtin_bundles_load_and_others_are_refused_by_name() -> None:
    for name in list_builtin():
        load_generator(builtin_bundle(name), expected_fingerprint=None, device=torch.device("cpu"))
    with pytest.raises(GeneratorError, match="built in") as caught:
        builtin_bundle("../generator")
    assert_four_parts(caught.value)


@pytest.mark.parametrize("config", [SMALL, MONAI], ids=lambda config: config.name)
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_dict_becomes_a_bundle(
    tmp_path: Path, config: NetworkConfig, prefix: str, nested: str | None, dtype: torch.dtype
) -> None:
    network = build_network(config, seed=5)
    own = network.body if isinstance(network, MonaiNetwork) else network
    content: dict[str, Any] = {prefix + n: t.to(dtype) for n, t in own.state_dict().items()}
    torch.save({nested: content, "epoch": 3} if nested else content, tmp_path / "net.pt")
    card = import_state_dict(tmp_path / "net.pt", described(config), tmp_path / "bundle")
    generator = load_bundle(tmp_path / "bundle", expected_fingerprint=card.fingerprint, device=CPU)
    found = generator.network.state_dict()
    assert all(torch.equal(found[name], t) for name, t in network.state_dict().items())


@pytest.mark.parametrize("config", [SMALL, MONAI], ids=lambda config: config.name)
def test_safetensors_and_a_description_become_a_bundle(
    tmp_path: Path, config: NetworkConfig
) -> None:
    network = build_network(config, seed=5)
    own = network.body if isinstance(network, MonaiNetwork) else network
    safetensors.torch.save_file(own.state_dict(), tmp_path / "net.safetensors")
    card = import_state_dict(tmp_path / "net.safetensors", described(config), tmp_path / "bundle")
    generator = load_bundle(tmp_path / "bundle", expected_fingerprint=card.fingerprint, device=CPU)
    found = generator.network.state_dict()
    assert all(torch.equal(found[name], t) for name, t in network.state_dict().items())
    (tmp_path / "net.safetensors").write_bytes(b"hello")
    with pytest.raises(GeneratorError, match="not a safetensors file"):
        import_state_dict(tmp_path / "net.safetensors", described(config), tmp_path / "other")


def _onnx_file(path: Path, tensors: dict[str, Tensor]) -> onnx.ModelProto:
    """A file with these weights, and two constants as an exporter leaves them."""
    constants = {"/up/Constant": torch.tensor([2.0, 2.0]), "onnx::Shape_7": torch.tensor(3)}
    graph = onnx.helper.make_graph(
        [],
        "net",
        [],
        [],
        [onnx.numpy_helper.from_array(t.numpy(), n) for n, t in (tensors | constants).items()],
    )
    model = onnx.helper.make_model(graph)
    path.write_bytes(model.SerializeToString())
    return model


@pytest.mark.parametrize("config", [SMALL, MONAI], ids=lambda config: config.name)
def test_the_weights_of_an_onnx_file_become_a_bundle(tmp_path: Path, config: NetworkConfig) -> None:
    network = build_network(config, seed=5)
    own = network.body if isinstance(network, MonaiNetwork) else network
    _onnx_file(tmp_path / "net.onnx", own.state_dict())
    card = import_state_dict(tmp_path / "net.onnx", described(config), tmp_path / "bundle")
    generator = load_bundle(tmp_path / "bundle", expected_fingerprint=card.fingerprint, device=CPU)
    found = generator.network.state_dict()
    assert all(torch.equal(found[name], t) for name, t in network.state_dict().items())


def test_onnx_files_that_are_refused(tmp_path: Path) -> None:
    weights = build_network(SMALL, seed=5).state_dict()
    path = tmp_path / "net.onnx"

    def refusal() -> GeneratorError:
        with pytest.raises(GeneratorError) as caught:
            import_state_dict(path, described(SMALL), tmp_path / "bundle")
        assert_four_parts(caught.value)
        assert not (tmp_path / "bundle").exists()
        return caught.value

    model = _onnx_file(path, weights)
    path.write_bytes(path.read_bytes()[:-9])
    assert "damaged" in refusal().seen
    path.write_bytes(b"hello")
    assert "damaged" in refusal().seen
    # a file elsewhere is named by the model: it is never opened
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4 * weights["stem.bias"].numel()))
    outside = next(t for t in model.graph.initializer if t.name == "stem.bias")
    outside.ClearField("raw_data")
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    assert "other files (stem.bias)" in refusal().seen
    # a layer too many, and one too few
    _onnx_file(path, weights | {"stranger": torch.zeros(2, 2)})
    assert "stranger" in refusal().seen
    _onnx_file(path, {name: t for name, t in weights.items() if name != "head.weight"})
    assert "head.weight" in refusal().seen
    assert "do_constant_folding=False" in refusal().seen
    _onnx_file(path, {})
    assert "no weights" in refusal().seen


class MakesFolder:
    """Unpickled without care, this makes a folder: what an attacker's file would do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    trap, path = tmp_path / "attacked", tmp_path / "net.pt"
    content = {"stem.weight": MakesFolder(trap)}
    if form == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(GeneratorError, match="executable") as caught:
        import_state_dict(path, described(SMALL), tmp_path / "bundle")
    assert_four_parts(caught.value)
    assert not trap.exists()
    assert not (tmp_path / "bundle").exists()
    if form == "bare":
        # the trap is a real one: plain unpickling springs it
        pickle.loads(path.read_bytes())  # noqa: S301
        assert trap.exists()


def test_a_pickled_module_is_refused_as_executable(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "net.pt")
    with pytest.raises(GeneratorError, match="executable"):
        import_state_dict(tmp_path / "net.pt", described(SMALL), tmp_path / "bundle")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_refused_as_executable(tmp_path: Path) -> None:
    scripted = torch.jit.trace(  # type: ignore[no-untyped-call]
        nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)
    )
    torch.jit.save(scripted, str(tmp_path / "net.pt"))
    with pytest.raises(GeneratorError, match="TorchScript"):
        import_state_dict(tmp_path / "net.pt", described(SMALL), tmp_path / "bundle")


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda state: state.pop("stem.bias"), r"stem\.bias is missing"),
        (lambda state: state.update(more=torch.zeros(1)), "more is not part"),
        (lambda state: state.update({"stem.bias": torch.zeros(7)}), r"stem\.bias is \[7\]"),
        (lambda state: state.update({"stem.bias": torch.full((4,), torch.inf)}), "infinity"),
        (lambda state: state.update(epoch=3), "'epoch' is a int"),
        (lambda state: state.clear(), "not name -> tensor"),
    ],
)
def test_a_state_dict_of_another_network_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], seen: str
) -> None:
    state = dict(build_network(SMALL, seed=5).state_dict())
    change(state)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(GeneratorError, match=seen) as caught:
        import_state_dict(tmp_path / "net.pt", described(SMALL), tmp_path / "bundle")
    assert_four_parts(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("content", [None, b"", b"hello", b"PK\x03\x04half"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(GeneratorError, match="cannot import"):
        import_state_dict(tmp_path / "net.pt", described(SMALL), tmp_path / "bundle")
