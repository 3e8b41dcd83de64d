"""`lift-server export`: the release of a finished run, with a manifest of every file.

The gate: a mixer is released with audits of every site that it learned from, and under
patient-level gradients with one of the training itself; or without, in so many words.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from lift.audit.documents import SiteAudit, TrainingAudit, check_signature, read_signed
from lift.config.plan import Plan
from lift.config.privacy import NoPrivacy, PatientGradients, StatisticsOnce
from lift.config.server import ServerConfig
from lift.errors import CheckpointError, ConfigError, DataError, PolicyError
from lift.files import file_digest, write_atomically
from lift.records.extract import (
    PUBLIC_ROUNDS_FILE,
    public_metrics,
    public_rounds,
    public_run,
)
from lift.records.metrics import METRICS_FILE, Metrics, as_json, read_metrics
from lift.records.rounds import ROUNDS_FILE, RoundRecord
from lift.records.run import RUN_FILE, read_run_record
from lift.release.manifest import MANIFEST_FILE, RECORD_FILE, TEXT_FILE, ListedFile, Manifest
from lift.strict_json import parse_model
from lift_server.release.bundle_text import bundle_text
from lift_server.release.privacy_record import epsilon_by_site
from lift_server.rounds.ledger_heads import HEADS_FILE, LedgerHeads
from lift_server.sites.roster import Roster
from lift_server.watch.status_view import is_complete

MIXER_FILE: Final = "mixer.safetensors"
SUMS_FILE: Final = "SHA256SUMS"
WITHOUT_AUDIT: Final = "RELEASED WITHOUT AUDIT"
_THE_TRAINING: Final = "the training"
_THE_STATISTICS: Final = "the statistics"


def export_run(
    config: ServerConfig,
    output: Path,
    *,
    audits: Sequence[Path],
    without_audit: bool,
    audit_training: Callable[[Plan], TrainingAudit],
) -> list[str]:
    """Write the release bundle of a finished run to a new folder. Return the SHA256SUMS lines.

    Without noise that protects patients it needs an audit of every site. With such noise it takes
    none: a site's figures of its patients are exact, and epsilon does not count them. Then the
    training is audited, with invented patients; of statistics that are sent once there is no audit.

    Its manifest lists every file; it is still to be signed with the release key.

    Args:
        config: the coordinator's settings, paths from its folder.
        output: is made; it must not exist, or be empty.
        audits: files that sites handed over.
        without_audit: release without the audits that are missing, and say so.
        audit_training: audits the plan's private training; asked where the plan has some.

    Raises:
        CheckpointError: the run is not complete.
        ConfigError: the folder is in use, or an audit's file cannot be read.
        PolicyError: an audit is missing, not of this mixer, not signed by its site, or of patients
            whom noise protects; or the training did not pass its own. Nothing is written in any of
            these cases.
        DataError: a copy came back with other bytes.
    """
    run = config.output
    _check_finished(run)
    _check_free(output)
    record = read_run_record(run)
    rounds = _rounds(run)
    plan = Plan.from_data(record.plan, RUN_FILE)
    keys = Roster.read(config.sites)
    mixer_digest = file_digest(run / MIXER_FILE)
    if audits and plan.protects_patients:
        raise _outside_epsilon(audits, plan)
    sites = read_audits(audits, keys, _audited(run, mixer_digest) if audits else ())
    learned_from = sorted({site for line in rounds[1:] for site in line.counted})
    # with statistics alone, too: of these a notice of withdrawal speaks
    made_with = sorted({site for line in rounds for site in line.counted})
    missing = [site for site in learned_from if site not in sites]
    if plan.protects_patients:
        # nothing exact of a patient is asked for
        missing = [_THE_STATISTICS] if isinstance(plan.privacy, StatisticsOnce) else []
    if missing and not without_audit:
        raise _not_audited(missing, run)
    training = None
    if isinstance(plan.privacy, PatientGradients):
        try:
            training = audit_training(plan)
        except ConfigError:
            # with too little noise, or too small a mixer, no audit can tell anything
            if not without_audit:
                raise
            missing.append(_THE_TRAINING)
    if training is not None and not training.passed:
        raise PolicyError(
            "the training did not pass its audit",
            where=str(run),
            seen=f"epsilon is at least {training.epsilon_lower_bound:.2f} by the canaries; "
            f"{training.claimed_epsilon:.2f} was claimed; {training.noise_seen} "
            f"({training.audited})",
            remedy="Nothing was written, and nothing should be released: noise, sampling or "
            "clipping do less than they say. Please report it. A right pipeline fails once in "
            f"{1 / (1 - training.confidence):.0f} times: run the same command again.",
        )
    # run.json and metrics.json are used by their extracts alone from here on
    public = public_run(record)
    metrics = _metrics(run)
    bundle = {
        "format_version": 2,
        "federation": config.name,
        "released": datetime.now(UTC).isoformat(timespec="seconds"),
        "audited": not missing,
        "audit_statement": f"{WITHOUT_AUDIT}: {', '.join(missing)}" if missing else "audited",
        "phantom": config.phantom,
        "data_statement": config.data_statement,
        "mixer": {
            **({} if public.mixer is None else as_json(public.mixer)),
            "file": MIXER_FILE,
            "sha256": mixer_digest,
        },
        "generator": public.generator,
        "plan": public.plan,
        "plan_digest": public.plan_digest,
        "rounds": {
            "trained": len(rounds) - 1,
            "learned_from": learned_from,
            "made_with": made_with,
        },
        "sites": None if public.all_sites is None else as_json(public.all_sites),
        "privacy": {
            **public.privacy,
            "epsilon_spent_by_site": epsilon_by_site(plan, rounds),
            "ledger_heads": LedgerHeads(config.state / HEADS_FILE).known(learned_from)
            if not isinstance(plan.privacy, NoPrivacy)
            else {},
        },
        "audits": {
            "training": None if training is None else training.model_dump(mode="json"),
            "sites": {site: audit.model_dump(mode="json") for site, audit in sites.items()},
            "missing": missing,
        },
        "metrics": None if metrics is None else as_json(metrics),
        "gain": None if public.gain is None else as_json(public.gain),
        "versions": public.versions,
    }
    lines = [json.dumps(line.model_dump(), allow_nan=False) for line in public_rounds(rounds)]
    records = {
        MIXER_FILE: (run / MIXER_FILE).read_bytes(),
        RUN_FILE: _json(as_json(public)),
        PUBLIC_ROUNDS_FILE: "".join(f"{line}\n" for line in lines).encode(),
        **({} if metrics is None else {METRICS_FILE: _json(as_json(metrics))}),
    }
    return _write(output, bundle, keys.admitted_keys, records)


def _audited(run: Path, mixer_digest: str) -> tuple[str, str]:
    """The run's mixer, and the copy of it that a site got with the last request."""
    # torch is imported where an audit is read, and not for every export
    from lift.mixer.finished import read_mixer, site_copy_digest

    return mixer_digest, site_copy_digest(read_mixer(run / MIXER_FILE))


