"""The server's noise is added once to what was paid once; what is asked anew is paid anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lift.config.cohort import BratsData
from lift.config.privacy import PatientGradients, SiteLevel
from lift.config.site import BudgetSettings, SiteSettings
from lift.errors import QuorumError, RecordError
from lift.generator.networks import FrozenGenerator
from lift.protocol.messages import Answer, Failure, FailureKind, Kind, Parcel, TrainRequest
from lift.protocol.transport import Grace
from lift.records.rounds import RoundRecord
from lift.tasks.paired.building import plan_mixer
from lift_client import session
from lift_client.gate.cohort_ledger import begin
from lift_client.gate.ledger import LEDGER_FILE, verify
from lift_client.session import SiteSession
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks.registry import run_task
from tests.lift.small_world import small_generator, small_plan, write_brats_patient

DELTA = 1e-5
SITES = ("east", "west")
CENTRAL = PatientGradients(
    mode="patient-central",
    delta=DELTA,
    public_patients=2,
    clip_norm=0.1,
    noise_multiplier=5.0,
    sampling_rate=0.5,
)
SITE = SiteLevel(mode="site", delta=DELTA, clip_norm=1.0, noise_multiplier=1.0, forced=True)
Mixer = dict[str, torch.Tensor]


class World:
    """Two real sites with their ledgers, and a server that may be started anew."""

    def __init__(self, folder: Path, privacy: PatientGradients | SiteLevel) -> None:
        self.folder = folder
        self.generator: FrozenGenerator = small_generator()
        plan = small_plan(
            "zdiff", generator=self.generator, training={"steps": 1, "warmup_steps": 0}
        )
        split = plan.split.model_copy(update={"train": 1.0, "validation": 0.0})
        federation = plan.federation.model_copy(update={"quorum_sites": 1, "quorum_patients": 0.1})
        self.plan = plan.model_copy(
            update={"privacy": privacy, "split": split, "federation": federation}
        )
        self.sessions = {name: self._session(name, first) for first, name in enumerate(SITES)}
        self.asked: list[TrainRequest] = []
        self.silent: set[str] = set()

    def _session(self, name: str, first: int) -> SiteSession:
        for number in range(2):
            patient = f"BraTS-GLI-{10 * first + number:05d}-000"
            write_brats_patient(self.folder / name / "data", patient, seed=10 * first + number)
        settings = SiteSettings(
            name=name,
            data=BratsData(root=self.folder / name / "data"),
            # as many repeats as settings can allow: they are what is counted here
            budget=BudgetSettings(epsilon=1e3, delta=DELTA, repeats=1.0),
            device="cpu",
        )
        begin(settings, self.folder / name)
        return SiteSession(settings, self.generator, self.folder / name)

    def ledger(self, name: str) -> Path:
        return self.folder / name / LEDGER_FILE

    def paid(self, name: str) -> int:
        return sum(verify(self.ledger(name)).steps().values())

    def sites(self) -> list[str]:
        return list(SITES)

    def exchange(
        self, requests: Mapping[str, Parcel], *, deadline_s: float, grace: Grace | None = None
    ) -> dict[str, Answer]:
        del deadline_s, grace
        request = next(iter(requests.values()))
        if isinstance(request.body, TrainRequest):
            self.asked.append(request.body)
        return {
            site: Answer(Failure(FailureKind.NO_ANSWER), 0)
            if site in self.silent
            else Answer(self.sessions[site].handle(asked), 1)
            for site, asked in requests.items()
        }

    def run(self, output: str, state: str, *, store: RunStore | None = None) -> FinishedRun:
        """One start of `lift-server`, to its end."""
        store = store or RunStore(self.folder / output, self.plan.digest())
        return run_rounds(
            self.plan,
            self,
            store,
            run_task(self.plan, self.generator),
            roster=lambda: list(SITES),
            with_guard=False,
            heads_file=self.folder / "heads.json",
            noised_folder=self.folder / state / "noised",
        )

    def close(self) -> None:
        for each in self.sessions.values():
            each.close()


@pytest.fixture
def central(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, CENTRAL)
    yield world
    world.close()


def distinct(runs: Sequence[FinishedRun]) -> int:
    return len({tuple(torch.cat([v.flatten() for v in r.mixer.values()]).tolist()) for r in runs})


def lines(run: FinishedRun) -> list[RoundRecord]:
    return [line.model_copy(update={"resumed": False}) for line in run.records[1:]]


def test_a_plan_that_is_run_again_has_the_noise_that_it_had(central: World) -> None:
    runs = [central.run(f"run{number}", "state") for number in range(3)]
    assert distinct(runs) == 1
    assert len(central.asked) == 2
    assert {central.paid(name) for name in SITES} == {2}
    # who counted is what the first run says
    assert lines(runs[0]) == lines(runs[2])


def test_a_server_that_lost_its_state_is_answered_for_a_new_price(central: World) -> None:
    """Sixty reruns under one charge took an epsilon of .40 to 6.4 when they were free."""
    runs = [central.run(f"run{number}", f"state{number}") for number in range(2)]
    assert distinct(runs) == 2
    assert {central.paid(name) for name in SITES} == {2 * 2}
    assert len({request.exchange for request in central.asked}) == 2 * 2
    # and no oftener than the site allows repeats
    with pytest.raises(QuorumError):
        central.run("run2", "state2")
    assert {central.paid(name) for name in SITES} == {2 * 2}


def test_without_exchanges_one_charge_had_many_noises(
    central: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test before would see if a stored sum were sent to whoever asks."""
    monkeypatch.setattr(session, "_exchange", lambda *_: b"")
    runs = [central.run(f"run{number}", f"state{number}") for number in range(3)]
    assert distinct(runs) == 3
    # round 1 was paid once; the mixers differ from there, so that round 2 was paid three times
    assert {central.paid(name) for name in SITES} == {1 + 3}


