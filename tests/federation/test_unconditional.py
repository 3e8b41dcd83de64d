"""New volumes over real processes and TLS: the simulation's mapper, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors

from lift.wire.groups import MOMENTS_WITH_STYLE
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.world import Federation, simulate
from tests.lift.unconditional.tiny_decoder import plan_data, write_bodies

SITES = {"east": 12, "north": 16, "west": 3}


@pytest.fixture(scope="module")
def bodies(pca_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Three sites' volumes, the last of too few patients for statistics, and the decoder."""
    folder = tmp_path_factory.mktemp("bodies")
    for number, (site, patients) in enumerate(SITES.items()):
        write_bodies(folder / "data" / site, 60 + number, patients)
    (folder / "bundle").symlink_to(pca_bundle)
    return TinyRun(folder)


@pytest.fixture(scope="module")
def finished(bodies: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(
        tmp_path_factory.mktemp("unconditional"),
        bodies,
        sites=tuple(SITES),
        site_changes={"policy__site_styles": True},
    )
    try:
        made.make(
            **plan_data(
                split={"train": 0.7, "validation": 0.0},
                unconditional__trajectory="gaussian",
                unconditional__gaussian={"positions": 6, "axes": 3},
                unconditional__site_styles=True,
            )
        )
        made.start_server()
        made.start_sites()
        assert made.wait_server(120) == 0, made.log("server")
        # what it left is looked at; sites that wait for another run cost time
        made.close()
        yield made
    finally:
        made.close()


def test_mapper_gaussian_and_styles_are_the_simulations_bit_for_bit(
    finished: Federation, tmp_path: Path
) -> None:
    simulated = simulate(finished, tmp_path)
    with safetensors.safe_open(finished.out / "mixer.safetensors", framework="np") as stream:
        names = set(stream.keys())
        assert {"mixer/gaussian/mean", "mixer/residual.0.weight"} <= names
        # the third site's patients are too few to send anything
        styles = {name for name in names if name.startswith("mixer/style/")}
        assert styles == {"mixer/style/east", "mixer/style/north"}
        assert all(stream.get_tensor(name).shape == (2,) for name in styles)
    for name in ("mixer.safetensors",):
        assert (finished.out / name).read_bytes() == (simulated / name).read_bytes()
    records = [json.loads((out / "run.json").read_text()) for out in (finished.out, simulated)]
    for key in ("guard", "shipped", "said"):
        assert records[0][key] == records[1][key]


def test_statistics_are_sent_once_and_are_small_and_journaled(finished: Federation) -> None:
    records = finished.records()
    assert [record["kind"] for record in records] == ["statistics", "train", "train", "guard"]
    assert all(set(record["counted"]) == set(SITES) for record in records[1:])
    for site in SITES:
        assert 0 < records[0]["bytes"][site] <= 200_000
        lines = [
            json.loads(line)
            for line in (finished.site(site) / "work" / "journal.jsonl").read_text().splitlines()
        ]
        # the tests' sites note that their image checks are off
        note, *lines = lines
        assert (note["kind"], note["bytes"], note["receiver"]) == ("note", 0, "nobody")
        kinds = [line["kind"] for line in lines]
        assert kinds == ["statistics", "train", "train", "guard"]
        # a word, and no number of anybody
        assert lines[-1]["tensors"] == []
        names = {tensor["name"] for tensor in lines[0]["tensors"]}
        if site == "west":
            # three patients: no number of theirs leaves
            assert names == set()
            assert MOMENTS_WITH_STYLE.purpose not in lines[0]["purpose"]
        else:
            assert {"drifting_anchor_counts", "trajectory_within"} <= names
            assert all(name.startswith(("drifting_", "trajectory_")) for name in names)
            assert MOMENTS_WITH_STYLE.purpose in lines[0]["purpose"]


def test_the_run_says_what_it_was(finished: Federation) -> None:
    run = json.loads((finished.out / "run.json").read_text())
    assert run["complete"]
    assert run["mixer"]["kind"] == "trajectory_mapper"
    assert run["plan"]["unconditional"]["projection_digest"]
    metrics = json.loads((finished.out / "metrics.json").read_text())
    # a verdict is a word: no figure of a site is behind it
    assert all(site["methods"] == {} for site in metrics["sites"].values())
    assert np.isfinite(run["mixer"]["parameters"])
    verdicts = {site: found["verdict"] for site, found in run["guard"].items()}
    assert set(verdicts) == set(SITES)
    # eight and three patients are too few
    assert (verdicts["east"], verdicts["west"]) == ("undecided", "undecided")
    assert sum(run["said"].values()) == len(SITES)
    assert run["said"]["silent"] == 0
    helped, harmed = ("helped" in verdicts.values()), ("harmed" in verdicts.values())
    assert run["shipped"] == ("mapper" if helped and not harmed else "gaussian")
    line = finished.records()[-1]
    assert (line["verdicts"], line["shipped"]) == (verdicts, run["shipped"])
