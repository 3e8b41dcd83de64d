"""What ships of a run of new volumes: after which verdicts, after a stop, and whoever is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.site import BudgetSettings, SiteSettings
from lift.guard import Verdict
from lift.mixer.finished import read_mixer
from lift.mixer.gaussian import GaussianTrajectory
from lift.protocol.flower.in_process import run_in_process
from lift.protocol.messages import Failure, FailureKind, GuardReply, Kind, Parcel
from lift.protocol.transport import SiteHandler, Transport
from lift.records.rounds import RoundRecord
from lift.records.shipped import Said
from lift.tasks.steps import TrainedRound
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import plan_mapper
from lift.tasks.unconditional.moments import fit_gaussian
from lift_client.gate.cohort_ledger import begin
from lift_client.session import SiteSession
from lift_client.tasks import unconditional as site_module
from lift_server.release.results import write_finished_mixer
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.loop import run_rounds
from lift_server.rounds.store import RunStore
from lift_server.tasks import unconditional as server_module
from lift_server.tasks.registry import run_task
from tests.lift.unconditional.planted_residual import (
    gaussian_plan,
    make_smooth_decoder,
    shifted,
    shifting,
    striping,
    write_smooth_bodies,
)
from tests.lift.unconditional.tiny_decoder import tiny_plan, write_bodies

SITES = ("east", "north", "west")
PATIENTS = 5
NOISE = {"mode": "stats-once", "delta": 1e-4, "public_patients": 4, "noise_multiplier": 0.8}
Numbers = dict[str, Tensor]


def small_plan(decoder: FrozenDecoder, **changes: object) -> Plan:
    data: dict[str, object] = {
        "split": {"train": 1.0, "validation": 0.0},
        "unconditional__trajectory": "gaussian",
        "unconditional__gaussian": {"positions": 5, "axes": 3},
        "federation__rounds": 1,
    }
    return tiny_plan(decoder, **(data | changes))


@dataclass
class Sites:
    """Sites in this process, and how often each was asked for a verdict."""

    handlers: dict[str, SiteHandler]
    asked: list[str] = field(default_factory=list)

    def federate(
        self,
        plan: Plan,
        decoder: FrozenDecoder,
        folder: Path,
        *,
        with_guard: bool = True,
        roster: tuple[str, ...] = SITES,
    ) -> FinishedRun:
        found: list[FinishedRun] = []

        def main(transport: Transport) -> None:
            found.append(
                run_rounds(
                    plan,
                    transport,
                    RunStore(folder, plan.digest()),
                    run_task(plan, decoder),
                    roster=lambda: list(roster),
                    with_guard=with_guard,
                )
            )

        run_in_process(main, {name: self._noting(name) for name in self.handlers})
        return found[0]

    def _noting(self, name: str) -> SiteHandler:
        def handle(request: Parcel) -> Parcel | Failure:
            if request.kind is Kind.GUARD:
                self.asked.append(name)
            return self.handlers[name](request)

        return handle


@pytest.fixture(scope="module")
def sessions(
    decoder: FrozenDecoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, SiteSession]]:
    """Each reads its volumes once for each plan."""
    folder = tmp_path_factory.mktemp("sites")
    found = {}
    for number, site in enumerate(SITES):
        root = write_bodies(folder / "bodies" / site, 90 + number, PATIENTS)
        work = folder / site
        budget = BudgetSettings(epsilon=20.0, delta=1e-4)
        settings = SiteSettings(name=site, data=BratsData(root=root), budget=budget)
        begin(settings, work)
        found[site] = SiteSession(settings, decoder, work)
    yield found
    for session in found.values():
        session.close()


@pytest.fixture
def sites(sessions: dict[str, SiteSession]) -> Sites:
    return Sites({name: session.handle for name, session in sessions.items()})


def say(monkeypatch: pytest.MonkeyPatch, verdicts: Mapping[str, Verdict]) -> None:
    """Each site says this in place of what its volumes would make it say."""

    def verdict(*_: object, site: str) -> Verdict:
        return verdicts[site]

    monkeypatch.setattr(site_module, "verdict_on_mapper", verdict)


def start(plan: Plan, decoder: FrozenDecoder) -> Numbers:
    return plan_mapper(plan, decoder).values()


def equal(one: Numbers, other: Numbers) -> bool:
    return set(one) == set(other) and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("east", "north", "west", "source"),
    [
        ("helped", "undecided", "undecided", "mapper"),
        ("helped", "helped", "harmed", "gaussian"),
        ("undecided", "undecided", "undecided", "gaussian"),
    ],
)
def test_the_mapper_ships_only_if_a_site_said_helped_and_none_said_harmed(
    sites: Sites,
    decoder: FrozenDecoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    east: Verdict,
    north: Verdict,
    west: Verdict,
    source: str,
) -> None:
    said = {"east": east, "north": north, "west": west}
    say(monkeypatch, said)
    plan = small_plan(decoder)
    run = sites.federate(plan, decoder, tmp_path / "run")
    assert run.shipped is not None
    assert run.shipped.source == source
    assert not equal(run.trained, start(plan, decoder))
    assert equal(run.mixer, run.trained if source == "mapper" else start(plan, decoder))
    text = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1]
    line = RoundRecord.model_validate_json(text)
    assert (line.kind, line.round) == ("guard", 2)
    assert (line.verdicts, line.shipped) == (said, source)
    assert {site: reply.verdict for site, reply in run.guard.items()} == said


def test_what_was_trained_is_released_where_nobody_is_asked(
    sites: Sites, decoder: FrozenDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above would see of a server without verdicts: it cannot pass there."""
    say(monkeypatch, dict.fromkeys(SITES, "harmed"))
    plan = small_plan(decoder)
    run = sites.federate(plan, decoder, tmp_path / "run", with_guard=False)
    assert (run.shipped, sites.asked) == (None, [])
    assert equal(run.mixer, run.trained)
    assert not equal(run.mixer, start(plan, decoder))


