"""Output of `lift-client withdraw`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from lift.cohort.withdrawn import WithdrawnPatient
from lift_client.approval import ApprovedRelease
from lift_client.own.withdrawing import RunUse, Withdrawal

_PARTS: Final = {
    "train": "training",
    "validation": "validation",
    "test": "test (in counts and slice spacings alone)",
}


def described(done: Withdrawal, *, dry_run: bool) -> list[str]:
    """The lines about one withdrawal.

    Args:
        done: what was found and done, or would be.
        dry_run: whether nothing was done.
    """
    lines = []
    if dry_run:
        lines.append("dry run: nothing was changed")
    elif done.already:
        lines.append(f"already withdrawn on {done.already[:10]}: {done.person}")
    else:
        lines.append(f"withdrawn: {done.person}")
    lines.append(
        f"found in: {done.found}; {done.examinations} examinations"
        if done.found
        else "not found: the name was taken as it was given, for a person and for an examination"
    )
    verb = "would be removed" if dry_run else "removed"
    lines += [f"{verb}: {what}" for what in done.removed]
    lines += [f"stays: {name}, parameters that may have been trained with it" for name in done.kept]
    lines += [_run(run) for run in done.runs]
    lines += [_unknown(run, since) for run, since in done.unknown_runs.items()]
    lines += [f"release: {_release(one)}" for one in done.releases]
    lines += [f"release, not known whether: {_release(one)}" for one in done.unknown_releases]
    if not done.runs and not done.unknown_runs:
        lines.append("no run that this folder has a record of used this patient")
    return lines


def listed(withdrawn: Sequence[WithdrawnPatient]) -> Iterator[str]:
    """One line for each withdrawn person."""
    for one in withdrawn:
        yield " ".join([one.person, one.withdrawn[:10], one.reason]).rstrip()


def _run(run: RunUse) -> str:
    parts = ", ".join(_PARTS[part] for part in run.parts)
    answers = [f"rounds {_ranges(run.rounds)}"] if run.rounds else []
    answers += [kind for kind in run.kinds if kind != "train"]
    sent = ", ".join(answers) or "nothing was sent"
    return f"used in: run {run.run[:16]} ({run.task}), {parts}; {sent}"


def _unknown(run: str, since: str) -> str:
    until = f" what it used before {since[:16]}" if since else " whether it used this patient"
    return f"not known: run {run[:16]},{until}: the site kept no record of that yet"


def _release(release: ApprovedRelease) -> str:
    return f"{release.manifest_sha256[:16]} of '{release.federation}', {release.made}"


def _ranges(numbers: Sequence[int]) -> str:
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, one)) for one in found)
