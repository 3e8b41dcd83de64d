"""`make bench-gpu` as it is, with tiny sizes: on the CPU, and on a fake CUDA device."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lift_benchmarks.gpu.__main__ as bench
from lift.cohort.preprocessing import Prepared
from lift_benchmarks.gpu import parts
from lift_benchmarks.gpu.sizes import SMALL
from lift_benchmarks.gpu.volumes import in_blocks
from tests.gpu.fake_cuda import fake_cuda

ON_A_GPU = {"upload_gb_s", "volume_peak_gb", "volume_blocks_4_peak_gb", "round_peak_gb"}


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """The result of the script."""
    command = ["bench-gpu", "--small", "--output", str(folder), *words]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code in (0, None)
    (path,) = folder.glob("*.json")
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def test_the_script_measures_every_part_and_says_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Prepared] = []
    phantom = parts.Bench.phantom

    def once(bench: parts.Bench) -> list[Prepared]:
        made.extend([] if made else phantom(bench))
        return made

    monkeypatch.setattr(parts.Bench, "phantom", once)
    here = run(tmp_path / "cpu", monkeypatch, "--device", "cpu")
    assert here["device"] == "CPU"
    assert not here["skipped"]
    assert here["seconds"].keys() == parts.all_parts(SMALL).keys()
    figures = here["figures"]
    assert all(math.isfinite(value) for value in figures.values())
    assert (figures["same_bits_round"], figures["cpu_update_cosine"]) == pytest.approx((1, 1))

    def too_large(*args: Any) -> Any:
        if args[-1] is None:
            raise torch.OutOfMemoryError
        return in_blocks(*args)

    monkeypatch.setattr("lift_benchmarks.gpu.parts.in_blocks", too_large)
    with fake_cuda() as device:
        there = run(tmp_path / "gpu", monkeypatch, "--device", "cuda:0")
    assert device.uploads
    assert there["device"] == "fake CUDA device"
    assert there["skipped"] == {"volume, whole": "does not fit into the device's memory"}
    assert there["figures"].keys() - figures.keys() == ON_A_GPU
    assert there["figures"]["cpu_agreement_db"] > 40
    assert there["figures"]["float16_psnr_loss_db"] < 0.05
    assert "left out: does not fit" in capsys.readouterr().out
