"""The finished mixer as a file, and the verdicts of the sites on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lift.config.plan import Plan
from lift.guard import SiteProfile
from lift.mixer.finished import FinishedMixer, write_mixer
from lift.privacy.gain import PooledGain
from lift.protocol.messages import DifferenceDb, GuardReply
from lift.records.metrics import Measure, Metrics, SiteFigures
from lift.records.rounds import RoundRecord, SiteStatistics
from lift.records.run import GainRecord, GuardRecord
from lift.records.shipped import Said, Shipped, Source
from lift.tasks.paired.contrast import POOLED_FILE, write_pooled_curves
from lift.tasks.unconditional.style import kept_with_mixer
from lift_server.rounds.finished import FinishedRun


def write_finished_mixer(path: Path, plan: Plan, run: FinishedRun, *, phantom: bool) -> None:
    """`mixer.safetensors` of a run, with the guard's verdicts and no site's name.

    Under a plan with `unconditional.site_styles` the sites' styles are there, by their names.
    Beside it lie the pooled curves, where sites shared theirs.
    """
    statistics = run.records[0].statistics
    # under differential privacy no site tells its spacing, and none is asked for a verdict
    known = [site for site in sorted(statistics) if statistics[site].lowest_slice_spacing_mm]
    # a verdict on a mapper that is not released says nothing of what is
    kept_back = run.shipped is not None and run.shipped.source == "gaussian"
    guard = {} if kept_back else run.guard
    profiles = [_profile(guard.get(site), statistics[site]) for site in known]
    if run.gain is not None:
        # of all sites together; what a site's spacing is nobody tells under noise
        rules = plan.preprocessing
        profiles.append(
            SiteProfile(
                run.gain.verdict,
                rules.lowest_slice_spacing_mm,
                rules.highest_slice_spacing_mm,
                lowest_hf_share=None,
                highest_hf_share=None,
            )
        )
    values = run.mixer | kept_with_mixer(run.shared)
    write_mixer(path, FinishedMixer(values, run.taps, plan, profiles, phantom))
    write_pooled_curves(path.parent / POOLED_FILE, run.shared, plan)


def site_metrics(run: FinishedRun) -> Metrics:
    """`metrics.json` of a run whose server has no patient: what each site's guard answered.

    The metrics are paired differences on each site's validation patients (where these are fewer
    than two, with its training patients), with n and their 95% interval; every row in absolute
    numbers needs patients and exists in a simulation, or in a site's own report. Of new volumes
    there is the verdict alone.
    """
    known = run.records[0].statistics
    sites: dict[str, SiteFigures] = {}
    for site, reply in sorted(run.guard.items()):
        rows = {
            "psnr_over_no_mixer_db": _metric(reply.against_no_mixer),
            "psnr_over_z_filter_db": _metric(reply.against_z_filter),
        }
        found = {name: row for name, row in rows.items() if row is not None}
        patients = known[site].validation_patients if site in known else 0
        sites[site] = SiteFigures(
            patients=patients,
            methods={"federated": found} if found else {},
            verdict=reply.verdict,
            judged_on=reply.judged_on,
        )
    return Metrics(sites=sites, pooled={})


def verdicts(guard: Mapping[str, GuardReply]) -> dict[str, GuardRecord]:
    """The guard's answers for `run.json`, in the form that a simulation writes."""
    return {site: GuardRecord.of(reply) for site, reply in sorted(guard.items())}


def gain_record(gain: PooledGain | None) -> dict[str, GainRecord]:
    """The noisy gain of a mixer that was trained under noise, for `run.json`; empty without one."""
    if gain is None:
        return {}
    found = GainRecord(
        verdict=gain.verdict,
        difference_db=Measure(value=gain.value_db, low=gain.low_db, high=gain.high_db, unit="dB"),
        sites=gain.sites,
    )
    return {"gain": found}


def shipped_record(shipped: Shipped | None) -> dict[str, Source | Said | None]:
    """What is released and the sites' verdicts on it, for `run.json`. Empty without a choice."""
    if shipped is None:
        return {}
    return {"shipped": shipped.source, "said": shipped.said}


def most_bytes(records: Sequence[RoundRecord], kind: str) -> int | None:
    """The largest answer of one site in exchanges of this kind, as it crossed the wire; None where
    no size is on record.
    """
    sizes = [size for line in records if line.kind == kind for size in line.bytes.values()]
    return max(sizes, default=None)


def _metric(difference: DifferenceDb | None) -> Measure | None:
    return None if difference is None else Measure(**difference.model_dump(), unit="dB")


def _profile(guard: GuardReply | None, said: SiteStatistics) -> SiteProfile:
    return SiteProfile(
        verdict="undecided" if guard is None else guard.verdict,
        lowest_slice_spacing_mm=said.lowest_slice_spacing_mm or 0.0,
        highest_slice_spacing_mm=said.highest_slice_spacing_mm or 0.0,
        lowest_hf_share=None if guard is None else guard.lowest_hf_share,
        highest_hf_share=None if guard is None else guard.highest_hf_share,
    )
