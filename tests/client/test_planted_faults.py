"""Faults of all kinds in cohorts of phantoms: all are found by the right check, none is invented.

tests/scale.py says how many patients there are. The phantoms are free of slice
corruption; with it, 24 sound patients with 72 series were let through without a remark too.
"""

from __future__ import annotations

import statistics
from typing import Final

import pytest

from lift.config.site import SiteConfig
from lift_client.check import image_check, image_view
from lift_client.check.image_check import CohortReport
from tests.client.planted import BRAIN_FAULTS, HEAD_FAULTS, Planted, plant
from tests.client.planted_files import examined_or_killed
from tests.client.planted_table import TABLE_FAULTS
from tests.scale import COHORT

HEADS: Final = max(len(HEAD_FAULTS) + 2, round(0.2 * COHORT))
ROWS: Final = max(len(TABLE_FAULTS) + 2, round(0.1 * COHORT))
PATIENTS: Final = {"brains": COHORT - HEADS - ROWS, "heads": HEADS, "table": ROWS}
SEED: Final = 20261123
"""Drawn once; the faults and the checks were made with other seeds."""
Examined = tuple[Planted, CohortReport]


@pytest.fixture(scope="module")
def examined(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Examined:
    kind = request.param
    folder = tmp_path_factory.mktemp("planted")
    cohort = plant(folder, kind, patients=PATIENTS[kind], seed=SEED)
    config = SiteConfig.from_data(
        {
            "name": "north",
            "data": {"layout": cohort.layout, "root": str(cohort.root)}
            | ({} if cohort.table is None else {"table": str(cohort.table)}),
            "folder": str(folder / "work" / cohort.layout),
            "generator": {"builtin": "phantom-t1n-t1c-t2w-t2f"},
            "policy": {"privacy_modes": ["none"]},
        },
        "test",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_check, "examined", examined_or_killed)
        return cohort, image_check.examine_cohort(config, cohort.channels, workers=2)


in_each_cohort = pytest.mark.parametrize("examined", PATIENTS, indirect=True)


def test_each_fault_has_a_reason_of_its_own() -> None:
    faults = [*BRAIN_FAULTS.values(), *HEAD_FAULTS.values(), *TABLE_FAULTS.values()]
    assert len(faults) == 61
    assert all(fault.says for fault in faults)
    assert len({fault.says for fault in faults}) > 45
    assert len({(fault.check, fault.channels) for fault in faults}) > 15


@pytest.mark.fuzz
@in_each_cohort
def test_every_fault_is_planted_in_a_patient_of_its_own(examined: Examined) -> None:
    cohort, report = examined
    assert sorted(cohort.faults.values()) == sorted(cohort.kinds)
    kind = {"synthrad": "heads", "brats": "brains", "table": "table"}[cohort.layout]
    assert len(report.patients) == PATIENTS[kind]


@pytest.mark.fuzz
@in_each_cohort
def test_every_fault_is_found_by_its_check(examined: Examined) -> None:
    cohort, report = examined
    by_name = {patient.patient: patient for patient in report.patients}
    for name, kind in cohort.faults.items():
        fault = cohort.kinds[kind]
        told = {
            (remark.check, remark.channel)
            for remark in by_name[name].remarks
            if remark.check not in fault.beside
        }
        assert told == {(fault.check, channel) for channel in fault.channels}, kind
        assert by_name[name].verdict == fault.verdict, kind
        reasons = [one.seen for one in by_name[name].remarks if one.check == fault.check]
        assert all(fault.says in reason for reason in reasons), (kind, reasons)
        assert all(remark.remedy for remark in by_name[name].remarks), kind
    for name, twin in cohort.twins.items():
        assert {remark.check for remark in by_name[twin].remarks} == {"duplicates"}
        assert all(name in remark.seen for remark in by_name[twin].remarks)


@pytest.mark.fuzz
@in_each_cohort
def test_no_fault_is_invented(examined: Examined) -> None:
    cohort, report = examined
    invented = {
        patient.patient: [(remark.check, remark.channel, remark.seen) for remark in patient.remarks]
        for patient in report.patients
        if patient.patient in cohort.sound and patient.remarks
    }
    assert invented == {}
    touched = len(cohort.faults) + len(cohort.twins)
    assert len(cohort.sound) == len(report.patients) - touched


@pytest.mark.fuzz
@in_each_cohort
def test_time_and_memory_are_told_by_patient(
    examined: Examined, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, report = examined
    read = [patient for patient in report.patients if patient.channels]
    assert all(patient.seconds > 0 for patient in read)
    peaks = [patient.peak_mb for patient in read if patient.peak_mb is not None]
    assert len(peaks) in {0, len(read)}
    with capsys.disabled():
        print(  # noqa: T201 - the figures of a long run
            f"\n{cohort.layout}: {len(report.patients)} patients, "
            f"{statistics.median(p.seconds for p in read):.2f} s a patient, "
            f"peak {max(peaks, default=0):.0f} MB; {image_view.cost(report)}"
        )
    image_view.show(report)
    shown = capsys.readouterr().out
    assert "s a patient" in shown
    assert all(name in shown for name in cohort.faults)
    assert not any(name in shown for name in cohort.sound)
