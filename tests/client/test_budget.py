"""Between work and ledger: paid first, stored before it leaves, the same bytes for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lift.config.cohort import BratsData
from lift.config.plan import FederationPlan, Plan, TaskPlan
from lift.config.privacy import NoPrivacy, PatientGradients, StartRelease
from lift.config.site import BudgetSettings, SiteSettings
from lift.errors import BudgetSpentError, ConfigError, DataError, RecordError
from lift.privacy.book import Release
from lift.privacy.costs import START, STEPS, epsilon_after, most_steps
from lift_client.gate.budget import Arrays, Budget
from lift_client.gate.cohort_ledger import begin
from lift_client.gate.ledger import verify

DELTA = 1e-4
PLAN = Plan(
    task=TaskPlan(source=("t1n",), target="t2w"),
    privacy=PatientGradients(
        mode="patient-local",
        delta=DELTA,
        public_patients=50,
        clip_norm=0.1,
        noise_multiplier=2.0,
        sampling_rate=0.1,
        start=StartRelease(noise_multiplier=5.0, clip_norm=0.1),
    ),
)
STEPS_A_ROUND = PLAN.training.steps
SHORT = PLAN.model_copy(update={"federation": FederationPlan(rounds=3)})
LONG = PLAN.model_copy(update={"federation": FederationPlan(rounds=12)})


class Site:
    """A site's folder, and how often its data was touched."""

    def __init__(self, folder: Path, *, epsilon: float = 100.0) -> None:
        self.folder = folder
        self.ledger = folder / "ledger.jsonl"
        self.touched = 0
        self.settings = SiteSettings(
            name="north",
            data=BratsData(root=folder),
            budget=BudgetSettings(epsilon=epsilon, delta=DELTA),
        )
        begin(self.settings, folder)
        self.budget = Budget(self.settings, folder)

    def restart(self) -> None:
        self.budget.close()
        self.budget = Budget(self.settings, self.folder)

    def train(self, round_index: int, request: bytes = b"start", *, plan: Plan = PLAN) -> Arrays:
        def compute() -> Arrays:
            self.touched += 1
            return {"w": np.random.default_rng().normal(size=3).astype(np.float32)}

        return self.budget.release(
            plan,
            round_index=round_index,
            purpose=STEPS,
            steps=STEPS_A_ROUND,
            request=request,
            compute=compute,
        )

    def spent(self) -> float:
        return verify(self.ledger).epsilon()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.budget.admit(PLAN)
    return made


def test_the_same_request_gets_the_same_bytes_for_nothing_also_after_a_restart(site: Site) -> None:
    first = site.train(1)
    spent = site.spent()
    assert spent > 0
    site.restart()
    site.budget.admit(PLAN)
    again = site.train(1)
    assert np.array_equal(first["w"], again["w"])
    assert site.touched == 1
    assert site.spent() == spent


def test_another_request_for_the_same_round_is_another_release(site: Site) -> None:
    first = site.train(1)
    spent = site.spent()
    other = site.train(1, b"another mixer")
    assert site.touched == 2
    assert not np.array_equal(first["w"], other["w"])
    assert site.spent() > spent


def test_a_stored_result_that_was_changed_is_not_sent_again(site: Site) -> None:
    site.train(1)
    (stored,) = (site.folder / "released").iterdir()
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(bytes(content))
    site.train(1)
    assert site.touched == 2


def test_stored_results_are_the_owners_alone_and_few(site: Site) -> None:
    site.budget.admit(LONG)
    for number in range(12):
        site.train(1, bytes([number]), plan=LONG)
    stored = list((site.folder / "released").iterdir())
    assert len(stored) == 8
    assert {path.stat().st_mode & 0o777 for path in stored} == {0o600}


def test_a_run_that_does_not_fit_touches_nothing(tmp_path: Path) -> None:
    small = Site(tmp_path, epsilon=0.05)
    with pytest.raises(BudgetSpentError, match="budget"):
        small.budget.admit(PLAN)
    assert small.touched == 0
    assert small.spent() == 0


def test_repetitions_beyond_the_cap_are_refused_before_the_data_is_touched(
    tmp_path: Path,
) -> None:
    # the plan's own rounds fit; computing them again and again does not
    cap = 3.5
    tight = Site(tmp_path, epsilon=cap)
    tight.budget.admit(PLAN)
    refused = 0
    for number in range(20):
        before = tight.touched
        try:
            tight.train(1, bytes([number]))
        except BudgetSpentError:
            refused += 1
            assert tight.touched == before
    assert refused > 0
    assert tight.touched > 0
    assert tight.spent() <= cap