def read_audits(
    paths: Sequence[Path], roster: Roster, mixer_digests: Sequence[str]
) -> dict[str, SiteAudit]:
    """The sites' audits, each signed by its site and of this mixer; by site.

    Raises:
        ConfigError: a file cannot be read.
        PolicyError: an audit is of another mixer, of a site that is not in the roster, or not
            signed by its site, or a site has two.
    """
    found: dict[str, SiteAudit] = {}
    for path in paths:
        signed = read_signed(path)
        site = signed.audit.site
        entry = roster.sites.get(site)
        if entry is None:
            raise PolicyError(
                f"the audit is of a site that was never admitted: '{site}'",
                where=str(path),
                seen=f"admitted: {', '.join(sorted(roster.sites)) or 'none'}",
                remedy="Nothing was written. Omit this file.",
            )
        # a site that was removed since may still speak of what it took part in
        check_signature(signed, entry.public_key)
        if signed.audit.mixer_digest not in mixer_digests:
            raise PolicyError(
                f"the audit of site '{site}' is of another mixer",
                where=str(path),
                seen=f"SHA-256 {signed.audit.mixer_digest[:12]}... there, "
                f"{mixer_digests[0][:12]}... here",
                remedy="Nothing was written. Ask the site to audit this run's mixer.safetensors.",
            )
        if site in found:
            raise PolicyError(
                f"two audits of site '{site}' were given",
                where=str(path),
                seen="which one counts is not for the coordinator to choose",
                remedy="Nothing was written. Give one audit per site.",
            )
        found[site] = signed.audit
    return dict(sorted(found.items()))


