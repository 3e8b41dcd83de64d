"""Between the site's work and its privacy ledger: what is released, when, and at what price.

A release is paid for before anything of it is computed, its result is stored before it may leave,
and the same request gets the same bytes again for nothing, also after a restart. Another request
for the same round is another release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.numpy

from lift.config.plan import Plan
from lift.config.site import SiteSettings
from lift.errors import ConfigError
from lift.files import write_atomically
from lift.privacy.book import START as NO_HEAD
from lift.privacy.book import PlannedRun
from lift.privacy.costs import planned_releases
from lift_client.gate.ledger import LEDGER_FILE, Cost, Ledger

Arrays = dict[str, np.ndarray]
_STORED: Final = "released"
_KEPT: Final = 8


class Budget:
    """The privacy budget of one site, opened when a plan with noise needs it.

    Args:
        settings: the site's settings, with its budget.
        folder: the site's work folder; the ledger lies in it unless the settings say where.
    """

    def __init__(self, settings: SiteSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._ledger: Ledger | None = None

    @property
    def head(self) -> str | None:
        """Head of the ledger, for the server to keep; None without a ledger."""
        return None if self._ledger is None else self._ledger.head

    def proof(self, known_head: str | None) -> tuple[str, ...]:
        """Hashes of the ledger's lines since a head that the server knows; none without one."""
        return () if self._ledger is None else self._ledger.proof(known_head or NO_HEAD)

    @property
    def epsilon(self) -> float | None:
        """What everything released so far costs, at the ledger's delta; None without a ledger."""
        return None if self._ledger is None else self._ledger.epsilon

    def admit(self, plan: Plan, *, known_head: str | None = None) -> Cost | None:
        """Admit the whole run, before the first of its data is read; None without noise.

        Args:
            plan: the run's plan.
            known_head: the last head that the server was told.

        Raises:
            BudgetSpentError: the run would pass the site's cap.
            ConfigError: the site has no budget, or no ledger.
            RecordError: the ledger is damaged, or older than what the server knows.
            PrivacyError: it has grown by more lines since than a message can show.
        """
        if not spends(plan):
            return None
        ledger = self._open(known_head or NO_HEAD)
        ledger.proof(known_head or NO_HEAD)
        return ledger.begin(PlannedRun(run=plan.digest(), releases=planned_releases(plan)))

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
        """What `compute` gives, paid for and stored; or the stored bytes of the same request.

        Args:
            plan: the run's plan, admitted.
            round_index: 0 for the statistics.
            purpose: of `lift.privacy.costs`.
            steps: noisy steps that `compute` takes.
            request: all that the result depends on beside the patients and the plan.
            compute: the noisy result. When it fails it is paid for all the same.

        Raises:
            BudgetSpentError: it would pass the cap; `compute` was not called.
        """
        ledger = self._open(NO_HEAD)
        run = plan.digest()
        key = hashlib.sha256(f"{run} {round_index} {purpose} ".encode() + request).hexdigest()
        path = self._folder / _STORED / f"{round_index:06d}-{key}.safetensors"
        if path.is_file():
            stored = path.read_bytes()
            if ledger.may_resend(run, round_index, hashlib.sha256(stored).hexdigest()):
                return dict(safetensors.numpy.load(stored))
        reservation = ledger.reserve(run, round_index, purpose, steps)
        # that it fails may depend on one patient, and is known to the server: nothing is refunded
        arrays = compute()
        # a sorted order of names makes the bytes, and so their digest, those of the numbers
        content = safetensors.numpy.save({n: _own(arrays[n]) for n in sorted(arrays)})
        write_atomically(path, content, mode=0o600)
        ledger.sent(reservation, hashlib.sha256(content).hexdigest())
        self._forget_old()
        return arrays

    def close(self) -> None:
        """Let another process use the ledger."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def _open(self, known_head: str) -> Ledger:
        if self._ledger is not None and known_head != NO_HEAD:
            # the server's head is looked for in the file as it is now
            self.close()
        if self._ledger is None:
            budget = self._settings.budget
            if budget is None:
                raise ConfigError(
                    "the plan adds noise by patient, and this site has no privacy budget",
                    where="budget",
                    seen="no such section in the site's settings",
                    remedy="Decide with the data protection officer, write `budget: {epsilon: ..., "
                    "delta: ...}`, and make the ledger with `lift-client ledger --create`.",
                )
            path = ledger_path(self._settings, self._folder)
            ledger = Ledger(path, cohort=self._settings.name, expected_head=known_head)
            if ledger.delta != budget.delta or ledger.cap > budget.epsilon:
                seen = f"ledger: epsilon {ledger.cap:g} at delta {ledger.delta:g}; settings: "
                ledger.close()
                raise ConfigError(
                    "the site's settings and its privacy ledger disagree",
                    where="budget",
                    seen=f"{seen}epsilon {budget.epsilon:g} at delta {budget.delta:g}",
                    remedy="The ledger's delta never changes. Lower its cap with `lift-client "
                    "ledger --lower`, or correct the settings. Nothing was computed.",
                )
            self._ledger = ledger
        return self._ledger

    def _forget_old(self) -> None:
        stored = sorted((self._folder / _STORED).glob("*.safetensors"), key=_age)
        for path in stored[:-_KEPT]:
            path.unlink(missing_ok=True)


def spends(plan: Plan) -> bool:
    """Whether a run of the plan costs a site's patients anything that is counted."""
    return plan.protects_patients


def ledger_path(settings: SiteSettings, folder: Path) -> Path:
    """Where the site's ledger lies."""
    budget = settings.budget
    if budget is None or budget.ledger is None:
        return folder / LEDGER_FILE
    return budget.ledger


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
