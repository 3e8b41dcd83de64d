"""RELEASE.txt: one page that describes the release bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any, Final

from lift.audit.documents import TrainingAudit
from lift.records.metrics import Metrics
from lift.records.run import AllSites

_WIDTH: Final = 78


def bundle_text(bundle: Mapping[str, Any]) -> str:
    """Return RELEASE.txt: what was released, its privacy, its audits, and how to verify it."""
    lines: list[str] = []
    if not bundle["audited"]:
        lines += ["#" * _WIDTH, "", *_large(str(bundle["audit_statement"])), "", "#" * _WIDTH, ""]
    lines += [f"Mixer of the federation '{bundle['federation']}', released {bundle['released']}"]
    if bundle["phantom"]:
        lines += ["PHANTOM: it was trained on simulated volumes alone"]
    if bundle["data_statement"]:
        lines += [str(bundle["data_statement"])]
    mixer, generator, rounds = bundle["mixer"], bundle["generator"], bundle["rounds"]
    lines += [
        "",
        f"mixer      {mixer['kind']}, {mixer['parameters']} parameters, SHA-256 {mixer['sha256']}",
        f"generator  {generator['fingerprint']}",
        f"plan       {bundle['plan_digest']}",
        f"rounds     {rounds['trained']}",
        *_sites(rounds["learned_from"], bundle["sites"]),
        "",
        *_privacy(bundle["privacy"]),
        "",
        *_audits(bundle["audits"]),
        "",
        *_gain(bundle.get("gain")),
        *_metrics(bundle["metrics"]),
        "",
        "To check this folder, with the ca.pem that you have from the coordinator or your kit:",
        "  lift verify-release . --ca ca.pem",
        "It looks at every file, at the signature and at approvals. Without this software, openssl",
        "tells whether the list of files is signed, and sha256sum whether two files are the same:",
        "  openssl verify -CAfile ca.pem release.pem",
        "  openssl x509 -in release.pem -noout -subject -ext extendedKeyUsage  # LiFT ... release",
        "  openssl x509 -in release.pem -pubkey -noout > ../release.pub",
        "  openssl dgst -sha384 -verify ../release.pub -signature manifest.json.sig manifest.json",
        "  sha256sum SHA256SUMS   # must stand in manifest.json; so must the sum of each file",
        "  sha256sum -c SHA256SUMS",
    ]
    return "\n".join(lines) + "\n"


def _large(statement: str) -> list[str]:
    heading, _, sites = statement.partition(": ")
    return [
        " ".join(heading).center(_WIDTH).rstrip(),
        "",
        f"no audit of: {sites}".center(_WIDTH).rstrip(),
    ]


def _sites(learned_from: Sequence[str], released: Mapping[str, Any] | None) -> list[str]:
    """Whom the mixer learned from, and what is public of all sites together."""
    names = f"sites      {len(learned_from)}: {', '.join(learned_from)}"
    lines = wrap(names, _WIDTH, subsequent_indent=" " * 11)
    if released is None:
        return lines
    together = AllSites(**released)
    if "train" in together.patients:
        told = together.patients["train"]
        lines.append(f"           {told} training patients in all, as reported by the sites")
    if together.verdicts is not None:
        counts = ", ".join(f"{verdict} at {count}" for verdict, count in together.verdicts.items())
        lines.append(f"           verdicts: {counts}")
    return lines


def _privacy(privacy: Mapping[str, Any]) -> list[str]:
    lines = [f"privacy    {privacy['mode']}: {privacy['statement']}"]
    if "epsilon" not in privacy:
        return lines
    lines.append(
        f"           epsilon {privacy['epsilon']} for the whole plan, delta {privacy['delta']:g}; "
        f"unit {privacy['unit']}, add or remove one"
    )
    if "epsilon_where_times_are_seen" in privacy:
        seen = privacy["epsilon_where_times_are_seen"]
        lines += [
            f"           epsilon {seen} for anyone who saw the times of answers: they may show",
            "           who was drawn",
        ]
    if "epsilon_of_a_patient_in_two_hospitals" in privacy:
        twice = privacy["epsilon_of_a_patient_in_two_hospitals"]
        lines.append(f"           a patient of two hospitals: epsilon {twice}")
    spent = privacy["epsilon_spent_by_site"]
    lines += [f"           {site}: {value} by the record" for site, value in spent.items()]
    return lines


def _audits(audits: Mapping[str, Any]) -> list[str]:
    lines = ["audits"]
    training = audits["training"]
    if training is not None:
        lines.append(
            f"  training: {'passed' if training['passed'] else 'FAILED'}; by "
            f"{training['canaries']} canaries epsilon is at least "
            f"{training['epsilon_lower_bound']:.2f}, claimed {training['claimed_epsilon']:.2f} "
            f"for {training['steps']} steps"
        )
        if training.get("noise_ratio") is not None:
            seen = TrainingAudit.from_data(training, "the training's audit").noise_seen
            lines += wrap(seen, _WIDTH, initial_indent=" " * 12, subsequent_indent=" " * 12)
    for site, audit in audits["sites"].items():
        for attack, found in audit["attacks"].items():
            lines.append(
                f"  {site}: {attack}: AUC {found['auc']:.2f} "
                f"[{found['auc_low']:.2f}, {found['auc_high']:.2f}], TPR {found['tpr']:.2f} at "
                f"FPR {found['fpr_of_tpr']:.2f}; at least {found['members']} training and "
                f"{found['others']} held-out patients"
            )
        copies = audit["copies"]
        if copies is not None:
            lines.append(
                f"  {site}: copies: {copies['copies']:.2f} of {copies['generated']} generated "
                f"volumes (of held-out patients: {copies['copies_of_held_out']:.2f}); nearer to "
                f"training {copies['nearer_training']:.2f}, by chance "
                f"{copies['chance_low']:.2f} to {copies['chance_high']:.2f}"
            )
    lines += [f"  {site}: NOT AUDITED" for site in audits["missing"]]
    if audits["sites"]:
        lines.append("  " + next(iter(audits["sites"].values()))["caveat"])
    return lines


def _gain(gain: Mapping[str, Any] | None) -> list[str]:
    """What a mixer that was trained under noise gains, by the sites' noisy sums."""
    if gain is None:
        return []
    found = gain["difference_db"]
    seen = f"gain       PSNR over no mixer, by noisy sums of {gain['sites']} sites: "
    if found["value"] is None:
        return [f"{seen}hidden by the noise", ""]
    return [
        f"{seen}{found['value']:+.2f} dB [{found['low']:+.2f}, {found['high']:+.2f}], "
        f"{gain['verdict']}",
        "",
    ]


def _metrics(released: Mapping[str, Any] | None) -> list[str]:
    lines = ["metrics of all sites together (n, 95% interval)"]
    metrics = Metrics() if released is None else Metrics(**released)
    for metric, row in metrics.pooled.get(metrics.main, {}).items():
        if row.value is None:
            continue
        known = row.low is not None and row.high is not None
        interval = f" [{row.low:+.3g}, {row.high:+.3g}]" if known else ""
        lines.append(f"  {metric} {row.value:+.3g}{interval}, n = {row.n}")
    if len(lines) == 1:
        lines.append("  none: noise protects the patients, or fewer than three sites answered")
    return lines
