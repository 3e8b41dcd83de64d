"""A key of a record is private until its model declares it public."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from lift.records.extract import public_metrics, public_run
from lift.records.metrics import (
    Comparisons,
    Measure,
    Metrics,
    Public,
    Publication,
    Record,
    Spectra,
    as_json,
)
from lift.records.run import AllSites, RunRecord, SiteRecord
from lift.records.shipped import Said

FILES = Path(__file__).parents[2] / "docs" / "reference" / "files.md"


class Part(Record):
    shown: Public[int] = 0
    kept: int = 0


class Whole(Record):
    shown: Public[str] = ""
    kept: str = ""
    part: Public[Part | None] = None
    parts: Public[dict[str, tuple[Part, ...]]] = Field(default_factory=dict)
    some: Annotated[dict[str, int], Publication(frozenset({"a"}))] = Field(default_factory=dict)


def test_a_key_without_a_mark_is_private_at_every_depth() -> None:
    part = Part(shown=1, kept=2)
    whole = Whole(shown="x", kept="y", part=part, parts={"p": (part,)}, some={"a": 1, "b": 2})
    assert whole.public().model_dump(exclude_unset=True) == {
        "shown": "x",
        "part": {"shown": 1},
        "parts": {"p": ({"shown": 1},)},
        "some": {"a": 1},
    }


def test_what_was_not_set_is_not_made_up() -> None:
    assert Whole(kept="y").public().model_fields_set == set()


def test_a_private_key_that_must_be_there_is_a_fault_and_no_leak() -> None:
    class Needed(Record):
        kept: int

    with pytest.raises(ValidationError):
        Needed(kept=1).public()


def test_a_key_that_is_added_to_the_run_s_record_stays_private() -> None:
    class Newer(RunRecord):
        refusals: dict[str, str] = Field(default_factory=dict)

    record = Newer(name="n", phantom=True, plan={}, refusals={"north": "late"}, complete=True)
    assert public_run(record).model_fields_set == {"name", "phantom", "plan", "complete"}


@pytest.mark.parametrize(("silent", "told"), [(0, False), (1, True)])
def test_what_sites_said_is_told_of_three_or_more(silent: int, *, told: bool) -> None:
    said = Said(helped=1, harmed=1, undecided=0, silent=silent)
    record = RunRecord(name="n", phantom=True, plan={}, said=said, shipped="gaussian")
    assert public_run(record).said == (said if told else None)
    assert public_run(record).shipped == "gaussian"


def test_figures_of_sites_and_patients_are_not_in_the_extract_of_a_simulation() -> None:
    row = {"federated": {"psnr_db": Measure(value=1.0, low=0.5, high=1.5, n=2, wins=2)}}
    metrics = Metrics(
        pooled=row | {"local_only:north": row["federated"]},
        comparisons=Comparisons(pooled=row, sites={"north": row}),
        spectra=Spectra(cycles_per_mm=(0.1,), power_db={"local_only:north": (1.0,)}),
        cross_site={"north": row},
        patients={"north": {"federated": {"p": {"psnr_db": 1.0}}}},
    )
    found = public_metrics(metrics)
    assert as_json(found) == as_json(
        Metrics(
            pooled=row,
            comparisons=Comparisons(pooled=row),
            spectra=Spectra(cycles_per_mm=(0.1,), power_db={}),
        )
    )


def test_patients_of_all_sites_are_added_up() -> None:
    sites = tuple(SiteRecord(name=name, patients={"train": 5, "test": 1}) for name in "abc")
    record = RunRecord(name="n", phantom=True, plan={}, sites=sites)
    expected = AllSites(number=3, patients={"train": 15, "test": 3}, verdicts=None)
    assert public_run(record).all_sites == expected


def test_the_page_of_files_says_which_keys_a_release_holds() -> None:
    page = FILES.read_text(encoding="utf-8")
    section = page[page.index("### run.json") : page.index("### rounds.jsonl")]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    told = {key: row[-1].strip() for row in rows for key in re.findall(r"`(\w+)`", row[0])}
    assert set(told) == set(RunRecord.model_fields)
    public = {key for key, word in told.items() if word == "yes"}
    assert public == set(RunRecord.publications())
    assert {key for key, word in told.items() if word} - public == {"said"}
