"""Plain networks beside a run: rows, costs, resume, no choice of a site, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import safetensors.torch

from lift.config.simulation import RivalsSettings, SimulationConfig
from lift.records.metrics import Costs, read_metrics
from lift_simulation.plain.training import build
from tests.end_to_end.tiny_run import TinyRun, bytes_under, check_refusal

NETWORKS: Final = ("unet_3d_half", "unet_25d")
OWN: Final = {"learning_rate": 0.01, "steps": 4, "window": [6, 32, 32]}
SETTINGS: Final[dict[str, Any]] = {
    "unet_3d_half": OWN,
    "unet_25d": OWN,
    "pooled_steps": 2,
    "local_steps": 1,
    "checkpoint_steps": 2,
}
ROWS: Final = [f"{name}_{mode}" for mode in ("centralised", "federated") for name in NETWORKS]


def _simulate(tiny: TinyRun, out: str, **changes: object) -> None:
    compare = ["curves", "three_planes", *NETWORKS]
    done = tiny.simulate(out, compare=compare, rivals=SETTINGS, **changes)
    assert done.code == 0, done


@pytest.fixture(scope="module")
def run(tiny: TinyRun) -> Path:
    """A finished run with two plain networks."""
    _simulate(tiny, "rivals")
    return tiny.folder / "rivals"


def test_every_network_is_a_row_with_its_difference_and_its_costs(run: Path) -> None:
    metrics = read_metrics(run)
    held_out = metrics.pooled["no_mixer"]["psnr_db"].n
    for row in (*ROWS, "three_planes"):
        assert metrics.pooled[row]["psnr_db"].n == held_out
        gain = metrics.comparisons.pooled[f"federated_curves - {row}"]["psnr_db"]
        means = [metrics.pooled[name]["psnr_db"].value for name in ("federated_curves", row)]
        assert None not in (*means, gain.value)
        assert gain.value == pytest.approx(means[0] - means[1])  # type: ignore[operator]  # no None
    assert {f"chosen - {row}" for row in ROWS} <= set(metrics.comparisons.pooled)
    costs = metrics.costs
    assert isinstance(costs, Costs)
    assert set(costs.rows) == {"no_mixer", "federated_curves", "three_planes", *ROWS}
    for cost in costs.rows.values():
        assert (cost.inference_s or 0) > 0
        assert (cost.inference_flops or 0) > 0
    own, alone = costs.rows["federated_curves"], costs.rows["no_mixer"]
    assert (own.inference_flops or 0) > (alone.inference_flops or 0)
    assert (costs.rows["three_planes"].inference_flops or 0) > 2 * (alone.inference_flops or 0)
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "2.5D U-Net, federated" in report
    assert "What the rows cost" in report


def test_bytes_are_four_for_each_parameter_and_a_header(run: Path) -> None:
    costs = read_metrics(run).costs
    assert costs is not None
    for name in NETWORKS:
        cost = costs.rows[f"{name}_federated"]
        parameters = build(name, 2, seed=3).parameter_count()
        assert cost.parameters == parameters
        path = run / "plain" / f"{name}_federated.safetensors"
        numbers = safetensors.torch.load_file(path)
        assert sum(tensor.numel() for tensor in numbers.values()) == parameters
        assert 0 < (cost.sent_bytes or 0) - 4 * parameters < 20_000
        assert costs.rows[f"{name}_centralised"].sent_bytes is None


def test_no_site_is_offered_a_plain_network(run: Path) -> None:
    chosen = json.loads((run / "run.json").read_text(encoding="utf-8"))["chosen"]
    offered = {name for one in chosen for choice in one.values() for name in choice["psnr_db"]}
    assert offered
    assert not offered & {*ROWS, "three_planes"}


def test_the_same_command_trains_what_is_missing_to_the_same_bits(tiny: TinyRun, run: Path) -> None:
    """As after a kill between two trainings: the record is there, the run is not complete."""
    before = bytes_under(run / "plain")
    pooled = read_metrics(run).pooled
    lost = run / "plain" / "unet_25d_federated.safetensors"
    kept = run / "plain" / "unet_3d_half_federated.safetensors"
    times = {path: path.stat().st_mtime_ns for path in (lost, kept)}
    lost.unlink()
    (run / "report.html").unlink()
    _simulate(tiny, "rivals")
    after = bytes_under(run / "plain")
    numbers = {name for name in before if name.endswith(".safetensors")}
    assert {name: after[name] for name in numbers} == {name: before[name] for name in numbers}
    assert kept.stat().st_mtime_ns == times[kept]
    assert lost.stat().st_mtime_ns > times[lost]
    assert read_metrics(run).pooled == pooled


def test_a_network_that_is_not_known_is_refused_by_name(tiny: TinyRun) -> None:
    refused = tiny.simulate("rivals-unknown", compare=["unet_4d"])
    check_refusal(refused, 2, names=("unet_4d",))
    too_small = tiny.simulate(
        "rivals-small", compare=["unet_3d"], rivals={"unet_3d": {"window": [16, 16, 16]}}
    )
    check_refusal(too_small, 2, names=("rows or columns above 16",))


def test_settings_without_a_network_keep_the_digest_of_before(tiny: TinyRun) -> None:
    one = SimulationConfig.from_yaml(tiny.settings("rivals-off", compare=["curves"]))
    other = SimulationConfig.from_yaml(
        tiny.settings("rivals-off", compare=["curves"], rivals={"local_steps": 7})
    )
    assert "rivals" not in one.canonical_json()
    assert one.digest() == other.digest()
    on = SimulationConfig.from_yaml(
        tiny.settings("rivals-on", compare=["unet_3d"], rivals={"local_steps": 7})
    )
    plain = SimulationConfig.from_yaml(tiny.settings("rivals-on", compare=["unet_3d"]))
    assert on.digest() != plain.digest()
    assert RivalsSettings() == plain.rivals
