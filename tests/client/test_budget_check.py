"""What `lift-client check` says of the privacy budget before a plan meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lift.config.privacy import PrivacyMode
from lift.config.site import BudgetSettings, SiteConfig
from lift.privacy.book import PlannedRun, Release
from lift_client.check.budget_check import check_budget
from lift_client.check.verdict import Verdict
from lift_client.gate.cohort_ledger import begin, cohort_of
from lift_client.gate.ledger import Ledger, create_ledger

DELTA = 1e-4
RUN = PlannedRun(
    run="a" * 64,
    releases=(Release(purpose="start", noise_multiplier=4.0, q=1.0, clip_norm=1.0, steps=1),),
)


def config(
    folder: Path, *modes: PrivacyMode, epsilon: float | None = 8.0, ledger: Path | None = None
) -> SiteConfig:
    data = {
        "name": "north",
        "data": {"layout": "brats", "root": str(folder)},
        "folder": str(folder),
        "generator": {"builtin": "phantom-t1n-t1c-t2w-t2f"},
        "policy": {"privacy_modes": list(modes)},
    }
    made = SiteConfig.from_data(data, "test")
    if epsilon is None:
        return made
    budget = BudgetSettings(epsilon=epsilon, delta=DELTA, ledger=ledger)
    return made.model_copy(update={"budget": budget})


def only(found: SiteConfig) -> Verdict:
    (verdict,) = check_budget(found)
    assert verdict.status == "ok" or verdict.fix
    return verdict


def test_a_site_without_private_plans_is_not_asked_for_a_budget(tmp_path: Path) -> None:
    assert list(check_budget(config(tmp_path, "none", epsilon=None))) == []
    assert list(check_budget(config(tmp_path, "site", epsilon=None))) == []


def test_a_policy_that_allows_private_plans_needs_a_budget(tmp_path: Path) -> None:
    verdict = only(config(tmp_path, "none", "patient-local", epsilon=None))
    assert verdict.status == "warning"
    assert "patient-local" in verdict.detail


def test_a_ledger_that_is_not_there_is_named(tmp_path: Path) -> None:
    verdict = only(config(tmp_path, "patient-local"))
    assert (verdict.status, verdict.label) == ("problem", "record")
    assert "ledger.jsonl" in verdict.detail
    assert only(config(tmp_path, "none")).status == "warning"


@pytest.mark.parametrize("given", [False, True])
def test_what_was_spent_and_what_is_left(tmp_path: Path, given: bool) -> None:
    path = tmp_path / ("elsewhere.jsonl" if given else "ledger.jsonl")
    site = config(tmp_path, "patient-local", ledger=path if given else None)
    assert begin(site, tmp_path) == path
    verdict = only(site)
    assert (verdict.status, verdict.detail) == ("ok", "epsilon 0.000 of 8 spent at delta 0.0001")
    with Ledger(path, cohort=cohort_of(site)) as ledger:
        ledger.begin(RUN)
        ledger.reserve(RUN.run, 0, "start", 1)
        spent = ledger.epsilon
        ledger.lower_cap(spent, "enough")
    verdict = only(site)
    assert verdict.status == "warning"
    assert f"epsilon {spent:.3f} of" in verdict.detail
    assert "nothing is left" in verdict.detail


def test_a_ledger_that_does_not_count_for_the_data_is_a_problem(tmp_path: Path) -> None:
    site = config(tmp_path, "patient-local")
    create_ledger(tmp_path / "ledger.jsonl", cohort="others", delta=DELTA, cap=8.0)
    verdict = only(site)
    assert (verdict.status, verdict.label) == ("problem", "config")
    assert "--adopt" in verdict.fix
    (tmp_path / "ledger.jsonl").unlink()
    (tmp_path / "ledger.head").unlink()
    begin(site, tmp_path)
    (tmp_path / "ledger.jsonl").rename(tmp_path / "away")
    assert "--adopt" in only(site).fix


def test_a_damaged_ledger_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    create_ledger(path, cohort="north", delta=DELTA, cap=8.0)
    path.write_bytes(path.read_bytes().replace(b"8.0", b"9.0"))
    verdict = only(config(tmp_path, "patient-local"))
    assert (verdict.status, verdict.label) == ("problem", "record")