class Dying(RunStore):
    """A server that is killed between the noise and its checkpoint."""

    def save(
        self,
        round_index: int,
        state: object,
        shared: object,
        record: RoundRecord,
    ) -> None:
        if round_index == 1:
            raise KeyboardInterrupt
        super().save(round_index, state, shared, record)  # type: ignore[arg-type]  # passed on


def test_a_death_after_the_noise_draws_no_second_one_on_another_set(central: World) -> None:
    store = Dying(central.folder / "run", central.plan.digest())
    with pytest.raises(KeyboardInterrupt):
        central.run("run", "state", store=store)
    # one site is gone when the server is back: the round keeps the set that had the noise
    central.silent = {"west"}
    done = central.run("run", "state")
    assert [sorted(line.counted) for line in done.records[1:]] == [["east", "west"], ["east"]]
    assert [request.round for request in central.asked] == [1, 2]
    assert central.paid("west") == 1


def test_the_noise_is_on_the_disk_before_it_is_used(central: World) -> None:
    store = Dying(central.folder / "run", central.plan.digest())
    with pytest.raises(KeyboardInterrupt):
        central.run("run", "state", store=store)
    (kept,) = (central.folder / "state" / "noised").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_noised_round_that_cannot_be_read_stops_the_run(central: World) -> None:
    central.run("run", "state")
    first = min((central.folder / "state" / "noised").iterdir())
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(bytes(content))
    with pytest.raises(RecordError, match="noise was added"):
        central.run("again", "state")
    assert len(central.asked) == 2
    for cut in (0, 20, 40):
        first.write_bytes(bytes(content)[:cut])
        with pytest.raises(RecordError):
            central.run("again", "state")


def test_noise_of_mode_site_is_drawn_once_too(tmp_path: Path) -> None:
    world = World(tmp_path, SITE)
    try:
        assert distinct([world.run(f"run{number}", "state") for number in range(3)]) == 1
        assert len(world.asked) == 2
    finally:
        world.close()


def test_an_exact_sum_belongs_to_one_exchange(central: World) -> None:
    central.run("run", "state")
    site, before = central.sessions["east"], central.paid("east")
    mixer = plan_mixer(central.plan, central.generator)
    values = {name: tensor.numpy() for name, tensor in mixer.values().items()}

    def ask(exchange: str | None) -> Parcel | Failure:
        body = TrainRequest(plan_digest=central.plan.digest(), round=1, exchange=exchange)
        return site.handle(Parcel(Kind.TRAIN, body, values))

    def content(answer: Parcel | Failure) -> bytes:
        assert isinstance(answer, Parcel)
        return b"".join(np.asarray(v).tobytes() for _, v in sorted(answer.tensors.items()))

    first = content(ask("a" * 64))
    # the answer was lost on the way: the same bytes, for nothing
    assert content(ask("a" * 64)) == first
    assert central.paid("east") == before + 1
    assert ask(None) == Failure(FailureKind.PRIVACY)
    assert central.paid("east") == before + 1
    second = content(ask("b" * 64))
    assert central.paid("east") == before + 2
    # all repeats are taken: an answer that was lost on the way is still there
    assert content(ask("b" * 64)) == second
    assert ask("c" * 64) == Failure(FailureKind.BUDGET)
    assert central.paid("east") == before + 2


def test_a_plan_without_the_server_s_noise_names_no_exchange(tmp_path: Path) -> None:
    world = World(tmp_path, CENTRAL.model_copy(update={"mode": "patient-local"}))
    try:
        world.run("run", "state")
        assert {request.exchange for request in world.asked} == {None}
        assert not (world.folder / "state").exists()
        world.run("again", "state")
        # its noise is the site's own: the same bytes as often as they are asked for
        assert world.paid("east") == 2
    finally:
        world.close()
