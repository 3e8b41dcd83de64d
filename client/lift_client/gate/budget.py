"""The privacy budget of a site: what is released, when, and at which cost.

A release is paid for before anything of it is computed, its result is stored before it may leave,
and the same request gets the same bytes again for nothing, also after a restart. Another request
for the same round is another release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.numpy

from lift.config.plan import Plan
from lift.config.site import SiteSettings
from lift.errors import ConfigError
from lift.files import write_atomically
from lift.privacy.book import START as NO_HEAD
from lift.privacy.book import Book, PlannedRun
from lift.privacy.costs import planned_releases
from lift_client.gate.cohort_ledger import budget_of, cohort_of, ledger_path
from lift_client.gate.ledger import Cost, Ledger, Memory

Arrays = dict[str, np.ndarray]
STORED: Final = "released"
"""In the work folder: results that the same request gets again."""
_KEPT: Final = 8
_LONGEST_WAIT_S: Final = 60.0


class Budget:
    """The privacy budget of one site, used for plans with noise.

    The ledger is held only while it is read or written, never while something is computed: another
    site that has the same patients uses it in between.

    Args:
        settings: the site's settings, with its budget.
        folder: the site's work folder; the ledger lies in it unless the settings say where.
    """

    def __init__(self, settings: SiteSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._memory = Memory()
        self._book: Book | None = None

    @property
    def head(self) -> str | None:
        """Head of the ledger, for the server to keep; None before a run was admitted."""
        return None if self._book is None else self._book.head

    def proof(self, known_head: str | None) -> tuple[str, ...]:
        """Hashes of the ledger's lines since a head that the server knows; none without one."""
        if self._book is None or known_head is None:
            return ()
        return self._book.lines_since(known_head)

    @property
    def epsilon(self) -> float | None:
        """What everything released so far costs, at the ledger's delta; None before a run was
        admitted.
        """
        return None if self._book is None else self._book.epsilon()

    def admit(self, plan: Plan, *, known_head: str | None = None) -> Cost | None:
        """Admit the whole run, before the first of its data is read; None without noise.

        Args:
            plan: the run's plan.
            known_head: the last head that the server received.

        Raises:
            BudgetSpentError: the run would pass the site's cap.
            ConfigError: the site has no budget, no ledger, or data that another one counts for.
            RecordError: the ledger is damaged, or older than what the server knows.
            PrivacyError: it has grown by more lines since than a message can show.
        """
        if not spends(plan):
            return None
        with self._held(known_head or NO_HEAD) as ledger:
            ledger.proof(known_head or NO_HEAD)
            return ledger.begin(PlannedRun(run=plan.digest(), releases=planned_releases(plan)))

    def check(
        self, plan: Plan, *, round_index: int, purpose: str, steps: int, request: bytes
    ) -> None:
        """Refuse a release that the budget does not cover, before any volume is read.

        Args:
            plan: the run's plan, admitted.
            round_index: as for :meth:`release`, like the rest.
            purpose: as there.
            steps: as there.
            request: as there.

        Raises:
            BudgetSpentError: there is no stored answer, and another one would pass the cap.
        """
        run = plan.digest()
        with self._held() as ledger:
            if self._stored(ledger, run, round_index, purpose, request) is None:
                ledger.check(run, round_index, purpose, steps)

    def release(
        self,
        plan: Plan,
        *,
        round_index: int,
        purpose: str,
        steps: int,
        request: bytes,
        compute: Callable[[], Arrays],
    ) -> Arrays:
        """Return the paid and stored result of `compute`, or the stored bytes of the same request.

        Args:
            plan: the run's plan, admitted.
            round_index: 0 for the statistics.
            purpose: of `lift.privacy.costs`.
            steps: noisy steps that `compute` takes.
            request: all that the result depends on beside the patients and the plan.
            compute: the noisy result. When it fails it is paid for all the same.

        Raises:
            BudgetSpentError: it would pass the cap, or what the run was admitted for; `compute` was
                not called.
            RecordError: the ledger was put back or damaged meanwhile; nothing may leave.
        """
        run = plan.digest()
        with self._held() as ledger:
            stored = self._stored(ledger, run, round_index, purpose, request)
            if stored is not None:
                return dict(safetensors.numpy.load(stored))
            reservation = ledger.reserve(run, round_index, purpose, steps)
        # that it fails may depend on one patient, and is known to the server: nothing is refunded
        arrays = compute()
        # a sorted order of names makes the bytes, and so their digest, those of the numbers
        content = safetensors.numpy.save({n: _own(arrays[n]) for n in sorted(arrays)})
        path = self._path(run, round_index, purpose, request)
        write_atomically(path, content, mode=0o600)
        with self._held() as ledger:
            ledger.sent(reservation, hashlib.sha256(content).hexdigest())
        self._forget_old()
        return arrays

    def _path(self, run: str, round_index: int, purpose: str, request: bytes) -> Path:
        key = hashlib.sha256(f"{run} {round_index} {purpose} ".encode() + request).hexdigest()
        return self._folder / STORED / f"{round_index:06d}-{key}.safetensors"

    def _stored(
        self, ledger: Ledger, run: str, round_index: int, purpose: str, request: bytes
    ) -> bytes | None:
        """The stored answer to a request, if it is what the ledger says was sent."""
        path = self._path(run, round_index, purpose, request)
        if not path.is_file():
            return None
        stored = path.read_bytes()
        sent = ledger.may_resend(run, round_index, hashlib.sha256(stored).hexdigest())
        return stored if sent else None

    def close(self) -> None:
        """Close the ledger and forget its content."""
        self._memory, self._book = Memory(), None

    @contextmanager
    def _held(self, known_head: str = NO_HEAD) -> Iterator[Ledger]:
        budget = budget_of(self._settings)
        with Ledger(
            ledger_path(self._settings, self._folder),
            cohort=cohort_of(self._settings),
            expected_head=known_head,
            repeats=budget.repeats,
            memory=self._memory,
            wait_s=_LONGEST_WAIT_S,
        ) as ledger:
            if ledger.delta != budget.delta or ledger.cap > budget.epsilon:
                raise ConfigError(
                    "the site's settings and its privacy ledger disagree",
                    where="budget",
                    seen=f"ledger: epsilon {ledger.cap:g} at delta {ledger.delta:g}; settings: "
                    f"epsilon {budget.epsilon:g} at delta {budget.delta:g}",
                    remedy="The ledger's delta never changes. Lower its cap with `lift-client "
                    "ledger --lower`, or correct the settings. Nothing was computed.",
                )
            self._book = ledger.book
            yield ledger

    def _forget_old(self) -> None:
        stored = sorted((self._folder / STORED).glob("*.safetensors"), key=_age)
        for path in stored[:-_KEPT]:
            path.unlink(missing_ok=True)


def spends(plan: Plan) -> bool:
    """Return whether a run of the plan spends privacy budget."""
    return plan.protects_patients


def described(tensors: Mapping[str, np.ndarray]) -> bytes:
    """All of some tensors in one byte string, for :meth:`Budget.release`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.digest()


def _own(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array)


def _age(path: Path) -> float:
    return path.stat().st_mtime
