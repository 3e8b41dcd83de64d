"""What ships after which words, and the sentence that says so."""

from __future__ import annotations

import pytest

from lift.guard import Verdict
from lift.records.shipped import Said, Shipped, Source, count
from lift.report.generated import shipped_markup


@pytest.mark.parametrize(
    ("verdicts", "source"),
    [
        (["helped"], "mapper"),
        (["helped", "undecided"], "mapper"),
        (["helped", "harmed", "helped"], "gaussian"),
        (["undecided", "undecided"], "gaussian"),
        ([], "gaussian"),
    ],
)
def test_one_helped_and_none_harmed_ships_the_mapper(
    verdicts: list[Verdict], source: Source
) -> None:
    said = count(verdicts, asked=4)
    assert said.source == source
    assert said.helped + said.harmed + said.undecided + said.silent == 4


def test_the_sentence_says_what_ships_and_every_number() -> None:
    said = Said(helped=0, harmed=2, undecided=1, silent=3)
    sentence = Shipped("gaussian", said).sentence
    assert sentence.startswith("The Gaussian ships, without the mapper")
    assert "0 of the sites found the mapper's volumes harder to tell" in sentence
    assert "2 easier, 1 could not decide, 3 gave no verdict." in sentence
    everyone = Shipped("mapper", Said(helped=2, harmed=0, undecided=1, silent=0)).sentence
    assert everyone.startswith("The mapper ships, on top of the Gaussian")
    assert "gave no verdict" not in everyone
    assert "noise" in Shipped("gaussian", None).sentence


def test_the_reports_sentence_carries_the_place_of_each_number() -> None:
    shipped = Shipped("gaussian", Said(helped=0, harmed=2, undecided=1, silent=0))
    markup = shipped_markup(shipped)
    for key in ("helped", "harmed", "undecided"):
        assert f"/said/{key}" in markup
    assert "silent" not in markup
