"""A site's statistics for new volumes under noise: paid once, and nothing is the cohort's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.config.cohort import BratsData, TableData
from lift.config.plan import Plan
from lift.config.site import MARK_FILE, BudgetSettings, SiteSettings
from lift.privacy.accounting import Mechanism, epsilon
from lift.privacy.noise import SecureStream
from lift.protocol.messages import Kind, Parcel, StatisticsReply, StatisticsRequest
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.drifting.release import from_arrays
from lift.tasks.unconditional.drifting.statistics import parts
from lift.tasks.unconditional.moments import SCALE, trajectory
from lift.tasks.unconditional.private import moments as trajectories
from lift.tasks.unconditional.private import statistics
from lift.tasks.unconditional.public_gaussian import sent_form
from lift.tasks.unconditional.review import moments_from_arrays
from lift.wire.names import TRAJECTORY
from lift_client.gate.cohort_ledger import begin
from lift_client.gate.ledger import LEDGER_FILE, verify
from lift_client.session import SiteSession
from lift_client.tasks import unconditional as module
from tests.lift.privacy.streams import KnownStream
from tests.lift.unconditional.tiny_decoder import CHANNEL, tiny_plan, write_bodies

NOISE, DELTA, PUBLIC = 1.2, 1e-4, 4
PATIENTS = 7
Arrays = dict[str, np.ndarray]


class Silent(SecureStream):
    """Noise that is 0."""

    __slots__ = ()

    def normals(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bodies(tmp_path_factory.mktemp("bodies"), 81, PATIENTS)


def make_plan(decoder: FrozenDecoder, *, rounds: int, **changes: object) -> Plan:
    return tiny_plan(
        decoder,
        split={"train": 1.0, "validation": 0.0},
        unconditional__trajectory="gaussian",
        unconditional__gaussian={"positions": 5, "axes": 3, "tied": True},
        federation__rounds=rounds,
        privacy={
            "mode": "stats-once",
            "delta": DELTA,
            "public_patients": PUBLIC,
            "noise_multiplier": NOISE,
        },
        **changes,
    )


@dataclasses.dataclass
class Site:
    """A site's folder, in which sessions come and go."""

    folder: Path
    bodies: Path
    decoder: FrozenDecoder

    def session(self) -> SiteSession:
        settings = SiteSettings(
            name="north",
            data=BratsData(root=self.bodies),
            budget=BudgetSettings(epsilon=20.0, delta=DELTA, mark=self.folder / MARK_FILE),
        )
        if not (self.folder / LEDGER_FILE).exists():
            begin(settings, self.folder)
        return SiteSession(settings, self.decoder, self.folder)

    def answer(self, plan: Plan) -> tuple[StatisticsReply, Arrays]:
        session = self.session()
        try:
            request = StatisticsRequest(plan=plan)
            parcel = session.handle(Parcel(Kind.STATISTICS, request))
        finally:
            session.close()
        assert isinstance(parcel, Parcel), parcel
        assert isinstance(parcel.body, StatisticsReply)
        return parcel.body, dict(parcel.tensors)

    def spent(self) -> float:
        return verify(self.folder / LEDGER_FILE).epsilon()


@pytest.fixture
def make_site(tmp_path: Path, bodies: Path, decoder: FrozenDecoder) -> Callable[[str], Site]:
    def make(name: str) -> Site:
        (tmp_path / name).mkdir()
        return Site(tmp_path / name, bodies, decoder)

    return make


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_site_that_starts_again_sends_the_same_bytes_and_pays_once(
    make_site: Callable[[str], Site], decoder: FrozenDecoder, rounds: int
) -> None:
    site, plan = make_site("a"), make_plan(decoder, rounds=rounds)
    _, first = site.answer(plan)
    spent = site.spent()
    # what one Gaussian mechanism costs, and nothing else
    assert spent == pytest.approx(epsilon([Mechanism(NOISE)], DELTA), abs=1e-9)
    _, again = site.answer(plan)
    assert set(first) == set(again)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert site.spent() == spent
    # another site of the same patients draws noise of its own
    _, other = make_site("b").answer(plan)
    assert not np.array_equal(first[TRAJECTORY + "mean"], other[TRAJECTORY + "mean"])
    # another plan is another release
    site.answer(make_plan(decoder, rounds=rounds, seed=4))
    assert site.spent() > spent + 0.1


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_site_without_a_patient_sends_noise_of_the_same_form(
    make_site: Callable[[str], Site], decoder: FrozenDecoder, tmp_path: Path, rounds: int
) -> None:
    plan, full, empty = make_plan(decoder, rounds=rounds), make_site("full"), make_site("empty")
    (tmp_path / "nobody").mkdir()
    empty.bodies = tmp_path / "nobody"
    (reply, sums), (other, noise) = full.answer(plan), empty.answer(plan)
    assert other.model_copy(update={"ledger_head": reply.ledger_head}) == reply
    assert {n: (a.dtype, a.shape) for n, a in noise.items()} == {
        n: (a.dtype, a.shape) for n, a in sums.items()
    }
    assert any(array.any() for array in noise.values())


