"""The report's figures: no warning (each is an error here), no squeezed panel, whole rounds."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from lift.report.figures import (
    Picture,
    Profile,
    curves_figure,
    differences_figure,
    flicker_figure,
    house_style,
    seconds_figure,
    smoothing_figure,
)
from lift.report.overviews import gains_figure, shared_curves_figure, timeline_figure
from lift.report.read import Run, read_run
from tests.lift.report.example_run import (
    SITES,
    example_metrics,
    example_record,
    example_rounds,
    write_json,
)

# as wide as a character of the figures' font can be; a name has at most 40
WIDE: Final = "\u2031" * 38
Edit = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def _without(key: str) -> Edit:
    return lambda rounds: [{**record, key: {}} for record in rounds]


def _one_site_alone(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first = rounds[0]["asked"][0]
    kept = []
    for record in rounds:
        told = record["validation_psnr_db"]
        kept.append({**record, "validation_psnr_db": {first: told[first]}})
    return kept


ROUNDS: Final[dict[str, Edit]] = {
    "all": lambda rounds: rounds,
    # what a run has that was stopped after the statistics
    "the statistics alone": lambda rounds: rounds[:1],
    "two": lambda rounds: rounds[:2],
    "no loss": _without("loss"),
    "no PSNR": _without("validation_psnr_db"),
    "PSNR of one site": _one_site_alone,
}


@pytest.mark.parametrize("rounds", ROUNDS)
def test_no_figure_of_the_rounds_warns_or_is_squeezed(tmp_path: Path, rounds: str) -> None:
    _check(_of_rounds(_run(tmp_path / "run", ["north", "south"], ROUNDS[rounds])), least=2)


def test_the_widest_names_squeeze_no_figure(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", [f"{i}{WIDE}" for i in range(4)], ROUNDS["all"])
    _check([*_of_rounds(run), *_others(run)], least=8)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("sites", [1, 4])
def test_few_rows_squeeze_no_figure(tmp_path: Path, rows: int, sites: int) -> None:
    """As in a hospital's own report, or a run that compared with little."""
    folder = tmp_path / "run"
    _run(folder, [f"site-{i}" for i in range(sites)], ROUNDS["two"])
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    compared = metrics["comparisons"]
    names = list(compared["pooled"])[:rows]
    metrics["pooled"] = {m: metrics["pooled"][m] for m in ("federated", "no_mixer")[:rows]}
    compared["pooled"] = {name: compared["pooled"][name] for name in names}
    compared["sites"] = {
        site: {name: tables[name] for name in names} for site, tables in compared["sites"].items()
    }
    write_json(folder / "metrics.json", metrics)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(folder / "run.json", record | {"seconds": {"report": 1.0}, "budget_s": {}})
    run = read_run(folder)
    _check([*_of_rounds(run), *_others(run)], least=6)


def _check(pictures: list[Picture | None], *, least: int) -> None:
    drawn = [picture for picture in pictures if picture is not None]
    assert len(drawn) >= least
    for picture in drawn:
        for width, height in _panels(picture.content.decode()):
            # points; the smallest are those of one row of bars
            assert width > 100, picture.alt
            assert height > 25, picture.alt


def test_a_run_of_one_round_names_that_round_and_no_part_of_one(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", ["north"], ROUNDS["the statistics alone"])
    for draw in (curves_figure, timeline_figure):
        with house_style():
            picture = draw(run)
        assert picture is not None
        # matplotlib writes each text as a comment beside its outlines
        ticks = re.findall(r'id="xtick_\d+">.*?<!-- (\S+) -->', picture.content.decode(), re.DOTALL)
        assert ticks
        assert set(ticks) == {"0"}, picture.alt


def _run(folder: Path, sites: list[str], edit: Edit) -> Run:
    """The example run with other sites, each with the figures of one of the example's."""
    record, metrics = example_record(), example_metrics()
    record["sites"] = [
        {**like, "name": site} for site, like in zip(sites, cycle(record["sites"]), strict=False)
    ]
    record["guard"] = {}
    record["seconds"] = {f"{stage} {WIDE}": took for stage, took in record["seconds"].items()}
    for held in (metrics, metrics["comparisons"]):
        held["sites"] = _dealt(sites, held["sites"])
    metrics["cross_site"] = {}
    folder.mkdir()
    write_json(folder / "run.json", record)
    write_json(folder / "metrics.json", metrics)
    rounds = edit([_round(old, sites) for old in example_rounds()])
    lines = [json.dumps(line) + "\n" for line in rounds]
    (folder / "rounds.jsonl").write_text("".join(lines), encoding="utf-8")
    return read_run(folder)


def _round(old: dict[str, Any], sites: list[str]) -> dict[str, Any]:
    record = copy.deepcopy(old) | {"asked": sites, "answered": sites, "refused": {}}
    record["counted"] = dict.fromkeys(sites, 1 / len(sites))
    for key in ("bytes", "loss", "validation_psnr_db"):
        record[key] = _dealt(sites, record[key])
    return record


def _dealt(sites: list[str], values: dict[str, Any]) -> dict[str, Any]:
    like = cycle(SITES)
    return {site: values[next(like)] for site in sites} if values else {}


def _of_rounds(run: Run) -> list[Picture | None]:
    with house_style():
        return [
            curves_figure(run),
            timeline_figure(run),
            shared_curves_figure(run, list(run.sites)),
        ]


def _others(run: Run) -> list[Picture | None]:
    assert run.metrics is not None
    depth = np.arange(6.0)
    means = {"no_mixer": depth, "federated": 2 * depth}
    profiles = [Profile(name, name, depth, depth, means) for name in list(run.sites)[:3]]
    with house_style():
        return [
            differences_figure(run),
            smoothing_figure(run),
            seconds_figure(run),
            flicker_figure(run, profiles),
            gains_figure(run, run.metrics.comparisons.sites),
        ]


def _panels(svg: str) -> list[tuple[float, float]]:
    """Width and height of every panel: its background is the first thing drawn in it."""
    found = re.findall(r'<g id="axes_\d+">\s*<g id="patch_\d+">\s*<path d="([^"]+)"', svg)
    assert found
    sizes = []
    for path in found:
        x, y = np.array(re.findall(r"([-\d.]+) ([-\d.]+)", path), dtype=float).T
        sizes.append((float(np.ptp(x)), float(np.ptp(y))))
    return sizes
