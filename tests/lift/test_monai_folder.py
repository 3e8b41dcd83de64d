"""A generator from a MONAI bundle folder: its weights arrive, and nothing of it ever runs."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from monai.bundle import ConfigParser, init_bundle
from monai.bundle.utils import DEFAULT_INFERENCE
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet

from lift.config.generator import MonaiBasicUNetConfig, MonaiSegResNetConfig, MonaiUNetConfig
from lift.errors import ConfigError, GeneratorError, LiftError
from lift.generator.bundle import load_bundle
from lift.generator.card import WEIGHTS_FILE, read_card
from lift.generator.monai_folder import _NETWORKS, _spec, import_monai_folder
from tests.end_to_end.tiny_run import check_refusal, run_here
from tests.lift.small_world import CPU, assert_four_parts
from tests.lift.test_bundle import MakesFolder

UNET: dict[str, Any] = {
    "_target_": "UNet",
    "_desc_": "from two sources to a third",
    "spatial_dims": 2,
    "in_channels": 2,
    "out_channels": 1,
    "channels": [4, 8],
    "strides": [2],
    "norm": ["INSTANCE", {"affine": True}],
    "dropout": 0.1,
}
SETTINGS: dict[str, Any] = {"source": ["t1n", "t2w"], "target": "t2f"}
METADATA = {"license": "CC BY 4.0", "data_source": "public scans", "version": "0.1.0"}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(definition: dict[str, Any]) -> torch.nn.Module:
    """The network that MONAI itself makes of a definition."""
    torch.manual_seed(2)
    network: torch.nn.Module = ConfigParser({"net": definition}).get_parsed_content("net")
    return network.eval()


def write_folder(
    folder: Path,
    definition: dict[str, Any] = UNET,
    *,
    weights: str = "model.safetensors",
    **rest: Any,
) -> Path:
    """A bundle as MONAI's documentation describes it; `rest` stands beside the network."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    # what real bundles hold beside the network: expressions, references, parts of MONAI
    config = {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "network_def": definition,
        "network": "$@network_def.to(@device)",
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": {"_target_": "monai.engines.SupervisedEvaluator", "network": "@network"},
        **rest,
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    tensors = built(definition).state_dict()
    if weights.endswith(".pt"):
        torch.save(tensors, folder / "models" / weights)
    else:
        safetensors.torch.save_file(tensors, folder / "models" / weights)
    return folder


def do_import(folder: Path, **settings: Any) -> Path:
    output = folder.with_name("imported")
    import_monai_folder(folder, SETTINGS | settings, "import.yaml", output)
    return output


def refused(folder: Path, match: str, **settings: Any) -> LiftError:
    with pytest.raises((GeneratorError, ConfigError), match=match) as caught:
        do_import(folder, **settings)
    assert_four_parts(caught.value)
    assert not folder.with_name("imported").exists()
    return caught.value


DEFAULT_NORM = {name: value for name, value in UNET.items() if name != "norm"}
BASIC: dict[str, Any] = {
    "_target_": "monai.networks.nets.BasicUNet",
    "spatial_dims": 2,
    "in_channels": 2,
    "out_channels": 1,
    "features": [4, 4, 8, 8, 8, 4],
    "act": ["leakyrelu", {"negative_slope": 0.1}],
}
SEGRESNET: dict[str, Any] = {
    "_target_": "monai.networks.nets.segresnet.SegResNet",
    "spatial_dims": 2,
    "in_channels": 6,
    "out_channels": 1,
    "init_filters": 16,
    "blocks_down": [1, 1],
    "blocks_up": [1],
    "dropout_prob": 0.2,
}
PLAIN = [UNET, DEFAULT_NORM, BASIC, SEGRESNET]


@pytest.mark.parametrize(
    ("definition", "network"),
    [
        (UNET, MonaiUNetConfig(n_source=2, channels=(4, 8), residual_units=0)),
        (DEFAULT_NORM, MonaiUNetConfig(n_source=2, channels=(4, 8), residual_units=0)),
        (BASIC, MonaiBasicUNetConfig(n_source=2, features=(4, 4, 8, 8, 8, 4))),
        (SEGRESNET, MonaiSegResNetConfig(n_source=2, context_slices=1, width=16, blocks=(1, 1))),
    ],
    ids=["unet", "norm without weights", "basic", "segresnet"],
)
@pytest.mark.parametrize("weights", ["model.safetensors", "model.pt"])
def test_what_monai_builds_predicts_the_same_after_the_import(
    tmp_path: Path, definition: dict[str, Any], network: Any, weights: str
) -> None:
    folder = write_folder(tmp_path / "monai", definition, weights=weights)
    generator = load_bundle(do_import(folder), expected_fingerprint=None, device=CPU)
    card = generator.card
    assert card.network == network
    assert (card.licence, card.training_data) == ("CC BY 4.0", "public scans")
    assert card.fingerprint == generator.fingerprint
    x = torch.rand(2, definition["in_channels"], 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(generator.predict(x)[0], built(definition)(x), rtol=0, atol=0)


def test_a_folder_that_monai_itself_writes_is_imported(tmp_path: Path) -> None:
    network = built(UNET)
    config = DEFAULT_INFERENCE | {"network_def": UNET}
    init_bundle(tmp_path / "monai", network=network, inference_str=config)
    assert (tmp_path / "monai" / "models" / "model.pt").is_file()
    output = do_import(tmp_path / "monai", licence="MIT", training_data="mine")
    generator = load_bundle(output, expected_fingerprint=None, device=CPU)
    x = torch.rand(1, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(generator.predict(x)[0], network(x))


@pytest.mark.parametrize("network", [BasicUNet, UNet, SegResNet])
def test_what_a_definition_leaves_out_is_the_default_of_monai(network: type) -> None:
    known = _NETWORKS[network.__name__]
    defaults = {
        **{name: default for name, (_, default) in known.keys.items()},
        **{name: default for name, (_, default) in known.fixed.items()},
        **{name: default for name, (_, _, default) in known.by_level.items()},
        "in_channels": 1,
    }
    # SegResNet: another way to give the norm, which is refused as unknown
    ways_around = {"norm_name", "num_groups"} if network is SegResNet else set()
    parameters = dict(inspect.signature(network).parameters)
    assert parameters.keys() == {*defaults, known.dropout, *ways_around}
    for name, default in defaults.items():
        theirs = parameters[name].default
        if theirs is not inspect.Parameter.empty:
            assert _spec(json.loads(json.dumps(theirs))) == _spec(default), name
        else:
            # required by MONAI: without it a definition is refused, or MONAI would refuse it
            assert default is None or name in {"spatial_dims", "in_channels", "out_channels"}


def _planted(trap: Path) -> dict[str, tuple[Change, str]]:
    """Attack -> change of a config, what the refusal names."""
    call = {"_target_": "os.mkdir", "path": str(trap)}
    expression = f"$__import__('os').mkdir({str(trap)!r})"

    def in_network(**arguments: Any) -> Change:
        return lambda config: config["network_def"].update(arguments)

    return {
        "target": (lambda config: config.update(network_def=call), "os.mkdir"),
        "system": (in_network(_target_="os.system", command=f"mkdir {trap}"), "os.system"),
        "eval": (in_network(_target_="builtins.eval"), "builtins.eval"),
        "target in an argument": (in_network(channels=call), "os.mkdir"),
        "target deep in an argument": (in_network(norm=["instance", {"affine": [call]}]), "os.mk"),
        "target elsewhere": (lambda config: config.update(initialize=[call]), "os.mkdir"),
        "target of its own Python": (
            lambda config: config.update(evaluator={"_target_": "scripts.evaluator.Own"}),
            "scripts.evaluator.Own",
        ),
        "target that is no text": (in_network(_target_=["os.mkdir"]), "_target_"),
        "other network of MONAI": (in_network(_target_="monai.networks.nets.VNet"), "VNet"),
        "function of MONAI": (in_network(_target_="monai.bundle.run"), "monai.bundle.run"),
        "expression": (in_network(channels=expression), "channels.*expression"),
        "import": (in_network(norm="$import os"), "norm.*expression"),
        "expression with a space": (in_network(norm=" " + expression), "norm"),
        "expression deep in an argument": (
            in_network(norm=["instance", {"affine": expression}]),
            "expression",
        ),
        "whole network as expression": (
            lambda config: config.update(network_def=expression),
            "expression",
        ),
        "description": (in_network(_desc_=expression), "_desc_.*expression"),
        "requires": (in_network(_requires_=[expression]), "_requires_"),
        "disabled": (in_network(_disabled_=expression), "_disabled_"),
        "mode": (in_network(_mode_="debug"), "_mode_"),
        "reference": (in_network(channels="@widths"), "channels.*reference"),
        "macro": (in_network(channels="%/etc/hostname"), "channels.*macro"),
        "network in another file": (
            lambda config: config.update(network_def="%../outside.json#network_def"),
            "macro",
        ),
    }


@pytest.mark.parametrize("attack", _planted(Path()))
def test_a_planted_target_or_expression_is_refused_by_name_and_not_run(
    tmp_path: Path, attack: str
) -> None:
    trap = tmp_path / "attacked"
    change, named = _planted(trap)[attack]
    folder = write_folder(tmp_path / "monai")
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    refused(folder, named)
    assert not trap.exists()


@pytest.mark.parametrize("attack", ["target", "description", "requires"])
def test_the_traps_are_real_ones(tmp_path: Path, attack: str) -> None:
    """MONAI's own reader runs what is planted; this is why it does not read here."""
    trap = tmp_path / "attacked"
    config = {"network_def": dict(UNET)}
    _planted(trap)[attack][0](config)
    ConfigParser(config).get_parsed_content("network_def")
    assert trap.exists()


def test_expressions_beside_the_network_are_not_read(tmp_path: Path) -> None:
    trap = tmp_path / "attacked"
    expression = f"$__import__('os').mkdir({str(trap)!r})"
    folder = write_folder(tmp_path / "monai", imports=[expression], initialize=expression)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text(f"import os; os.mkdir({str(trap)!r})")
    do_import(folder)
    assert not trap.exists()


@pytest.mark.parametrize("key", ["license", "data_source"])
@pytest.mark.parametrize(
    "text", ["$__import__('os')", "@network", "%/etc/hostname", "a\x1b[2Jb", 7]
)
def test_a_statement_that_is_no_plain_text_is_refused(tmp_path: Path, key: str, text: Any) -> None:
    folder = write_folder(tmp_path / "monai")
    metadata = json.dumps(METADATA | {key: text})
    (folder / "configs" / "metadata.json").write_text(metadata)
    refused(folder, key)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_pickled_weights_with_a_payload_are_refused_and_not_run(tmp_path: Path, form: str) -> None:
    trap = tmp_path / "attacked"
    folder = write_folder(tmp_path / "monai", weights="model.pt")
    content = {"model": {"weight": MakesFolder(trap)}}
    torch.save(
        content, folder / "models" / "model.pt", _use_new_zipfile_serialization=form == "zip"
    )
    refused(folder, "executable")
    assert not trap.exists()
    torch.load(folder / "models" / "model.pt", weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize(
    "name",
    [
        "models/model.safetensors",
        "configs/inference.json",
        "configs/metadata.json",
        "models",
        "configs",
    ],
)
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "monai")
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    refused(folder, rf"{Path(name).parts[0]}.*link")


def test_a_pipe_in_place_of_the_weights_does_not_block(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "monai")
    (folder / "models" / "model.safetensors").unlink()
    os.mkfifo(folder / "models" / "model.safetensors")
    refused(folder, "model.safetensors.*pipe")


def test_a_name_in_the_config_leads_to_no_other_file(tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other")
    weights = tmp_path / "model.safetensors"
    shutil.move(other / "models" / "model.safetensors", weights)
    folder = write_folder(tmp_path / "monai", ckpt_path="../model.safetensors")
    (folder / "models" / "model.safetensors").unlink()
    refused(folder, "model.safetensors")


def test_a_tensor_whose_name_is_a_path_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "monai")
    path = folder / "models" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({**tensors, "../../evil": torch.zeros(1)}, path)
    refused(folder, "evil is not part")
    safetensors.torch.save_file({**tensors, "\x1b[2J": torch.zeros(1)}, path)
    assert "\x1b" not in str(refused(folder, r"\\x1b\[2J is not part"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["monai"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spatial_dims": 3}, "spatial_dims"),
        ({"out_channels": 2}, "out_channels"),
        ({"out_channels": True}, "out_channels"),
        ({"in_channels": 4}, "in_channels"),
        ({"in_channels": 22}, "in_channels"),
        ({"in_channels": "2"}, "in_channels"),
        ({"strides": [1]}, "strides"),
        ({"strides": [2, 2]}, "strides"),
        ({"norm": "batch"}, "norm"),
        ({"norm": ["instance", {"affine": True, "eps": 0.1}]}, "norm"),
        ({"act": "relu"}, "act"),
        ({"kernel_size": 5}, "kernel_size"),
        ({"bias": False}, "bias"),
        ({"adn_ordering": "ADN"}, "adn_ordering"),
        ({"dropout": "much"}, "dropout"),
        ({"dropout": True}, "dropout"),
        ({"channels": "wide"}, "channels"),
        ({"channels": [4]}, "channels"),
        ({"num_res_units": 99}, "num_res_units"),
        ({"colour": "red"}, "colour"),
    ],
    ids=str,
)
def test_what_is_not_one_of_our_networks_is_refused_by_argument(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    folder = write_folder(tmp_path / "monai")
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["network_def"].update(change)
    path.write_text(json.dumps(config))
    refused(folder, named)


def test_the_licence_of_the_bundle_is_kept(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "monai")
    refused(folder, "CC BY 4.0", licence="MIT")
    metadata = {"data_source": "public scans"}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    refused(folder, "licence: missing")
    generator = load_bundle(
        do_import(folder, licence="MIT", training_data="mine"),
        expected_fingerprint=None,
        device=CPU,
    )
    assert (generator.card.licence, generator.card.training_data) == ("MIT", "mine")


def test_settings_that_name_another_network_are_refused(tmp_path: Path) -> None:
    network = {"name": "monai_unet", "n_source": 2}
    refused(write_folder(tmp_path / "monai"), "network", network=network)


@pytest.mark.parametrize(
    "text", ["", "{", '{"network_def": 1, "network_def": 2}', "[]", "{}", '{"network_def": 7}']
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path / "monai")
    (folder / "configs" / "inference.json").write_text(text)
    refused(folder, "inference.json")


def test_a_config_in_yaml_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "monai")
    (folder / "configs" / "inference.json").rename(folder / "configs" / "inference.yaml")
    refused(folder, r"configs/inference\.json.*No such file")


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "monai")
    (folder / "models" / "model.safetensors").write_bytes(b"x" * 40)
    refused(folder, "not a safetensors file")
    assert not (tmp_path / "imported" / WEIGHTS_FILE).exists()


def test_the_command_imports_a_folder_and_refuses_a_planted_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "monai")
    settings = tmp_path / "describe.yaml"
    settings.write_text(json.dumps(SETTINGS))
    words = ("lift", "pretrain", "--config", settings, "--import", folder, "-o", tmp_path / "own")
    done = run_here(*words)
    assert done.code == 0, done
    assert f"fingerprint: {read_card(tmp_path / 'own').fingerprint}\n" in done.stdout
    trap = tmp_path / "attacked"
    path = folder / "configs" / "inference.json"
    planted = {"_target_": "os.system", "command": f"mkdir {trap}"}
    path.write_text(json.dumps({"network_def": planted}))
    check_refusal(run_here(*words[:-1], tmp_path / "other"), 3, names=["os.system", str(path)])
    assert not trap.exists()
    assert not (tmp_path / "other").exists()