def test_nothing_beside_the_noisy_sums_is_the_cohorts_own(
    make_site: Callable[[str], Site], decoder: FrozenDecoder
) -> None:
    reply, arrays = make_site("a").answer(make_plan(decoder, rounds=0))
    assert all(name.startswith(TRAJECTORY) for name in arrays)
    assert arrays[TRAJECTORY + "patients"].tolist() == [PUBLIC]
    told = json.loads(reply.model_dump_json())
    head = told.pop("ledger_head")
    assert len(head) == 64
    del told["plan_digest"]
    assert {value for value in told.values() if value} == {PUBLIC}


@pytest.mark.parametrize("rounds", [0, 2])
def test_all_that_is_sent_has_the_noise_of_one_mechanism(
    make_site: Callable[[str], Site],
    decoder: FrozenDecoder,
    monkeypatch: pytest.MonkeyPatch,
    rounds: int,
) -> None:
    """With rounds there are two kinds: each has sqrt(2) times the noise in its own units."""
    plan = make_plan(decoder, rounds=rounds)
    sent: dict[str, Arrays] = {}
    for name, stream in (("exact", Silent), ("noisy", KnownStream)):
        monkeypatch.setattr(module, "SecureStream", stream)
        _, sent[name] = make_site(name).answer(plan)
    errors = {"moments": _moment_errors(plan, decoder, sent)}
    if rounds:
        errors["drifting"] = _drifting_errors(decoder, sent)
    else:
        assert all(name.startswith(TRAJECTORY) for name in sent["noisy"])
    for kind, found in errors.items():
        expected = NOISE * len(errors) ** 0.5
        tolerance = 5 / (2 * len(found)) ** 0.5
        measured = float(found.std()) / expected
        assert abs(measured - 1) < tolerance, kind
        # the control: the plan's own noise for each of two would be too little
        assert len(errors) == 1 or abs(measured * 2**0.5 - 1) > tolerance


def _moment_errors(plan: Plan, decoder: FrozenDecoder, sent: dict[str, Arrays]) -> Tensor:
    assert plan.unconditional is not None
    assert plan.privacy.mode == "stats-once"
    form = sent_form(plan, decoder)
    lengths = trajectories.lengths_of(form, plan.privacy.trajectories, deviations=True)
    exact, noisy = (moments_from_arrays(sent[n], form, noisy=True) for n in ("exact", "noisy"))
    unit = trajectories.units(form, lengths)
    away = [
        ((noisy.units[name] - exact.units[name]).double() / SCALE / unit[name]).flatten()
        for name in unit
    ]
    return torch.cat(away) / trajectories.sensitivity(form, lengths)


def _drifting_errors(decoder: FrozenDecoder, sent: dict[str, Arrays]) -> Tensor:
    of = decoder.public.projection
    exact, noisy = (from_arrays(sent[name], of).sums for name in ("exact", "noisy"))
    form, length = parts(of), statistics.bounds(of)
    away = [
        ((noisy.units[n] - exact.units[n]).double() / form[n].scale / length[n]).flatten()
        for n in form
    ]
    return torch.cat(away) / statistics.sensitivity(of)


def test_a_patient_whose_latents_are_not_finite_is_refused_alone_and_nobody_is_told(
    make_site: Callable[[str], Site],
    decoder: FrozenDecoder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[int] = []

    def broken(*args: object) -> Tensor:
        found = trajectory(*args)  # type: ignore[arg-type]
        calls.append(1)
        return found * torch.nan if len(calls) == 3 else found

    monkeypatch.setattr(module, "trajectory", broken)
    reply, arrays = make_site("a").answer(make_plan(decoder, rounds=0))
    assert len(calls) == PATIENTS
    assert "NaN" in caplog.text
    assert (reply.refused_volumes, reply.train_patients) == (0, PUBLIC)
    assert arrays[TRAJECTORY + "patients"].tolist() == [PUBLIC]


def test_numbers_of_patients_are_of_persons_for_new_volumes_too(
    bodies: Path, decoder: FrozenDecoder, tmp_path: Path
) -> None:
    files = sorted(path.relative_to(bodies) for path in bodies.rglob("*.nii.gz"))
    # two persons with three examinations, one with one
    rows = [f"e{index},p{index // 3},{file}" for index, file in enumerate(files)]
    table = tmp_path / "patients.csv"
    table.write_text("\n".join([f"patient,subject,{CHANNEL}", *rows, ""]), encoding="utf-8")
    settings = SiteSettings(name="north", data=TableData(root=bodies, table=table))
    plan = make_plan(decoder, rounds=0)
    work = SiteSession(settings, decoder, tmp_path / "work").work(plan)
    assert isinstance(work, module.UnconditionalWork)
    assert len(work.split.train) == PATIENTS
    assert (work.counts.train, work.counts.validation, work.counts.test) == (3, 0, 0)
    moments = work.moments()
    assert moments is not None
    assert moments.patients == 3