def test_an_admitted_run_takes_no_more_than_its_plan_and_the_stated_repeats(
    tmp_path: Path,
) -> None:
    # the cap would pay for several times as much
    site = Site(tmp_path, epsilon=1000.0)
    site.budget.admit(SHORT)
    refused = 0
    for number in range(12):
        before = site.touched
        try:
            site.train(1, bytes([number]), plan=SHORT)
        except BudgetSpentError:
            refused += 1
            assert site.touched == before
    # a tenth of three rounds is one, rounded up
    assert site.touched == SHORT.federation.rounds + 1
    assert refused == 12 - site.touched
    planned = epsilon_after(SHORT, SHORT.federation.rounds)
    assert planned is not None
    assert planned < site.spent() < 1.3 * planned
    # what was answered is still there for nothing
    site.train(1, bytes([0]), plan=SHORT)
    # another run is another decision
    site.budget.admit(PLAN)
    site.train(1)


@pytest.mark.parametrize(
    ("share", "planned", "block", "most"),
    [(0.1, 30, 10, 40), (0.1, 300, 10, 330), (0.0, 30, 10, 30), (1.0, 3, 1, 6), (0.1, 1, 1, 2)],
)
def test_repeats_are_a_share_of_the_plan_in_whole_rounds(
    share: float, planned: int, block: int, most: int
) -> None:
    release = Release(purpose=STEPS, noise_multiplier=2.0, q=0.1, clip_norm=0.1, steps=planned)
    assert most_steps(release, block=block, repeats=share) == most


def test_a_failure_after_the_patients_were_touched_counts_in_full(site: Site) -> None:
    def broken() -> Arrays:
        raise DataError("cannot train", seen="x", remedy="y")

    with pytest.raises(DataError):
        site.budget.release(
            PLAN, round_index=1, purpose=STEPS, steps=1, request=b"", compute=broken
        )
    assert site.spent() > 0


def test_a_bug_in_training_counts_in_full(site: Site) -> None:
    def broken() -> Arrays:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        site.budget.release(
            PLAN, round_index=0, purpose=START, steps=1, request=b"", compute=broken
        )
    assert site.spent() > 0


def test_a_site_without_budget_or_ledger_computes_nothing(tmp_path: Path) -> None:
    settings = SiteSettings(name="north", data=BratsData(root=tmp_path))
    with pytest.raises(ConfigError, match="no privacy budget"):
        Budget(settings, tmp_path).admit(PLAN)
    budgeted = settings.model_copy(update={"budget": BudgetSettings(epsilon=1, delta=DELTA)})
    with pytest.raises(ConfigError, match="which privacy ledger"):
        Budget(budgeted, tmp_path).admit(PLAN)
    begin(budgeted, tmp_path).unlink()
    with pytest.raises(RecordError):
        Budget(budgeted, tmp_path).admit(PLAN)


def test_settings_that_disagree_with_the_ledger_are_refused(site: Site) -> None:
    site.budget.close()
    for budget in (
        BudgetSettings(epsilon=100.0, delta=1e-5),
        BudgetSettings(epsilon=50.0, delta=DELTA),
    ):
        settings = site.settings.model_copy(update={"budget": budget})
        with pytest.raises(ConfigError, match="disagree"):
            Budget(settings, site.folder).admit(PLAN)


def test_an_older_copy_of_the_ledger_is_noticed_by_the_hash_that_the_server_keeps(
    site: Site,
) -> None:
    kept = {p.name: p.read_bytes() for p in site.folder.iterdir() if p.is_file()}
    site.train(1)
    head = site.budget.head
    site.budget.close()
    for name, content in kept.items():
        (site.folder / name).write_bytes(content)
    fresh = Budget(site.settings, site.folder)
    with pytest.raises(RecordError):
        fresh.admit(PLAN, known_head=head)


def test_a_plan_without_noise_needs_no_budget(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"privacy": NoPrivacy(mode="none")})
    settings = SiteSettings(name="north", data=BratsData(root=tmp_path))
    budget = Budget(settings, tmp_path)
    assert budget.admit(plan) is None
    assert budget.head is None
    assert budget.epsilon is None
