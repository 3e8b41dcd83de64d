"""One ledger for each cohort: whatever a site is called, its patients' budget is spent once."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from lift.config.cohort import BratsData
from lift.config.plan import Plan, TaskPlan
from lift.config.privacy import PatientGradients
from lift.config.site import MARK_FILE, BudgetSettings, SiteSettings
from lift.errors import ConfigError, RecordError
from lift.privacy.costs import STEPS
from lift_client.cli import app
from lift_client.gate.budget import Arrays, Budget
from lift_client.gate.cohort_ledger import adopt, begin
from lift_client.gate.ledger import LEDGER_FILE, verify

DELTA, CAP = 1e-4, 20.0
BLOCKS = 8
PLAN = Plan(
    task=TaskPlan(source=("t1n",), target="t2w"),
    privacy=PatientGradients(
        mode="patient-local",
        delta=DELTA,
        public_patients=50,
        clip_norm=0.1,
        noise_multiplier=8.0,
        sampling_rate=0.1,
    ),
)


def settings(
    data: Path, name: str = "north", *, ledger: Path | None = None, mark: Path | None = None
) -> SiteSettings:
    data.mkdir(exist_ok=True)
    budget = BudgetSettings(epsilon=CAP, delta=DELTA, ledger=ledger, mark=mark)
    return SiteSettings(name=name, data=BratsData(root=data), budget=budget)


def release(budget: Budget, round_: int, request: bytes = b"") -> None:
    def compute() -> Arrays:
        return {"w": np.random.default_rng().normal(size=3)}

    budget.admit(PLAN)
    budget.release(
        PLAN, round_index=round_, purpose=STEPS, steps=1, request=request, compute=compute
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["north", "north-2"])
def test_the_same_patients_get_no_second_budget_under_another_name_or_in_another_folder(
    tmp_path: Path, data: Path, name: str
) -> None:
    first = settings(data)
    begin(first, tmp_path / "one")
    release(Budget(first, tmp_path / "one"), 1)
    before = content(tmp_path)
    with pytest.raises(RecordError) as caught:
        begin(settings(data, name), tmp_path / "two")
    assert "--adopt" in caught.value.remedy
    assert content(tmp_path) == before
    # nor with a ledger that was begun for others
    begin(settings(tmp_path / "others"), tmp_path / "two")
    with pytest.raises(ConfigError, match="another cohort"):
        Budget(settings(data, name), tmp_path / "two").admit(PLAN)


def test_a_copy_of_the_data_belongs_to_the_same_cohort(tmp_path: Path, data: Path) -> None:
    begin(settings(data), tmp_path / "one")
    shutil.copytree(data, tmp_path / "copy")
    with pytest.raises(RecordError):
        begin(settings(tmp_path / "copy"), tmp_path / "two")


def test_data_that_lost_their_mark_are_not_computed_on_until_it_is_back(
    tmp_path: Path, data: Path
) -> None:
    site, work = settings(data), tmp_path / "work"
    begin(site, work)
    mark = (data / MARK_FILE).read_bytes()
    (data / MARK_FILE).unlink()
    with pytest.raises(ConfigError) as caught:
        Budget(site, work).admit(PLAN)
    assert "--adopt" in caught.value.remedy
    adopt(site, work, work / LEDGER_FILE)
    assert (data / MARK_FILE).read_bytes() == mark
    release(Budget(site, work), 1)
    (data / MARK_FILE).write_bytes(mark.replace(b'"cohort"', b'"other"'))
    with pytest.raises(ConfigError, match="cannot read"):
        Budget(site, work).admit(PLAN)


def test_data_that_cannot_be_written_need_a_place_for_their_mark(tmp_path: Path) -> None:
    # nobody may make a file there, root neither
    site = settings(Path("/proc/self"))
    with pytest.raises(ConfigError) as caught:
        begin(site, tmp_path / "work")
    assert "budget.mark" in caught.value.remedy
    assert content(tmp_path) == {}
    elsewhere = settings(Path("/proc/self"), mark=tmp_path / "mark.json")
    begin(elsewhere, tmp_path / "work")
    release(Budget(elsewhere, tmp_path / "work"), 1)
    with pytest.raises(RecordError):
        begin(elsewhere, tmp_path / "other")


def test_two_sites_that_share_patients_share_one_ledger(tmp_path: Path, data: Path) -> None:
    north = settings(data)
    path = begin(north, tmp_path / "north")
    # the same patients' CT lies in a folder of its own
    ct = settings(tmp_path / "ct", "north-ct", ledger=path)
    adopt(ct, tmp_path / "north-ct", path)
    sites = [Budget(north, tmp_path / "north"), Budget(ct, tmp_path / "north-ct")]
    for round_ in (1, 2, 3):
        for number, site in enumerate(sites):
            before = verify(path).head
            release(site, round_, bytes([number]))
            # each shows the server how its head follows, with the other's lines among them
            assert site.head is not None
            assert before in verify(path).heads
            assert site.proof(before)
    assert sum(verify(path).steps().values()) == 6


def _spend(site: SiteSettings, work: Path) -> None:
    budget = Budget(site, work)
    for number in range(BLOCKS):
        release(budget, 1 + number, site.name.encode())


def test_two_processes_on_one_ledger_lose_no_line(tmp_path: Path, data: Path) -> None:
    north = settings(data)
    path = begin(north, tmp_path / "north")
    ct = settings(data, "north-ct", ledger=path)
    spawned = multiprocessing.get_context("spawn")
    children = [
        spawned.Process(target=_spend, args=(site, tmp_path / site.name)) for site in (north, ct)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    book = verify(path)
    assert sum(book.steps().values()) == 2 * BLOCKS
    assert len(book.sent) == 2 * BLOCKS


def test_a_ledger_put_back_while_something_is_computed_lets_nothing_leave(
    tmp_path: Path, data: Path
) -> None:
    site, work = settings(data), tmp_path / "work"
    begin(site, work)
    budget = Budget(site, work)
    release(budget, 1)
    shutil.copytree(work, tmp_path / "copy")

    def compute() -> Arrays:
        shutil.rmtree(work)
        shutil.copytree(tmp_path / "copy", work)
        return {"w": np.ones(3)}

    with pytest.raises(RecordError, match="damaged"):
        budget.release(PLAN, round_index=2, purpose=STEPS, steps=1, request=b"", compute=compute)


# --- taking over


def test_an_adopted_ledger_goes_on_where_it_was_and_no_longer_in_its_old_place(
    tmp_path: Path, data: Path
) -> None:
    old, new = settings(data), settings(data, "north-2")
    begin(old, tmp_path / "old")
    release(Budget(old, tmp_path / "old"), 1)
    before = verify(tmp_path / "old" / LEDGER_FILE)
    spent, head = before.epsilon(), before.head
    path = adopt(new, tmp_path / "new", tmp_path / "old" / LEDGER_FILE)
    assert verify(path, expected_head=head).epsilon() == spent > 0
    release(Budget(new, tmp_path / "new"), 2)
    assert verify(path).epsilon() > spent
    left = content(tmp_path / "old")
    with pytest.raises(RecordError, match="missing"):
        Budget(old, tmp_path / "old").admit(PLAN)
    assert content(tmp_path / "old") == left
    # what was there is kept, for whoever asks
    assert (tmp_path / "old" / f"{LEDGER_FILE}.moved").exists()


@pytest.mark.parametrize("moved", range(5))
def test_an_adoption_that_was_cut_off_is_finished_by_the_same_command(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    old, new, source = settings(data), settings(data, "north-2"), tmp_path / "old" / LEDGER_FILE
    begin(old, tmp_path / "old")
    release(Budget(old, tmp_path / "old"), 1)
    steps, left = 0, moved
    for name in ("rename", "replace"):
        real = getattr(Path, name)

        def counted(self: Path, target: Path, real: object = real) -> object:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            assert callable(real)
            return real(self, target)

        monkeypatch.setattr(Path, name, counted)
    with pytest.raises(KeyboardInterrupt):
        adopt(new, tmp_path / "new", source)
    monkeypatch.undo()
    usable = []
    for site, work in ((old, tmp_path / "old"), (new, tmp_path / "new")):
        try:
            steps = sum(verify(work / LEDGER_FILE).steps().values())
            usable.append((site, work))
        except RecordError:
            continue
        assert steps == 1
    assert usable
    if source.exists():
        adopt(new, tmp_path / "new", source)
    release(Budget(new, tmp_path / "new"), 2)
    with pytest.raises(RecordError):
        Budget(old, tmp_path / "old").admit(PLAN)


def test_a_ledger_of_other_patients_is_not_adopted(tmp_path: Path, data: Path) -> None:
    site, other = settings(data), settings(tmp_path / "others")
    begin(site, tmp_path / "one")
    begin(other, tmp_path / "two")
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="other patients"):
        adopt(site, tmp_path / "one", tmp_path / "two" / LEDGER_FILE)
    # nor one that went its own way: both would count
    unmarked = settings(tmp_path / "unmarked")
    shutil.copytree(tmp_path / "one", tmp_path / "three")
    release(Budget(site, tmp_path / "one"), 1)
    shutil.copy(data / MARK_FILE, tmp_path / "unmarked" / MARK_FILE)
    release(Budget(unmarked, tmp_path / "three"), 1)
    now = content(tmp_path)
    with pytest.raises(RecordError, match="another privacy ledger"):
        adopt(site, tmp_path / "one", tmp_path / "three" / LEDGER_FILE)
    assert content(tmp_path) == now
    assert set(before) <= set(now)


# --- the command


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_begin_refuse_and_adopt(tmp_path: Path, data: Path) -> None:
    data.mkdir()
    for name in ("north", "north-2"):
        (tmp_path / name).mkdir()
        text = yaml.safe_dump(
            {
                "name": name,
                "data": {"layout": "brats", "root": str(data)},
                "generator": {"builtin": "phantom-t1n-t1c-t2w-t2f"},
                "budget": {"epsilon": CAP, "delta": DELTA},
                "policy": {"privacy_modes": ["patient-local"]},
            }
        )
        (tmp_path / name / "site.yaml").write_text(text)
    one, two = (tmp_path / name / "site.yaml" for name in ("north", "north-2"))
    made = run("ledger", "--site", one, "--create")
    assert made.exit_code == 0
    assert str(data / MARK_FILE) in made.stdout
    assert isinstance(run("ledger", "--site", two, "--create").exception, RecordError)
    ledger = tmp_path / "north" / "work" / LEDGER_FILE
    taken = run("ledger", "--site", two, "--adopt", ledger)
    assert taken.exit_code == 0, taken.exception
    assert verify(tmp_path / "north-2" / "work" / LEDGER_FILE).cohort in taken.stdout
    assert not ledger.exists()