def test_a_gaussian_that_ships_is_bit_for_bit_the_one_without_rounds(
    sites: Sites, decoder: FrozenDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, dict.fromkeys(SITES, "harmed"))
    plan = small_plan(decoder)
    run = sites.federate(plan, decoder, tmp_path / "run")
    write_finished_mixer(tmp_path / "mixer.safetensors", plan, run, phantom=True)
    finished = read_mixer(tmp_path / "mixer.safetensors")
    assert {profile.verdict for profile in finished.sites} == {"undecided"}
    values = finished.values
    shipped = plan_mapper(plan, decoder)
    assert isinstance(shipped, GaussianTrajectory)
    gaussian = {n.removeprefix("gaussian/"): t for n, t in values.items() if "/" in n}
    shipped.load_gaussian(gaussian)
    shipped.load_values({n: t for n, t in values.items() if "/" not in n})
    noise = shipped.draw(3, torch.Generator().manual_seed(1))
    position = torch.linspace(0, 1, 7)
    assert torch.equal(shipped(noise, position), shipped.gaussian(noise, position))
    alone = sites.federate(small_plan(decoder, federation__rounds=0), decoder, tmp_path / "alone")
    assert alone.shipped is None
    assert all(torch.equal(alone.shared[f"gaussian/{n}"], t) for n, t in gaussian.items())


