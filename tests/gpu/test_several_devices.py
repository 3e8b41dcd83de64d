"""One of several GPUs by its number, and a simulation whose sites are spread over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lift.config.device import check_device_names
from lift.config.simulation import SimulationConfig
from lift.device import resolve_devices
from lift.errors import ConfigError
from lift_client.session import SiteSession
from lift_simulation.tasks import unconditional
from tests.end_to_end.tiny_run import SOURCES, TinyRun, pretrain_settings, run_here
from tests.gpu.checks import paired_plan, run_paired
from tests.gpu.fake_cuda import fake_cuda
from tests.lift.unconditional.tiny_decoder import make_decoder, plan_data, write_bodies

SPLIT = {"train": 0.4, "validation": 0.2}


def simulated(config: Path, out: Path, devices: int) -> tuple[dict[str, Any], set[int]]:
    """The table of `lift-simulate`, and the numbers of the GPUs that held anything."""
    with fake_cuda(devices=devices) as fake:
        done = run_here("lift-simulate", "--config", config, "--output", out)
    assert done.code == 0, done
    table: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return table, set(fake.used)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Site -> where what its session trains was at its end."""
    found: dict[str, str] = {}
    close = SiteSession.close

    def closed(session: SiteSession) -> None:
        for opened in session._opened.values():
            found[session.settings.name] = str(opened.work.part.device)
        close(session)

    monkeypatch.setattr(SiteSession, "close", closed)
    return found


def test_sites_are_spread_over_all_gpus_and_the_result_is_that_of_one(
    tiny: TinyRun, tmp_path: Path, placed: dict[str, str]
) -> None:
    changes: dict[str, Any] = {"plan__split": SPLIT}
    one = tiny.settings("one-gpu", device="cuda:0", **changes)
    expected, used = simulated(one, tmp_path / "one", devices=2)
    assert (placed, used) == ({"east": "cuda:0", "west": "cuda:0"}, {0})
    every = tiny.settings("all-gpus", device="cuda:all", **changes)
    found, used = simulated(every, tmp_path / "all", devices=2)
    assert (placed, used) == ({"east": "cuda:0", "west": "cuda:1"}, {0, 1})
    assert found == expected


def test_sites_of_new_volumes_are_spread_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: dict[str, str] = {}

    def stopped(run: Any, release: object) -> None:
        placed.update({name: str(work.part.device) for name, work in run.works.items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(unconditional._Run, "federations", stopped)
    sites = {s: write_bodies(tmp_path / s, 40 + i, 5) for i, s in enumerate(("east", "west"))}
    data: dict[str, Any] = {
        "name": "tiny",
        "data_statement": "Random ellipsoids made by a test; no patient was scanned.",
        "image_checks": False,
        "generator": {"bundle": str(make_decoder(tmp_path))},
        "sites": [
            {"name": site, "data": {"layout": "brats", "root": str(root)}}
            for site, root in sites.items()
        ],
        "plan": plan_data(split={"train": 0.6, "validation": 0.0}),
        "device": ["cuda:2", "cuda:1"],
    }
    config = tmp_path / "settings.json"
    config.write_text(json.dumps(data), encoding="utf-8")
    with fake_cuda(devices=3) as fake:
        done = run_here("lift-simulate", "--config", config, "--output", tmp_path / "run")
    assert done.code == 130, done
    assert placed == {"east": "cuda:2", "west": "cuda:1"}
    assert set(fake.used) == {1, 2}


def test_one_gpu_by_its_number_is_the_only_one_that_is_used(tiny: TinyRun, tmp_path: Path) -> None:
    with fake_cuda(devices=2) as fake:
        assert run_paired(tmp_path / "run", tiny, paired_plan(), device="cuda:1").devices == {
            "cuda:1"
        }
    assert set(fake.used) == {1}
    mixer = tiny.folder / "on-the-cpu"
    assert tiny.simulate("on-the-cpu").code == 0
    inputs = [f"{name}={tiny.file('east', 0, name)}" for name in SOURCES]
    where = ("--mixer", mixer, "--generator", tiny.bundle, "--device", "cuda:1")
    settings = pretrain_settings(tiny, steps=3)
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("translate", *inputs, "-o", tmp_path / "made.nii.gz", *where),
        ("pretrain", "--config", settings, "-o", tmp_path / "made", "--device", "cuda:1"),
    )
    for words in commands:
        with fake_cuda(devices=2) as fake:
            done = run_here("lift", *words)
        assert done.code == 0, done
        assert set(fake.used) == {1}, words


def test_names_of_several_gpus() -> None:
    for good in ("auto", "cuda:all", ("cuda:0", "cuda:3")):
        assert check_device_names(good) == good
    for bad in ((), ("cuda:0", "cuda:0"), ("cuda:0", "cpu"), ("auto",), "cuda:all,cuda:1", "all"):
        with pytest.raises(ValueError, match="device"):
            check_device_names(bad)
    with fake_cuda(devices=3):
        gpus = tuple(torch.device("cuda", number) for number in range(3))
        assert resolve_devices("cuda:all") == gpus
        assert resolve_devices(("cuda:2", "cuda:0")) == (gpus[2], gpus[0])
        with pytest.raises(ConfigError, match="cuda:7"):
            resolve_devices(("cuda:0", "cuda:7"))
    assert resolve_devices("auto") == (torch.device("cpu"),)
    with pytest.raises(ConfigError, match="CUDA devices that torch sees: 0"):
        resolve_devices("cuda:all")


def test_the_settings_of_a_simulation_take_a_list(tiny: TinyRun) -> None:
    path = tiny.settings("several", device=["cuda:1", "cuda:0"])
    assert SimulationConfig.from_yaml(path).device == ("cuda:1", "cuda:0")
    with pytest.raises(ConfigError, match="different GPUs by number"):
        SimulationConfig.from_yaml(tiny.settings("several", device=["cuda:1", "cpu"]))
