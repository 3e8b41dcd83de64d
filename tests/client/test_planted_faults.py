"""Twenty faults in a cohort of phantoms: all are found by the right check, none is invented.

`LIFT_COHORT` says how many patients there are (200 in `make test-fuzz`). The phantoms are free of
slice corruption; with it, 24 sound patients with 72 series were let through without a remark too.
"""

from __future__ import annotations

import os
import statistics
from typing import Final

import pytest

from lift.config.site import SiteConfig
from lift_client import image_view
from lift_client.image_check import CohortReport, examine_cohort
from tests.client.planted import BRAIN_FAULTS, HEAD_FAULTS, Planted, plant

PATIENTS: Final = int(os.environ.get("LIFT_COHORT") or 26)
SEED: Final = 20261123
"""Drawn once; the faults and the checks were made with other seeds."""


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Planted, CohortReport]]:
    heads = max(len(HEAD_FAULTS) + 2, round(0.35 * PATIENTS))
    folder = tmp_path_factory.mktemp("planted")
    found = []
    for cohort in plant(folder, brains=PATIENTS - heads, heads=heads, seed=SEED, workers=2):
        config = SiteConfig.from_data(
            {
                "name": "north",
                "data": {"layout": cohort.layout, "root": str(cohort.root)},
                "folder": str(folder / "work" / cohort.layout),
                "generator": {"builtin": "phantom-t1n-t1c-t2w-t2f"},
                "policy": {"privacy_modes": ["none"]},
            },
            "test",
        )
        found.append((cohort, examine_cohort(config, cohort.channels, workers=2)))
    return found


Cohorts = list[tuple[Planted, CohortReport]]


def test_twenty_faults_of_more_than_twelve_kinds_are_planted(cohorts: Cohorts) -> None:
    planted = [kind for cohort, _ in cohorts for kind in cohort.faults.values()]
    assert len(planted) == len(set(planted)) == 20
    assert sum(len(report.patients) for _, report in cohorts) == PATIENTS


def test_every_fault_is_found_by_its_check(cohorts: Cohorts) -> None:
    for cohort, report in cohorts:
        by_name = {patient.patient: patient for patient in report.patients}
        for name, kind in cohort.faults.items():
            fault = {**BRAIN_FAULTS, **HEAD_FAULTS}[kind]
            told = {(remark.check, remark.channel) for remark in by_name[name].remarks}
            assert told == {(fault.check, channel) for channel in fault.channels}, kind
            assert by_name[name].verdict == fault.verdict, kind
            assert all(remark.remedy for remark in by_name[name].remarks), kind
        for name, twin in cohort.twins.items():
            assert {r.check for r in by_name[twin].remarks} == {"duplicates"}
            assert all(name in remark.seen for remark in by_name[twin].remarks)


def test_no_fault_is_invented(cohorts: Cohorts) -> None:
    invented = {
        patient.patient: [(remark.check, remark.channel, remark.seen) for remark in patient.remarks]
        for cohort, report in cohorts
        for patient in report.patients
        if patient.patient in cohort.sound and patient.remarks
    }
    assert invented == {}
    assert sum(len(cohort.sound) for cohort, _ in cohorts) == PATIENTS - 21


def test_time_and_memory_are_told_by_patient(
    cohorts: Cohorts, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        for cohort, report in cohorts:
            read = [patient for patient in report.patients if patient.channels]
            assert all(patient.seconds > 0 for patient in read)
            peaks = [patient.peak_mb for patient in read if patient.peak_mb is not None]
            assert len(peaks) in {0, len(read)}
            print(  # noqa: T201 - the figures of a long run
                f"\n{cohort.layout}: {len(report.patients)} patients, "
                f"{statistics.median(p.seconds for p in read):.2f} s a patient, "
                f"peak {max(peaks, default=0):.0f} MB; {image_view.cost(report)}"
            )
    for _, report in cohorts:
        image_view.show(report)
    shown = capsys.readouterr().out
    assert "s a patient" in shown
    for cohort, _ in cohorts:
        assert all(name in shown for name in cohort.faults)
        assert not any(name in shown for name in cohort.sound)
