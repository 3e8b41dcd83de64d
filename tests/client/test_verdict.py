"""A site's verdict on a mapper of new volumes: planted mappers, and what leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.site import SiteSettings
from lift.guard import Verdict
from lift.protocol.messages import (
    Failure,
    FailureKind,
    GuardReply,
    GuardRequest,
    Kind,
    Parcel,
    StatisticsRequest,
)
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.moments import fit_gaussian
from lift_client.session import SiteSession
from lift_client.tasks.unconditional import UnconditionalWork
from tests.lift.unconditional.planted_residual import (
    MEAN,
    gaussian_plan,
    make_smooth_decoder,
    shifted,
    shifting,
    striping,
    write_smooth_bodies,
)

PATIENTS = 14
Numbers = Mapping[str, Tensor]


@dataclass(frozen=True)
class Site:
    """A site that knows a plan, and the Gaussian of its own patients."""

    session: SiteSession
    plan: Plan
    decoder: FrozenDecoder
    gaussian: dict[str, Tensor]

    def asked(self, trained: Numbers, gaussian: Numbers) -> Parcel | Failure:
        tensors = {f"mixer/{name}": tensor.numpy() for name, tensor in trained.items()}
        tensors |= {name: tensor.numpy() for name, tensor in gaussian.items()}
        request = GuardRequest(plan_digest=self.plan.digest())
        return self.session.handle(Parcel(Kind.GUARD, request, tensors))

    def says(self, trained: Numbers, gaussian: Numbers) -> Verdict:
        answer = self.asked(trained, gaussian)
        assert isinstance(answer, Parcel), answer
        # nothing else leaves: no figure, no number of patients, no tensor
        assert answer.tensors == {}
        assert isinstance(answer.body, GuardReply)
        told = answer.body.model_dump(exclude_none=True)
        assert told.pop("ledger_proof") == ()
        assert set(told) == {"plan_digest", "verdict", "judged_on"}
        return answer.body.verdict


def open_site(folder: Path, bodies: Path, plan: Plan, decoder: FrozenDecoder) -> Site:
    settings = SiteSettings(name="north", data=BratsData(root=bodies))
    session = SiteSession(settings, decoder, folder)
    answer = session.handle(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan)))
    assert isinstance(answer, Parcel), answer
    work = session.work(plan)
    assert isinstance(work, UnconditionalWork)
    moments = work.moments()
    return Site(session, plan, decoder, {} if moments is None else fit_gaussian(moments))


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> FrozenDecoder:
    return make_smooth_decoder(tmp_path_factory.mktemp("smooth"))


@pytest.fixture(scope="module")
def site(smooth: FrozenDecoder, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("north")
    bodies = write_smooth_bodies(folder / "bodies", 81, PATIENTS)
    return open_site(folder / "work", bodies, gaussian_plan(smooth), smooth)


def test_a_mapper_that_draws_stripes_harms(site: Site) -> None:
    assert site.says(striping(site.plan, site.decoder, 1.0), site.gaussian) == "harmed"


def test_a_mapper_that_mends_a_wrong_gaussian_helps(site: Site) -> None:
    wrong = shifted(site.gaussian, 1.0)
    assert site.says(shifting(site.plan, site.decoder, -1.0), wrong) == "helped"


def test_a_mapper_that_changes_nothing_or_little_is_undecided(site: Site) -> None:
    for amount in (0.0, 0.02):
        trained = shifting(site.plan, site.decoder, amount)
        assert site.says(trained, site.gaussian) == "undecided"


def test_nine_patients_decide_nothing_even_on_stripes(
    smooth: FrozenDecoder, tmp_path: Path
) -> None:
    bodies = write_smooth_bodies(tmp_path / "bodies", 82, 9)
    few = open_site(tmp_path / "work", bodies, gaussian_plan(smooth), smooth)
    assert few.says(striping(few.plan, smooth, 4.0), few.gaussian) == "undecided"


def test_volumes_of_one_person_count_once(
    smooth: FrozenDecoder, site: Site, tmp_path: Path
) -> None:
    bodies = write_smooth_bodies(tmp_path / "bodies", 81, PATIENTS)
    first, second = sorted(bodies.iterdir())[:2]
    # a second visit of the first person
    later = bodies / f"{first.name.removesuffix('-000')}-001"
    second.rename(later)
    for path in later.iterdir():
        path.rename(later / path.name.replace(second.name, later.name))
    twice = open_site(tmp_path / "work", bodies, site.plan, smooth)
    work = twice.session.work(site.plan)
    assert isinstance(work, UnconditionalWork)
    whole = work.split.train + work.split.validation
    assert len(whole) == PATIENTS
    assert len(work.judged()) == PATIENTS - 1


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda g: {}, FailureKind.PROTOCOL),
        (lambda g: g | {MEAN: g[MEAN][:-1]}, FailureKind.PROTOCOL),
        (lambda g: g | {MEAN: g[MEAN] * np.nan}, FailureKind.PROTOCOL),
    ],
)
def test_a_gaussian_that_does_not_fit_is_refused(
    site: Site, change: object, kind: FailureKind
) -> None:
    assert callable(change)
    trained = shifting(site.plan, site.decoder, 0.0)
    assert site.asked(trained, change(site.gaussian)) == Failure(kind)
    assert site.says(trained, site.gaussian) == "undecided"


@pytest.mark.parametrize(
    "changes", [{"federation__rounds": 0}, {"unconditional__trajectory": "free"}]
)
def test_a_plan_without_a_mapper_on_a_gaussian_has_no_verdict(
    smooth: FrozenDecoder, site: Site, tmp_path: Path, changes: dict[str, object]
) -> None:
    bodies = write_smooth_bodies(tmp_path / "bodies", 81, 6)
    plan = gaussian_plan(smooth, **changes)
    other = open_site(tmp_path / "work", bodies, plan, smooth)
    trained = shifting(site.plan, smooth, 0.0)
    assert other.asked(trained, site.gaussian) == Failure(FailureKind.PROTOCOL)
