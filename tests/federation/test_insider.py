"""One hostile site of three, which trains and then lies: what it costs the mixer, and the run.

Real sites with real volumes; the hostile one changes its own answers. A control without the
defences shows that each attack is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.site import CacheSettings, SiteSettings
from lift.device import resolve_device
from lift.errors import QuorumError
from lift.generator.bundle import load_bundle
from lift.protocol.messages import Failure, FailureKind, Kind, Parcel, StatisticsReply
from lift.protocol.transport import SiteHandler
from lift.records.rounds import RoundRecord
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.methods import with_mixer
from lift.tasks.paired.predictions import patient_psnr_db
from lift_client.session import SiteSession
from lift_client.tasks.paired import paired_work
from lift_server.rounds.finished import FinishedRun
from lift_simulation.federation import Handlers, federate
from tests.end_to_end.tiny_run import SOURCES, TARGET, TinyRun

SITES: Final = ("east", "north", "west")
HOSTILE: Final = "west"
DECLARED: Final = dict.fromkeys(SITES, 6)
MOST_DB: Final = 0.5
"""What one hostile site of three may cost."""
MANY: Final = 10**6
Lie = Callable[[Parcel], Parcel | Failure]


def scaled(factor: float) -> Lie:
    def lie(answer: Parcel) -> Parcel:
        tensors = {n: (t * np.float32(factor)).astype(t.dtype) for n, t in answer.tensors.items()}
        return replace(answer, tensors=tensors)

    return lie


def random(answer: Parcel) -> Parcel:
    """Noise of ten times the norm of the true update."""
    rng = np.random.default_rng(getattr(answer.body, "round", 0))
    noise = {n: rng.standard_normal(t.shape) for n, t in sorted(answer.tensors.items())}
    length = _norm(noise)
    factor = 10 * _norm(answer.tensors) / length
    return replace(answer, tensors={n: (t * factor).astype(np.float32) for n, t in noise.items()})


def _norm(tensors: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum((t.astype(np.float64) ** 2).sum() for t in tensors.values())))


def claims(answer: Parcel) -> Parcel:
    """A million patients, with sums of as many."""
    body = answer.body
    assert isinstance(body, StatisticsReply)
    times = MANY // body.train_patients
    tensors = {name: tensor * times for name, tensor in answer.tensors.items()}
    more = body.model_copy(update={"train_patients": times * body.train_patients})
    return replace(answer, body=more, tensors=tensors)


def silence(answer: Parcel) -> Failure:
    del answer
    return Failure(FailureKind.NO_ANSWER)


def truth(answer: Parcel) -> Parcel:
    return answer


@dataclass(frozen=True)
class Attack:
    """What the hostile site makes of its own answers."""

    train: Lie = truth
    statistics: Lie = truth


ATTACKS: Final = {
    "x10": Attack(scaled(10)),
    "x1000": Attack(scaled(1000)),
    "sign flip": Attack(scaled(-1)),
    "sign flip x10": Attack(scaled(-10)),
    "random": Attack(random),
    "false counts": Attack(scaled(-1), claims),
    "hostage": Attack(silence, claims),
}


@dataclass(frozen=True)
class World:
    """Three sites with volumes, and a generator."""

    tiny: TinyRun
    folder: Path

    def plan(self, **aggregation: object) -> Plan:
        """Rounds long enough for harm to be seen, with validation patients at every site."""
        return Plan.from_data(
            {
                "task": {"source": list(SOURCES), "target": TARGET},
                "seed": 3,
                "threads": 1,
                "split": {"train": 0.5, "validation": 0.35},
                "mixer": {"kind": "zrefine", "width": 4},
                "training": {
                    "steps": 8,
                    "patients_per_step": 2,
                    "window": [6, 16, 16],
                    "warmup_steps": 1,
                },
                "federation": {"rounds": 6, "quorum_sites": 2, "quorum_patients": 0.5},
                "aggregation": aggregation,
                "privacy": {"mode": "none"},
            },
            "test",
        )

    def run(
        self,
        name: str,
        attack: Attack,
        *,
        declared: Mapping[str, int] = DECLARED,
        asked: Callable[[int], Sequence[str]] | None = None,
        **aggregation: object,
    ) -> tuple[FinishedRun, float]:
        """A whole run, and the pooled PSNR of its mixer over the test patients of all sites, dB."""
        generator = load_bundle(
            self.tiny.bundle, expected_fingerprint=None, device=resolve_device("cpu")
        )
        plan = self.plan(**aggregation).model_copy(
            update={"generator_fingerprint": generator.fingerprint}
        )
        sessions = {
            site: SiteSession(
                SiteSettings(
                    name=site,
                    data=BratsData(root=self.tiny.site(site)),
                    cache=CacheSettings(folder=self.folder / "cache"),
                    device="cpu",
                ),
                generator,
                self.folder / name / "sites" / site,
            )
            for site in SITES
        }

        def lying(handler: SiteHandler) -> SiteHandler:
            def handle(request: Parcel) -> Parcel | Failure:
                answer = handler(request)
                if isinstance(answer, Failure):
                    return answer
                if request.kind is Kind.STATISTICS:
                    return attack.statistics(answer)
                return attack.train(answer) if request.kind is Kind.TRAIN else answer

            return handle

        @contextmanager
        def watch(
            handlers: Handlers, records: Callable[[], Sequence[RoundRecord]]
        ) -> Iterator[Handlers]:
            del records
            yield {n: lying(h) if n == HOSTILE else h for n, h in handlers.items()}

        finished = federate(
            plan,
            generator,
            sessions,
            self.folder / name,
            on_round=lambda record: None,
            with_guard=False,
            watch=watch,
            declared=declared,
            asked=asked,
        )
        mixer = plan_mixer(plan, generator)
        found = []
        for session in sessions.values():
            work = paired_work(session, plan)
            method = with_mixer(mixer, finished.mixer, curves=work.site_curves(finished.shared))
            for patient in work.cohort.split.test:
                features = work.cohort.features[patient]
                found.append(patient_psnr_db(features, method(features)))
            session.close()
        return finished, float(np.mean(found))


OPEN: Final[dict[str, Any]] = {
    "declared": {},
    "largest_norm_ratio": None,
    "fall_tolerance_db": None,
}
"""Neither clip nor watch nor declarations."""


@pytest.fixture(scope="module")
def world(volumes: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(volumes, tmp_path_factory.mktemp("insider"))


@pytest.fixture(scope="module")
def honest(world: World) -> tuple[FinishedRun, float]:
    return world.run("honest", Attack())


def test_an_honest_run_has_the_bits_that_it_has_without_any_defence(
    world: World, honest: tuple[FinishedRun, float]
) -> None:
    free, _ = world.run("free", Attack(), **OPEN)
    assert all(torch.equal(honest[0].mixer[name], free.mixer[name]) for name in free.mixer)
    trained = honest[0].records[1:]
    assert all(record.fall is None and not record.clipped for record in trained)
    assert max(max(record.norm_ratios.values()) for record in trained) < 2


@pytest.mark.parametrize("name", ATTACKS)
def test_one_hostile_site_of_three_costs_little_and_never_the_run(
    world: World, honest: tuple[FinishedRun, float], name: str
) -> None:
    finished, psnr_db = world.run(name, ATTACKS[name])
    assert len(finished.records) == 7
    assert psnr_db > honest[1] - MOST_DB, [record.fall for record in finished.records]


@pytest.mark.parametrize("name", ["x10", "x1000", "sign flip x10", "random", "false counts"])
def test_without_the_defences_each_of_these_is_an_attack(
    world: World, honest: tuple[FinishedRun, float], name: str
) -> None:
    _, psnr_db = world.run(f"{name} open", ATTACKS[name], **OPEN)
    assert psnr_db < honest[1] - MOST_DB


def test_without_declarations_a_hostage_holds_the_run_until_it_is_removed(world: World) -> None:
    with pytest.raises(QuorumError, match="0% of the patients counted"):
        world.run("held", ATTACKS["hostage"], **OPEN)
    finished, _ = world.run(
        "held",
        ATTACKS["hostage"],
        asked=lambda round_index: [site for site in SITES if site != HOSTILE],
        **OPEN,
    )
    assert len(finished.records) == 7
