"""A withdrawn patient is used no more, and a site's work folder holds nothing of the patient."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from lift.cohort import reading
from lift.cohort.layouts import list_patients
from lift.cohort.withdrawn import KEY_FILE, WITHDRAWN_FILE, left_out, nobody, read_withdrawn
from lift.config.cohort import BratsData, CohortData, TableData
from lift.config.plan import Plan
from lift.config.privacy import NoPrivacy, PatientGradients, StartRelease
from lift.config.site import SiteConfig
from lift.errors import ConfigError, DataError, LiftError, RecordError
from lift.files import held_alone, write_json
from lift.generator.networks import FrozenGenerator
from lift.protocol.messages import (
    Failure,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainRequest,
)
from lift.tasks.paired.building import plan_mixer
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift_client.approval import APPROVED_FILE
from lift_client.check.image_check import examine_cohort
from lift_client.gate.budget import STORED
from lift_client.gate.cohort_ledger import begin
from lift_client.gate.journal import JOURNAL_FILE, Entry, Journal, read_journal
from lift_client.gate.ledger import LEDGER_FILE, verify
from lift_client.gate.patients_used import USED_FILE, read_used
from lift_client.gate.withdrawal_notes import check_noted
from lift_client.own import withdrawing
from lift_client.own.withdrawal_view import described
from lift_client.own.withdrawing import Withdrawal, withdraw
from lift_client.session import SiteSession
from tests.end_to_end.tiny_run import patient_name
from tests.lift.small_world import SOURCES, TARGET, small_generator, small_plan, write_brats_patient
from tests.lift.unconditional.tiny_decoder import tiny_plan, write_bodies
from tests.release.made import make_world

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DELTA = 1e-5
PERSONS = 4
WHO = "BraTS-GLI-00001"
"""A person of two examinations."""
THEIRS = (f"{WHO}-000", f"{WHO}-001")
PRIVATE = PatientGradients(
    mode="patient-local",
    delta=DELTA,
    public_patients=5,
    clip_norm=0.1,
    noise_multiplier=4.0,
    sampling_rate=1.0,
    start=StartRelease(noise_multiplier=9.0, clip_norm=0.1),
)


@pytest.fixture(scope="module")
def generator() -> FrozenGenerator:
    return small_generator()


@dataclass(frozen=True)
class Site:
    """One site with patients, as its operator has it."""

    config: SiteConfig
    generator: FrozenGenerator

    @property
    def work(self) -> Path:
        return self.config.folder

    @property
    def data(self) -> Path:
        return self.config.data.root

    def answer(self, plan: Plan) -> Parcel:
        """The answer to round 0, of a client that was just started; it is in the journal."""
        session = SiteSession(self.config, self.generator, self.work)
        answer = session.handle(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan)))
        session.close()
        assert isinstance(answer, Parcel), answer
        self.sent(plan, "statistics", 0)
        return answer

    def train(self, plan: Plan, round_: int) -> Parcel | Failure:
        session = SiteSession(self.config, self.generator, self.work)
        values = {n: v.numpy() for n, v in plan_mixer(plan, self.generator).values().items()}
        request = TrainRequest(plan_digest=plan.digest(), round=round_)
        answer = session.handle(Parcel(Kind.TRAIN, request, values))
        session.close()
        self.sent(plan, "train", round_)
        return answer

    def sent(self, plan: Plan, kind: str, round_: int) -> None:
        Journal(self.work / JOURNAL_FILE).append(
            Entry(
                run=plan.digest(),
                round=round_,
                kind=kind,  # type: ignore[arg-type]  # one of the kinds
                tensors=(),
                bytes=0,
                sha256="0" * 64,
                receiver="localhost:1",
                purpose="A test.",
            )
        )

    def withdraw(self, name: str = WHO, **options: bool | str) -> Withdrawal:
        return withdraw(self.config, name, now=NOW, **options)  # type: ignore[arg-type]  # by name


Make = Callable[..., Site]


@pytest.fixture
def make(generator: FrozenGenerator, kit: Path, tmp_path: Path) -> Make:
    def site(data: Callable[[Path], CohortData] | None = None, name: str = "north") -> Site:
        root = tmp_path / f"data-{name}"
        write_brats_patient(root, THEIRS[1], seed=50)
        for index in range(PERSONS):
            write_brats_patient(root, f"BraTS-GLI-{index:05d}-000", seed=index)
        config = SiteConfig.from_data(
            {
                "name": "north",
                "data": {"layout": "brats", "root": str(root)},
                "generator": {"bundle": str(tmp_path)},
                "device": "cpu",
                "budget": {"epsilon": 50.0, "delta": DELTA},
                "policy": {"privacy_modes": ["none", "patient-local"], "image_checks": False},
                "folder": str(tmp_path / f"work-{name}"),
                "kit": str(kit),
            },
            "test",
        )
        if data is not None:
            config = config.model_copy(update={"data": data(root)})
        return Site(config, generator)

    return site


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of a coordinator, for these channels."""
    folder = make_world(tmp_path_factory.mktemp("world"), sites=("north",)).folder / "north" / "kit"
    told = json.loads((folder / "kit.json").read_text())
    told["task"] = {"source": list(SOURCES), "target": TARGET}
    (folder / "kit.json").write_text(json.dumps(told))
    return folder