def test_sites_that_fail_are_absent_or_answer_nonsense_do_not_stop_the_run(
    sites: Sites, decoder: FrozenDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, dict.fromkeys(SITES, "helped"))
    healthy = dict(sites.handlers)
    plan = small_plan(decoder)

    def fails(request: Parcel) -> Parcel | Failure:
        return Failure(FailureKind.INTERNAL)

    def raises(request: Parcel) -> Parcel | Failure:
        raise RuntimeError("a fault")

    def another_plan(request: Parcel) -> Parcel | Failure:
        return Parcel(Kind.GUARD, GuardReply(plan_digest="f" * 64, verdict="harmed"))

    def last_one(deed: SiteHandler, site: str) -> SiteHandler:
        return lambda r: deed(r) if r.kind is Kind.GUARD else healthy[site](r)

    sites.handlers |= {"north": last_one(raises, "north"), "west": last_one(another_plan, "west")}
    run = sites.federate(plan, decoder, tmp_path / "two")
    assert run.shipped is not None
    assert run.shipped.said == Said(helped=1, harmed=0, undecided=0, silent=2)
    assert run.shipped.source == "mapper"
    sites.handlers |= {"east": last_one(fails, "east")}
    run = sites.federate(plan, decoder, tmp_path / "none")
    assert run.shipped is not None
    assert run.shipped.said == Said(helped=0, harmed=0, undecided=0, silent=3)
    assert equal(run.mixer, start(plan, decoder))
    line = run.records[-1]
    assert line.refused["east"] == "internal"


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_stopped_around_the_verdicts_ends_as_one_that_did_not(
    sites: Sites,
    decoder: FrozenDecoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: bool,
) -> None:
    say(monkeypatch, {"east": "helped", "north": "undecided", "west": "undecided"})
    plan = small_plan(decoder)
    whole = sites.federate(plan, decoder, tmp_path / "whole")
    save = RunStore.save

    def killed(self: RunStore, round_index: int, *rest: object) -> None:
        if round_index == 2 and before:
            raise KeyboardInterrupt
        save(self, round_index, *rest)  # type: ignore[arg-type]
        if round_index == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            sites.federate(plan, decoder, tmp_path / "killed")
    asked = len(sites.asked)
    resumed = sites.federate(plan, decoder, tmp_path / "killed")
    # on record, verdicts are final: nobody is asked again
    assert len(sites.asked) - asked == (3 if before else 0)
    assert resumed.shipped == whole.shipped
    assert resumed.guard == whole.guard
    assert equal(resumed.mixer, whole.mixer)
    for name, run in (("one", whole), ("other", resumed)):
        write_finished_mixer(tmp_path / name, plan, run, phantom=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_noise_asks_nobody_and_ships_the_gaussian(
    sites: Sites, decoder: FrozenDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, dict.fromkeys(SITES, "helped"))
    plan = small_plan(
        decoder,
        unconditional__gaussian={"positions": 5, "axes": 3, "tied": True},
        privacy=NOISE,
    )
    run = sites.federate(plan, decoder, tmp_path / "run")
    assert sites.asked == []
    assert run.shipped is not None
    assert (run.shipped.source, run.shipped.said) == ("gaussian", None)
    assert "protects patients by noise" in run.shipped.sentence
    assert equal(run.mixer, start(plan, decoder))
    assert [record.kind for record in run.records] == ["statistics", "train"]


def test_a_free_mapper_is_released_as_it_is(
    sites: Sites, decoder: FrozenDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, dict.fromkeys(SITES, "harmed"))
    plan = small_plan(decoder, unconditional__trajectory="free")
    run = sites.federate(plan, decoder, tmp_path / "run")
    assert (run.shipped, run.guard, sites.asked) == (None, {}, [])
    assert equal(run.mixer, run.trained)
    assert not equal(run.mixer, start(plan, decoder))


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> FrozenDecoder:
    return make_smooth_decoder(tmp_path_factory.mktemp("smooth"))


Planted = Callable[[Plan, FrozenDecoder], Numbers]
PLANTED: dict[str, tuple[Planted, float]] = {
    # residual in place of what rounds train, and how far the Gaussian's mean is wrong
    "gaussian": (lambda plan, decoder: striping(plan, decoder, 1.0), 0.0),
    "mapper": (lambda plan, decoder: shifting(plan, decoder, -1.0), 1.0),
}


@pytest.mark.parametrize("source", PLANTED)
def test_a_planted_mapper_is_judged_by_real_sites(
    smooth: FrozenDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Stripes are rejected; what mends a wrong Gaussian ships. No verdict is scripted here."""
    planted, wrong = PLANTED[source]
    plan = gaussian_plan(smooth, federation__rounds=1)
    goal = planted(plan, smooth)
    monkeypatch.setattr(
        server_module, "fit_gaussian", lambda sums: shifted(fit_gaussian(sums), wrong)
    )
    monkeypatch.setattr(
        site_module, "train_mapper_round", lambda *_, **__: TrainedRound(goal, 0.1, None)
    )
    root = write_smooth_bodies(tmp_path / "bodies", 81, 14)
    settings = SiteSettings(name="north", data=BratsData(root=root))
    site = SiteSession(settings, smooth, tmp_path / "site")
    run = Sites({"north": site.handle}).federate(plan, smooth, tmp_path / "run", roster=("north",))
    assert run.shipped is not None
    assert run.shipped.source == source
    assert all(torch.allclose(run.trained[n], goal[n], atol=1e-6) for n in goal)
    assert equal(run.mixer, run.trained if source == "mapper" else start(plan, smooth))
