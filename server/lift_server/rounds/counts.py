"""Numbers of patients: what a site claims against what it declared when it was admitted."""

from __future__ import annotations

from collections.abc import Mapping

from lift.config.plan import Plan
from lift.config.privacy import PatientGradients, StatisticsOnce
from lift.protocol.messages import StatisticsReply
from lift_server.rounds.review import rejected


def check_claim(site: str, reply: StatisticsReply, plan: Plan, declared: Mapping[str, int]) -> None:
    """Refuse counts above what the site declared, or other than the plan's public number.

    Each of the three counts may have been rounded up to `federation.patient_count_step`.

    Args:
        site: its name.
        reply: its statistics.
        plan: of the run.
        declared: patients of each site, of those that declared them.

    Raises:
        UpdateRejectedError: names both numbers.
    """
    privacy = plan.privacy
    if isinstance(privacy, PatientGradients | StatisticsOnce):
        if not privacy.names(site):
            raise rejected("the plan has no public number of patients for it")
        public = privacy.patients_of(site)
        if reply.train_patients != public:
            raise rejected(
                f"it claims {reply.train_patients} training patients; the plan says {public}"
            )
        return
    most = declared.get(site)
    if most is None:
        return
    counts = (reply.train_patients, reply.validation_patients, reply.test_patients)
    rounding = (plan.federation.patient_count_step - 1) * sum(count > 0 for count in counts)
    if sum(counts) > most + rounding:
        raise rejected(f"it claims {sum(counts)} patients; {most} are declared")


def quorum_counts(claimed: Mapping[str, int], declared: Mapping[str, int]) -> dict[str, int]:
    """Patients by site that a quorum counts: declared ones where a site that trains has any.

    Args:
        claimed: training patients by site.
        declared: patients of each site, of those that declared them.
    """
    return {site: n and declared.get(site, n) for site, n in claimed.items()}