@pytest.fixture
def site(make: Make) -> Site:
    return make()


def plan_of(generator: FrozenGenerator, privacy: PatientGradients | None = None) -> Plan:
    plan = small_plan("zdiff", generator=generator, training={"steps": 1, "warmup_steps": 0})
    split = plan.split.model_copy(update={"train": 1.0, "validation": 0.0})
    chosen = NoPrivacy(mode="none") if privacy is None else privacy
    return plan.model_copy(update={"privacy": chosen, "split": split})


def same(one: Parcel, other: Parcel) -> bool:
    return one.body == other.body and all(
        np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


def holding(folder: Path, text: str = WHO) -> set[str]:
    """Files and folders below whose name or bytes hold a text."""
    needle = text.encode()
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if text in path.name or (path.is_file() and needle in path.read_bytes())
    }


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in {"lock", "journal.lock"}
    }


def leave_traces(site: Site) -> None:
    """What else a run, a check, a report and killed programs leave of a patient."""
    examine_cohort(site.config, [*SOURCES, TARGET], workers=1)
    log = "2026-03-01 10:00:00,001 WARNING lift.cohort.reading event=patient_refused"
    (site.work / "log.txt").write_text(
        "2026-03-01 10:00:00,000 INFO lift_client.app event=started site=north\n"
        f"{log} site=north reason=cannot use patient '{THEIRS[0]}'\n"
        f"  {THEIRS[0]}/{THEIRS[0]}-t1n.nii.gz has two channels\n"
        f"{log} site=north reason=cannot use patient 'BraTS-GLI-00010-000'\n"
    )
    (site.work / "log.txt.1").write_text(f"{log} reason={THEIRS[1]}\n")
    for name in ("report/synthesis/north", "audit", ".choose-abc"):
        (site.work / name).mkdir(parents=True)
    (site.work / "report" / "synthesis" / "north" / THEIRS[0]).mkdir()
    split = (site.work / "split.json").read_text()
    for name in ("audit/split.json", ".choose-abc/split.json", ".split.json.0a.part"):
        (site.work / name).write_text(split)
    unfinished = site.work / "cache" / ".0a.part"
    unfinished.mkdir()
    (unfinished / "pred.npy").write_bytes(b"voxels")
    (site.work / "final-mixer.safetensors").write_bytes(b"numbers")


