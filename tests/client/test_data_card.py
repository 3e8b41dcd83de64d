"""The data card counts persons, hides small groups, and leaves only after a yes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift.cohort.examination import ChannelFacts, PatientReport, Remark
from lift.config.card import DataCard, histograms
from lift.config.site import SiteConfig
from lift.errors import ConfigError
from lift.inspection.finding import Verdict
from lift.inspection.scanner import scanner_of
from lift_client.check.data_card import CARD_FILE, make_card, share, shared_card
from lift_client.gate.journal import JOURNAL_FILE, verify

FACTS = ChannelFacts(
    shape=(240, 256, 155), spacing_mm=(0.94, 0.94, 1.0), depth_axis=2, acquired_spacing_mm=1.0
)


def report(
    person: str, verdict: Verdict = "use", *, visit: str = "", **changes: Any
) -> PatientReport:
    remarks: tuple[Remark, ...] = ()
    if verdict != "use":
        remarks = (Remark(check="ct", channel="t1n", verdict=verdict, seen="it"),)
    return PatientReport(
        patient=person + visit,
        subject=person,
        files="",
        remarks=remarks,
        channels={"t1n": FACTS.model_copy(update=changes)},
    )


def made(reports: list[PatientReport], floor: int = 5) -> DataCard:
    return make_card(reports, ["t1n"], site="north", floor=floor, day="2026-11-23")


def people(count: int, start: int = 0, **changes: Any) -> list[PatientReport]:
    return [report(f"p{i:03d}", **changes) for i in range(start, start + count)]


def test_persons_are_counted_once_and_rounded_down() -> None:
    reports = [*people(13), *[report(f"p{i:03d}", visit="-2") for i in range(13)]]
    card = made([*reports, *people(6, 50, verdict="warn"), *people(7, 80, verdict="veto")])
    assert (card.persons, card.usable, card.warned, card.vetoed) == (25, 15, 5, 5)
    (channel,) = card.channels
    assert channel.persons == 15
    assert [(cell.value, cell.persons) for cell in channel.slice_spacings_mm] == [(1.0, 15)]
    assert [cell.value for cell in channel.pixel_spacings_mm] == [1.0]
    assert [cell.value for cell in channel.slices] == [160.0]
    assert [cell.value for cell in channel.matrix] == [256.0]
    # of 19 usable persons 13, 3 and 3
    assert (card.train, card.validation, card.test) == (10, 0, 0)


def test_what_fewer_than_the_floor_have_does_not_appear() -> None:
    rare = people(4, 50, vendor="hitachi", field_strength_t=0.3, acquired_spacing_mm=5.0)
    common = people(12, vendor="siemens", field_strength_t=2.9)
    (channel,) = made([*common, *rare]).channels
    assert [(cell.vendor, cell.persons) for cell in channel.vendors] == [("siemens", 10)]
    assert [(cell.value, cell.persons) for cell in channel.field_strengths_t] == [(3.0, 10)]
    assert [cell.value for cell in channel.acquired_spacings_mm] == [1.0]
    (channel,) = made([*common, *rare, *people(1, 70, vendor="hitachi")]).channels
    assert {cell.vendor for cell in channel.vendors} == {"siemens", "hitachi"}


def test_a_small_cohort_has_an_empty_card() -> None:
    card = made(people(4, vendor="ge"))
    assert card.persons == card.usable == card.train == 0
    (channel,) = card.channels
    assert not channel.vendors
    assert not any(histogram for _, histogram in histograms(channel))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.sampled_from(["use", "warn", "veto"]),
            st.sampled_from([None, "ge", "siemens", "other"]),
            st.floats(0.01, 30, allow_nan=False),
        ),
        max_size=60,
    ),
    st.integers(2, 12),
)
def test_no_number_on_any_card_is_below_its_floor(
    rows: list[tuple[int, Verdict, str | None, float]], floor: int
) -> None:
    reports = [
        report(f"p{who:03d}", verdict, visit=f"-{i}", vendor=vendor, spacing_mm=(s, s, 1.7 * s))
        for i, (who, verdict, vendor, s) in enumerate(rows)
    ]
    card = made(reports, floor)

    def counts(value: object) -> list[int]:
        if isinstance(value, dict):
            own = [value["persons"]] if "persons" in value else []
            return own + [n for below in value.values() for n in counts(below)]
        return [n for below in value for n in counts(below)] if isinstance(value, list) else []

    data = card.model_dump(mode="json")
    found = [*counts(data), *(data[k] for k in ("usable", "warned", "vetoed", "train", "test"))]
    assert all(count == 0 or count >= floor for count in found)
    assert all(count % floor == 0 for count in found)
    # a person more or less in a group of another size changes at most one step
    assert card.persons <= len({who for who, *_ in rows})


def config(folder: Path) -> SiteConfig:
    return SiteConfig.from_data(
        {
            "name": "north",
            "data": {"layout": "auto", "root": str(folder)},
            "folder": str(folder / "work"),
            "generator": {"builtin": "phantom-t1n-t1c-t2w-t2f"},
            "policy": {"privacy_modes": ["none"]},
        },
        "test",
    )


def test_sharing_stands_in_the_journal_whole_and_can_be_taken_back(tmp_path: Path) -> None:
    settings = config(tmp_path)
    assert shared_card(settings.folder) is None
    card = made(people(12, vendor="ge"))
    path = share(card, settings, "server.example.org:443")
    assert shared_card(settings.folder) == card
    (line,) = verify(settings.folder / JOURNAL_FILE).lines
    assert line.kind == "card"
    assert line.card == card
    assert line.sha256 == card.digest()
    path.unlink()
    assert shared_card(settings.folder) is None


def test_a_card_that_was_changed_into_something_else_is_not_sent(tmp_path: Path) -> None:
    settings = config(tmp_path)
    path = share(made(people(12)), settings, "server.example.org:443")
    data = json.loads(path.read_text())
    for change in ({"persons": 12}, {"note": "Jane Doe"}):
        path.write_text(json.dumps(data | change))
        with pytest.raises(ConfigError, match="not a data card") as caught:
            shared_card(settings.folder)
        assert "Jane" not in str(caught.value)
    assert path.name == CARD_FILE


def test_a_sidecar_says_what_made_the_volume_and_nothing_else(tmp_path: Path) -> None:
    volume = tmp_path / "sub-01_T1w.nii.gz"
    assert scanner_of(volume).vendor is None
    sidecar = tmp_path / "sub-01_T1w.json"
    said = {"Manufacturer": "Philips", "MagneticFieldStrength": 3, "SliceThickness": 4.5}
    sidecar.write_text(json.dumps(said | {"PatientName": "Jane Doe"}))
    found = scanner_of(volume)
    assert (found.vendor, found.field_strength_t, found.slice_thickness_mm) == ("philips", 3.0, 4.5)
    for text in ("[]", "{", '{"Manufacturer": 5, "MagneticFieldStrength": "3"}', "[" * 10**5):
        sidecar.write_text(text)
        assert scanner_of(volume) == scanner_of(tmp_path / "other.nii")
    sidecar.write_text('{"MagneticFieldStrength": 1e400, "SliceThickness": -1}')
    assert scanner_of(volume).field_strength_t is None
