"""What stands beside the mixer, on a fake CUDA device: plain networks, segmenters, benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import yaml
from torch import Tensor, nn

import lift_benchmarks.downstream.__main__ as downstream
import lift_benchmarks.reach.__main__ as reach
import lift_simulation.segmenter
from lift_simulation.plain import networks
from tests.end_to_end.downstream_world import make_world
from tests.end_to_end.labels import write_labels
from tests.end_to_end.tiny_run import ENTRY_POINTS, TinyRun, run_here
from tests.gpu.fake_cuda import CUDA, fake_cuda
from tests.gpu.test_commands import DEVICES, NEAR, SPLIT, figures, on

NETWORK: Final = {"learning_rate": 0.002, "steps": 4, "window": [6, 32, 32]}
COMPARE: Final = ["controls", "three_planes", "unet_3d_half", "unet_25d"]
PLAIN: Final = [f"{network}_federated" for network in COMPARE[2:]]
NEAR_DICE: Final = 0.05
NEAR_PLAIN: Final = {"psnr_db": 0.1, "ssim": 0.02, "dz_corr": 0.02}
"""After four steps a network is far from any target."""
REACH: Final = Path(reach.__file__).parent / "settings.yaml"


def settings(tiny: TinyRun, device: str, compare: Sequence[str] = COMPARE) -> Path:
    """Of a run with a segmenter, and with plain networks where they are compared."""
    return tiny.settings(
        f"evidence-{device}-{len(compare)}",
        device=device,
        compare=list(compare),
        plan__split=SPLIT,
        rivals={
            "unet_3d_half": NETWORK,
            "unet_25d": NETWORK,
            "modes": ["federated"],
            "local_steps": 1,
            "checkpoint_steps": 2,
        },
        segmentation={
            "labels": write_labels(tiny, "labels", brightest=20.0),
            "segmenter": {"width": 8, "steps": 60, "learning_rate": 0.01},
        },
    )


@dataclass(frozen=True)
class Runs:
    """The same run on both devices.

    Attributes:
        folders: DEVICE -> the folder of the finished run.
        seen: devices of what networks were given, and of their numbers, where there was a GPU.
    """

    folders: dict[str, Path]
    seen: dict[str, set[torch.device]]


@pytest.fixture(scope="module")
def runs(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("evidence")
    seen: dict[str, set[torch.device]] = {"plain": set(), "segmenter": set()}
    window, segment = networks.predict_window, lift_simulation.segmenter.predict

    def predict_window(network: networks.PlainNetwork, source: Tensor, mask: Tensor) -> Tensor:
        seen["plain"] |= {source.device, mask.device, network.device}
        return window(network, source, mask)

    def predict(network: nn.Module, stack: Any) -> Tensor:
        seen["segmenter"] |= {parameter.device for parameter in network.parameters()}
        return segment(network, stack)

    words = {d: ("--config", settings(tiny, d), "--output", folder / d) for d in DEVICES}
    with pytest.MonkeyPatch.context() as patch:
        # they are measured on the CPU, in a process each, wherever the run is
        patch.setattr("lift_simulation.tasks.fold.row_costs", lambda *args, **options: None)
        on("cpu", "lift-simulate", *words["cpu"])
        patch.setattr(networks, "predict_window", predict_window)
        patch.setattr("lift_simulation.tasks.segmentation.predict", predict)
        on("auto", "lift-simulate", *words["auto"])
    return Runs({device: folder / device for device in DEVICES}, seen)


def test_rows_beside_the_mixer_are_those_of_the_cpu(runs: Runs) -> None:
    expected, found = (figures(runs.folders[device] / "metrics.json") for device in DEVICES)
    assert expected.keys() == found.keys()
    assert {*PLAIN, "three_planes", "real", "real_smoothed"} < expected.keys()
    for row, own in expected.items():
        assert own.keys() == found[row].keys()
        assert abs(found[row]["dice"] - own["dice"]) <= NEAR_DICE, row
        for metric, most in (NEAR_PLAIN if row in PLAIN else NEAR).items():
            if metric in own:
                assert abs(found[row][metric] - own[metric]) <= most, (row, metric)


def test_networks_were_on_the_device(runs: Runs) -> None:
    assert runs.seen == {"plain": {CUDA}, "segmenter": {CUDA}}


def _mean_dice(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {row["cell"]: row["dice"]["value"] for row in rows}


def _on_both(program: Any, words: Mapping[str, Sequence[str | Path]], out: Path) -> None:
    """A benchmark's program, without a device and with one, which it must use."""
    ENTRY_POINTS[program.PROGRAM] = program.main
    for device in DEVICES:
        on(device, program.PROGRAM, *words[device], "--output", out / device)


def test_reach(tiny: TinyRun, tmp_path: Path) -> None:
    data = yaml.safe_load(REACH.read_text(encoding="utf-8"))
    data |= {
        "models": [
            {"kind": "zrefine", "width": 4, "learning_rate": 0.002, "most_steps": 4},
            {
                "kind": "unet",
                "width": 2,
                "learning_rate": 0.002,
                "most_steps": 4,
                "window": [12, 32, 32],
            },
        ],
        "window": [6, 16, 16],
        "pooled_steps": 4,
        "local_steps": 2,
        "checkpoint_steps": 4,
        "data_sets": {"tiny": {"train": 0.5, "validation": 0.3}},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    words = {
        device: ("--config", tiny.settings(f"reach-{device}", device=device), "--settings", path)
        for device in DEVICES
    }
    _on_both(reach, words, tmp_path)
    expected, found = (json.loads((tmp_path / d / "reach.json").read_text()) for d in DEVICES)
    assert expected["pooled"].keys() == found["pooled"].keys()
    for row, own in expected["pooled"].items():
        difference = found["pooled"][row]["psnr_db"]["value"] - own["psnr_db"]["value"]
        assert abs(difference) <= NEAR["psnr_db"], row


def test_downstream(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    path = world.settings()
    words = {
        d: ("--config", world.config(d, device=d), "--settings", path, "--cell", "both-2")
        for d in DEVICES
    }
    _on_both(downstream, words, tmp_path)
    expected, found = (
        _mean_dice(json.loads((tmp_path / d / "downstream.json").read_text())["rows"])
        for d in DEVICES
    )
    assert expected.keys() == found.keys()
    for row, own in expected.items():
        assert abs(found[row] - own) <= NEAR_DICE, row


def test_a_planted_segmenter_on_the_cpu_is_noticed(tiny: TinyRun, tmp_path: Path) -> None:
    def left(tensor: Tensor, device: torch.device) -> Tensor:
        return tensor

    with pytest.MonkeyPatch.context() as patch, fake_cuda():
        patch.setattr(lift_simulation.segmenter, "to_device", left)
        words = ("--config", settings(tiny, "auto", []), "--output", tmp_path / "out")
        done = run_here("lift-simulate", *words)
    assert done.code == 70
    told = re.search(r"'(/.*\.log)'", done.stderr)
    assert told is not None
    assert "cuda:0 and cpu" in Path(told[1]).read_text(encoding="utf-8")