def test_a_withdrawn_patient_is_used_no_more_though_the_files_are_there(
    make: Make, generator: FrozenGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, site, without = plan_of(generator), make(), make(name="without")
    before = site.answer(plan)
    for name in THEIRS:
        for file in (without.data / name).iterdir():
            file.unlink()
        (without.data / name).rmdir()
    site.withdraw()
    assert (site.data / THEIRS[0]).is_dir()
    after = site.answer(plan)
    assert same(after, without.answer(plan))
    assert not same(after, before)
    assert holding(site.work) == set()
    # a reading that does not look uses the patient again
    monkeypatch.setattr(reading, "left_out", lambda _: nobody)
    assert same(site.answer(plan), before)
    assert holding(site.work) == {"split.json"}


def test_the_work_folder_holds_the_patient_s_name_nowhere(
    site: Site, generator: FrozenGenerator
) -> None:
    site.answer(plan_of(generator))
    leave_traces(site)
    before = holding(site.work)
    assert {"split.json", "audit/split.json", ".choose-abc/split.json", "log.txt"} <= before
    assert any(name.startswith("check/") for name in before)
    cached = len(list(site.work.glob("cache/*/entry.json")))
    done = site.withdraw(THEIRS[1], reason="consent withdrawn")
    assert holding(site.work) == set()
    assert len(list(site.work.glob("cache/*/entry.json"))) == cached - len(THEIRS)
    assert not list(site.work.rglob("*.part"))
    assert not (site.work / "report").exists()
    # what is of others stays
    assert "started" in (site.work / "log.txt").read_text()
    assert "BraTS-GLI-00010-000" in (site.work / "log.txt").read_text()
    assert "BraTS-GLI-00002-000" in (site.work / "split.json").read_text()
    assert len(list(site.work.glob("check/*.json"))) == PERSONS - 1
    assert (done.kept, done.examinations) == (("final-mixer.safetensors",), 2)
    places = [what for what in done.removed if "split.json" in what]
    assert places == ["the place in audit/split.json", "the place in split.json"]
    text = "\n".join(described(done, dry_run=False))
    assert "2 entries of the cache" in text
    assert "1 entries of log.txt" in text
    # hashes, and the journal's line, are all that is kept
    (entry,) = read_withdrawn(site.work)
    last = read_journal(site.work / JOURNAL_FILE).lines[-1]
    assert (last.kind, last.sha256, last.receiver) == ("note", entry.person, "nobody")
    assert "consent withdrawn" in last.purpose
    for name in (KEY_FILE, WITHDRAWN_FILE, USED_FILE):
        assert (site.work / name).stat().st_mode & 0o777 == 0o600


def test_a_number_for_a_name_takes_no_time_of_day_for_a_patient(make: Make) -> None:
    site = make(table)
    site.work.mkdir()
    (site.work / "log.txt").write_text(
        "2026-03-01 13:00:00,001 INFO lift.x event=a site=north\n"
        "2026-03-01 13:01:00,001 INFO lift.x cannot use patient '13'\n"
        "2026-03-01 12:00:00,001 INFO lift.x scans of 130 and of x13\n"
    )
    site.withdraw("13")
    assert len((site.work / "log.txt").read_text().splitlines()) == 2


def test_an_entry_in_json_goes_however_json_spells_the_name(make: Make) -> None:
    site = make(table)
    site.work.mkdir()
    name = 'M\u00fcller "13"'
    lines = [
        {"time": "2026-03-01T13:00:00.001Z", "level": "info", "file": f"{name}/a.nii.gz"},
        {"time": "2026-03-01T13:00:00.001Z", "level": "info", "message": "of nobody"},
        {"time": "2026-03-01T13:00:00.001Z", "level": "info", "message": f"cannot use '{name}'"},
        {"time": "2026-03-01T13:00:00.001Z", "level": "info", "traceback": f"a\n  {name}: b"},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    assert name not in content
    (site.work / "log.txt").write_text(content)
    site.withdraw(name, gone=True)
    assert [json.loads(line) for line in (site.work / "log.txt").read_text().splitlines()] == [
        lines[1]
    ]


def test_what_is_sent_again_is_computed_without_the_patient_and_paid(
    site: Site, generator: FrozenGenerator
) -> None:
    begin(site.config, site.work)
    plan = plan_of(generator, PRIVATE)
    first = site.answer(plan)
    assert same(site.answer(plan), first)
    trained = site.train(plan, 1)
    assert isinstance(trained, Parcel)
    spent = verify(site.work / LEDGER_FILE).steps()
    lines = (site.work / LEDGER_FILE).read_bytes()
    site.withdraw()
    assert list((site.work / STORED).iterdir()) == []
    # nothing is refunded
    assert (site.work / LEDGER_FILE).read_bytes() == lines
    assert not same(site.answer(plan), first)
    assert isinstance(site.train(plan, 1), Parcel)
    assert sum(verify(site.work / LEDGER_FILE).steps().values()) > sum(spent.values())


def test_it_names_the_runs_and_releases_and_those_of_which_nothing_is_known(
    site: Site, generator: FrozenGenerator
) -> None:
    plan, old = plan_of(generator), plan_of(generator).model_copy(update={"seed": 77})
    later = plan.model_copy(update={"seed": 78})
    site.sent(old, "train", 4)
    site.answer(plan)
    for round_ in (1, 2, 4):
        site.sent(plan, "train", round_)
    # began before the record, and went on with it
    site.sent(later, "train", 1)
    site.answer(later)
    releases = [
        {"manifest_sha256": str(number) * 64, "federation": "trial", "made": "2026", "run": run}
        for number, run in enumerate([plan.digest(), old.digest(), "f" * 64, ""])
    ]
    write_json(site.work / APPROVED_FILE, {"format_version": 1, "releases": releases})
    done = site.withdraw()
    use, other = done.runs
    assert (use.run, use.parts, use.rounds) == (plan.digest(), ("train",), (1, 2, 4))
    assert use.kinds == ("statistics", "train")
    assert (other.run, other.rounds) == (later.digest(), ())
    used = read_used(site.work)
    assert used is not None
    assert done.unknown_runs == {
        old.digest(): "",
        later.digest(): used.runs[later.digest()].since,
    }
    assert [one.run for one in done.releases] == [plan.digest()]
    # the last two are of runs that this folder knows nothing of
    assert [one.run for one in done.unknown_releases] == [old.digest(), "f" * 64, ""]
    text = described(done, dry_run=False)
    assert any("rounds 1-2, 4, statistics" in line and "training" in line for line in text)
    assert any(line.startswith("not known: run") for line in text)
    # somebody of whom no run knows
    write_brats_patient(site.data, "BraTS-GLI-00009-000", seed=9)
    assert site.withdraw("BraTS-GLI-00009-000").runs == ()
    # what follows a withdrawal is not the patient's
    site.sent(plan, "train", 5)
    assert site.withdraw().runs[0].rounds in {(1, 2, 4), ()}


def test_the_record_of_runs_holds_hashes_alone(site: Site, generator: FrozenGenerator) -> None:
    site.answer(plan_of(generator))
    record = site.work / USED_FILE
    assert "BraTS" not in record.read_text()
    (run,) = json.loads(record.read_text())["runs"].values()
    assert len(run["patients"]) == PERSONS
    assert all(re.fullmatch(r"[0-9a-f]{64}", person) for person in run["patients"])
    before = record.stat().st_mtime_ns
    site.answer(plan_of(generator))
    assert record.stat().st_mtime_ns == before


def test_twice_is_as_once_and_a_dry_run_changes_nothing(
    site: Site, generator: FrozenGenerator
) -> None:
    site.answer(plan_of(generator))
    before = content(site.work)
    would = site.withdraw(dry_run=True)
    assert content(site.work) == before
    done = site.withdraw()
    assert would.removed == done.removed
    once = content(site.work)
    again = site.withdraw(THEIRS[0])
    assert (again.already[:10], again.removed, again.person) == ("2026-03-01", (), done.person)
    assert content(site.work) == once


def test_a_crash_on_the_way_is_made_good_by_the_same_call(
    site: Site, generator: FrozenGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.answer(plan_of(generator))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(withdrawing, "traces_of", killed)
        with pytest.raises(KeyboardInterrupt):
            site.withdraw()
    # nobody is used whose withdrawal began
    assert len(read_withdrawn(site.work)) == 1
    assert not any(line.kind == "note" for line in read_journal(site.work / JOURNAL_FILE).lines)
    assert holding(site.work) == {"split.json"}
    site.withdraw()
    assert holding(site.work) == set()
    notes = [line for line in read_journal(site.work / JOURNAL_FILE).lines if line.kind == "note"]
    assert len(notes) == 1


def refusal(site: Site, name: str = WHO, **options: bool | str) -> LiftError:
    before = content(site.work)
    with pytest.raises(LiftError) as caught:
        site.withdraw(name, **options)
    assert content(site.work) == before
    return caught.value


def test_an_unknown_name_is_refused_and_nothing_is_guessed(site: Site) -> None:
    error = refusal(site, "BraTS-GLI-0001")
    assert isinstance(error, DataError)
    assert "'BraTS-GLI-#####-###'" in error.seen
    assert "00001" not in str(error)
    assert "--gone" in error.remedy


def test_a_site_whose_client_runs_and_a_reason_that_names_the_patient_are_refused(
    site: Site,
) -> None:
    with held_alone(site.work / "lock", RuntimeError()):
        error = refusal(site)
    assert isinstance(error, ConfigError)
    assert "Stop the client" in error.remedy
    assert "names the patient" in refusal(site, reason=f"{THEIRS[0]} died").seen
    assert "200" in refusal(site, reason="x" * 201).seen
    assert "one line" in refusal(site, reason="a\nb").seen


def test_a_damaged_journal_stops_it_before_anything_is_done(
    site: Site, generator: FrozenGenerator
) -> None:
    site.answer(plan_of(generator))
    with (site.work / JOURNAL_FILE).open("ab") as stream:
        stream.write(b"{}\n")
    assert isinstance(refusal(site), RecordError)


def test_who_is_gone_from_the_folder_is_known_by_the_record_or_taken_as_given(
    site: Site, generator: FrozenGenerator
) -> None:
    site.answer(plan_of(generator))
    for name in THEIRS:
        (site.data / name).rename(site.data.parent / name)
    done = site.withdraw(THEIRS[1])
    assert (done.found, done.examinations, len(done.runs)) == ("the site's record", 2, 1)
    assert holding(site.work) == set()
    # the person comes back with the other examination
    (site.data.parent / THEIRS[0]).rename(site.data / THEIRS[0])
    site.answer(plan_of(generator))
    assert holding(site.work) == set()
    refusal(site, "BraTS-GLI-00077-000")
    taken = site.withdraw("BraTS-GLI-00077-000", gone=True)
    assert taken.found == ""
    write_brats_patient(site.data, "BraTS-GLI-00077-000", seed=77)
    site.answer(plan_of(generator))
    assert holding(site.work, "00077") == set()


def test_a_folder_that_is_not_there_asks_for_the_word(site: Site) -> None:
    site.data.rename(site.data.parent / "away")
    refusal(site)
    assert site.withdraw(gone=True).found == ""


def table(root: Path) -> TableData:
    """Rows of numbers, three of one person; another person has a row's name."""
    rows = [("10", "a"), ("11", "a"), ("12", "b"), ("b", "a"), ("13", "13")]
    lines = ["patient,subject," + ",".join([*SOURCES, TARGET])]
    folders = sorted(root.iterdir())
    for (name, subject), folder in zip(rows, folders, strict=True):
        files = [f"{folder.name}/{folder.name}-{one}.nii.gz" for one in (*SOURCES, TARGET)]
        lines.append(",".join([name, subject, *files]))
    path = root.parent / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return TableData(root=root, table=path)


def test_the_subject_of_a_table_is_a_person_with_all_rows(make: Make) -> None:
    site = make(table)
    error = refusal(site, "b")
    assert "several persons" in error.what
    site.withdraw("a")
    kept, _ = list_patients(site.config.data, [*SOURCES, TARGET], without=left_out(site.config))
    assert [one.id for one in kept] == ["12", "13"]
    # a table that has lost its subjects brings nobody back
    path = site.config.data.table  # type: ignore[union-attr]  # it is a table
    path.write_text(re.sub(r"(?m)^(\w+),\w+,", r"\1,", path.read_text()))
    kept, _ = list_patients(site.config.data, [*SOURCES, TARGET], without=left_out(site.config))
    assert [one.id for one in kept] == ["12", "13"]


def test_an_incomplete_patient_is_known_and_stops_nobody_afterwards(make: Make) -> None:
    site = make(lambda root: BratsData(root=root, on_bad_file="stop"))
    (site.data / THEIRS[0] / f"{THEIRS[0]}-t1n.nii.gz").unlink()
    channels = [*SOURCES, TARGET]
    with pytest.raises(DataError):
        list_patients(site.config.data, channels)
    assert site.withdraw().examinations == 2
    patients, refused = list_patients(site.config.data, channels, without=left_out(site.config))
    assert (len(patients), refused) == (PERSONS - 1, [])
    assert len(examine_cohort(site.config, channels, workers=1).patients) == PERSONS - 1


@pytest.mark.parametrize("change", ["missing", "another", "no key", "no list"])
def test_without_the_key_or_the_list_nobody_is_read(
    site: Site, generator: FrozenGenerator, change: str
) -> None:
    site.withdraw()
    if change == "missing":
        (site.work / KEY_FILE).unlink()
    elif change == "no list":
        (site.work / WITHDRAWN_FILE).write_text("{}")
    else:
        (site.work / KEY_FILE).write_text("ab" * 32 if change == "another" else "key")
    session = SiteSession(site.config, generator, site.work)
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan_of(generator)))
    assert isinstance(session.handle(request), Failure)
    session.close()
    with pytest.raises(RecordError, match="cannot tell which patients were withdrawn"):
        left_out(site.config)
    assert not (site.work / "split.json").exists()


@pytest.mark.parametrize("lost", ["list", "older list", "all three"])
def test_a_list_that_is_not_the_newest_stops_the_client(
    site: Site, generator: FrozenGenerator, lost: str
) -> None:
    site.answer(plan_of(generator))
    check_noted(site.work)
    site.withdraw("BraTS-GLI-00002-000")
    older = (site.work / WITHDRAWN_FILE).read_bytes()
    site.withdraw(reason="asked for it")
    check_noted(site.work)
    if lost == "older list":
        (site.work / WITHDRAWN_FILE).write_bytes(older)
    else:
        (site.work / WITHDRAWN_FILE).unlink()
    if lost == "all three":
        (site.work / KEY_FILE).unlink()
        (site.work / USED_FILE).unlink()
    with pytest.raises(RecordError, match="an older one, or is gone") as caught:
        check_noted(site.work)
    assert f"{1 if lost == 'older list' else 2} withdrawals" in caught.value.seen
    for name in (WHO, "BraTS-GLI-00002"):
        site.withdraw(name)
    check_noted(site.work)
    notes = [line for line in read_journal(site.work / JOURNAL_FILE).lines if line.kind == "note"]
    assert len(notes) == (4 if lost == "all three" else 2)


def test_a_cohort_of_whom_all_were_withdrawn_says_so(
    site: Site, generator: FrozenGenerator, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(PERSONS):
        site.withdraw(f"BraTS-GLI-{index:05d}-000")
    session = SiteSession(site.config, generator, site.work)
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan_of(generator)))
    assert isinstance(session.handle(request), Failure)
    session.close()
    assert "all its patients were withdrawn" in caplog.text
    assert "BraTS" not in caplog.text


