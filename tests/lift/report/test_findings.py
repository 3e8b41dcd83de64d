"""The sentences on staying out, and on what a network without reach along depth gains as well."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lift.records.metrics import Comparisons
from lift.report.findings import _guard, _staying_out, _through_plane
from lift.report.read import read_run
from lift.report.record_tables import guard_table
from tests.lift.report.example_run import SITES, example_record, write_example_run, write_json

Gain = tuple[float, float, float]


def comparisons(**gains: Gain) -> Comparisons:
    """`METHOD__REFERENCE` -> mean PSNR difference with its interval, of 12 patients."""
    rows = {
        name.replace("__", " - "): {
            "psnr_db": {"value": value, "low": low, "high": high, "n": 12, "wins": 9}
        }
        for name, (value, low, high) in gains.items()
    }
    return Comparisons.model_validate({"pooled": rows})


@pytest.mark.parametrize(
    ("above", "words"),
    [
        ((0.7, 0.2, 1.1), "context along depth adds"),
        ((0.1, -0.3, 0.5), "not shown to add"),
        ((-0.7, -1.0, -0.2), "worse than that"),
    ],
)
def test_it_says_how_much_a_2d_control_gains_and_what_is_left(
    above: tuple[float, float, float], words: str
) -> None:
    gains = {"control_2d__no_mixer": (3.0, 2.0, 4.0), "federated__control_2d": above}
    (sentence,) = _through_plane(comparisons(**gains))
    text = re.sub(r"<[^>]+>", "", str(sentence))
    assert "2D control" in text
    assert "+3.00 dB" in text
    assert words in text


def test_without_the_control_it_says_nothing() -> None:
    assert _through_plane(Comparisons()) == []


@pytest.mark.parametrize(
    ("worst", "words"),
    [
        ((0.7, 0.2, 1.1), "better than staying out"),
        ((0.1, -0.3, 0.5), "not shown to be better than staying out"),
        ((-0.9, -1.4, -0.3), "worse than staying out"),
    ],
)
def test_joining_is_held_against_the_best_of_staying_out(
    worst: tuple[float, float, float], words: str
) -> None:
    easy = (2.0, 1.5, 2.5)
    gains = {
        "federated__no_mixer": easy,
        "federated__curves_z_filter": worst,
        "federated__local_only": easy,
    }
    (sentence,) = _staying_out(comparisons(**gains))
    text = re.sub(r"<[^>]+>", "", str(sentence))
    assert words in text
    assert "is curves + z-filter (of no mixer, curves + z-filter, local only)" in text
    assert f"{worst[0]:+.2f}".replace("-", "\N{MINUS SIGN}") in text


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ((0.7, 0.2, 1.1), "joining is better: +0.70"),
        ((0.1, -0.3, 0.5), "joining is not shown to be better: +0.10"),
        ((-0.9, -1.4, -0.3), "joining is worse: \N{MINUS SIGN}0.90"),
    ],
)
def test_what_the_sites_chose_is_held_against_the_same_row(
    chosen: tuple[float, float, float], words: str
) -> None:
    gains = {
        "federated__local_only": (-0.5, -0.9, -0.1),
        "federated__no_mixer": (2.0, 1.5, 2.5),
        "chosen__local_only": chosen,
        "chosen__no_mixer": (2.5, 2.0, 3.0),
    }
    first, second = _staying_out(comparisons(**gains))
    assert "worse than staying out" in re.sub(r"<[^>]+>", "", str(first))
    text = re.sub(r"<[^>]+>", "", str(second))
    assert words in text
    assert text.endswith("Against local only.")


def test_without_such_a_row_it_says_nothing_of_staying_out() -> None:
    assert _staying_out(comparisons(federated__z_filter=(1.0, 0.5, 1.5))) == []


@pytest.mark.parametrize("judged_on", ["validation", "validation_and_training"])
def test_a_verdict_that_rests_on_training_patients_is_told(tmp_path: Path, judged_on: str) -> None:
    folder = write_example_run(tmp_path / "run", patients=0)
    record = example_record()
    record["guard"][SITES[1]]["judged_on"] = judged_on
    write_json(folder / "run.json", record)
    run = read_run(folder)
    finding = str(_guard(run))
    table = str(guard_table(run.record.guard))
    also = judged_on != "validation"
    assert ("also used training patients" in finding) == also
    assert (finding.count(SITES[1]) == 2) == also
    assert ("with training" in table) == also
    assert ("only if the interval is above 0.3 dB" in table) == also