def _write(
    output: Path,
    bundle: dict[str, Any],
    site_keys: Mapping[str, str],
    records: Mapping[str, bytes],
) -> list[str]:
    """Write what is public, and what is made of it: nothing else is at hand here."""
    files = dict(records)
    # pictures take a second to load, and only here
    from lift.report.page import REPORT_FILE, render_report

    with tempfile.TemporaryDirectory() as folder:
        for name, data in records.items():
            (Path(folder) / name).write_bytes(data)
        files[REPORT_FILE] = render_report(Path(folder), bundle["audits"])
    files[RECORD_FILE] = _json(bundle)
    files[TEXT_FILE] = bundle_text(bundle).encode()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    sums = [f"{digest}  {name}" for name, digest in digests.items()]
    files[SUMS_FILE] = "".join(f"{line}\n" for line in sums).encode()
    manifest = Manifest(
        federation=bundle["federation"],
        made=bundle["released"],
        sites=dict(site_keys),
        files={
            name: ListedFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        },
    )
    # the manifest last: with it the folder is complete
    files[MANIFEST_FILE] = manifest.content()
    for name, data in files.items():
        write_atomically(output / name, data)
        # of what the disk gives back, against what was read: a bad copy is found here
        if file_digest(output / name) != hashlib.sha256(data).hexdigest():
            raise DataError(
                "a copy differs from its source",
                where=str(output / name),
                seen="other bytes came back from the disk",
                remedy="Check the disk, remove the folder and run the same command again.",
            )
    return sums


def _check_finished(run: Path) -> None:
    mixer = run / MIXER_FILE
    if mixer.is_file() and is_complete(run):
        return
    raise CheckpointError(
        "the run has no finished mixer",
        where=str(run),
        seen="run.json does not say that the run is complete"
        if mixer.is_file()
        else f"there is no {MIXER_FILE}",
        remedy="Nothing was written. Let `lift-server` run to its end: a partial run is "
        "never shipped.",
    )


def _check_free(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            "the folder is in use",
            where=str(output),
            seen="it exists and is not empty",
            remedy="Nothing was changed. Choose another folder.",
        )


def _outside_epsilon(audits: Sequence[Path], plan: Plan) -> PolicyError:
    return PolicyError(
        "an audit of patients must not be published beside this mixer",
        where=str(audits[0]),
        seen=f"exact figures of patients that the plan protects with noise ({plan.privacy.mode}); "
        "epsilon does not count them",
        remedy="Nothing was written. Leave --audit out: the training is audited here, with "
        "invented patients. Delete the file, and tell the site that it should have stayed there.",
    )


def _not_audited(missing: Sequence[str], run: Path) -> PolicyError:
    if missing == [_THE_STATISTICS]:
        return PolicyError(
            "the mixer was not audited",
            where=str(run),
            seen="privacy mode stats-once: no audit shows what its statistics tell without being "
            "exact itself",
            remedy="Nothing was written. Release it with --without-audit, which the bundle then "
            "says.",
        )
    return PolicyError(
        "the mixer was not audited",
        where=str(run),
        seen=f"no audit of: {', '.join(missing)}",
        remedy=f"Nothing was written. Send {MIXER_FILE} to these sites, let each run `lift audit "
        "patients` and give the files with --audit; or release it with --without-audit, which the "
        "bundle then says.",
    )


def _rounds(run: Path) -> list[RoundRecord]:
    try:
        text = (run / ROUNDS_FILE).read_text(encoding="utf-8")
        lines = [parse_model(RoundRecord, line) for line in text.splitlines()]
        if not lines:
            raise ValueError("no round")
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            "the run's record of rounds cannot be read",
            where=str(run / ROUNDS_FILE),
            seen="it is missing or damaged",
            remedy="Nothing was written. Start `lift-server` once: it writes the record again "
            "from its checkpoints.",
        ) from None
    return lines


def _metrics(run: Path) -> Metrics | None:
    """What is public of the run's metrics; None where it has none."""
    if not (run / METRICS_FILE).is_file():
        return None
    return public_metrics(read_metrics(run))


def _json(data: Mapping[str, object]) -> bytes:
    return (json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