def test_new_volumes_are_made_without_the_patient_and_the_data_version_rises(
    make: Make, decoder: FrozenDecoder, tmp_path: Path
) -> None:
    bodies = write_bodies(tmp_path / "bodies", 81, 7)
    config = make(lambda _: BratsData(root=bodies)).config
    plan = tiny_plan(decoder, split={"train": 1.0, "validation": 0.0})

    def version() -> int:
        session = SiteSession(config, decoder, config.folder)
        answer = session.handle(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan)))
        session.close()
        assert isinstance(answer, Parcel)
        assert isinstance(answer.body, StatisticsReply)
        return answer.body.data_version

    assert (version(), version()) == (0, 0)
    who = patient_name(3)
    assert who in (config.folder / "split.json").read_text()
    assert withdraw(config, who, now=NOW).runs[0].run == plan.digest()
    assert holding(config.folder, who) == set()
    assert (version(), version()) == (1, 1)
    assert holding(config.folder, who) == set()


def test_whatever_lists_a_site_s_patients_says_who_is_left_out() -> None:
    places = {
        path.relative_to(ROOT).as_posix(): [keyword.arg for keyword in call.keywords]
        for path in [*ROOT.glob("client/**/*.py"), *ROOT.glob("lift/cohort/*.py")]
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "list_patients"
    }
    everybody = {name for name, given in places.items() if "without" not in given}
    # who is withdrawn has to be found first
    assert everybody == {"client/lift_client/own/withdrawing.py"}
    assert {"lift/cohort/reading.py", "client/lift_client/check/preflight.py"} < set(places)
