"""The report's section on privacy: mode, cost by site, ledgers, audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import JsonValue

from lift.markup import Markup, foreign, join, number, pointer, table, tag
from lift.records.run import RUN_FILE, GainRecord
from lift.report.read import Run
from lift.report.sections import Section, lacking

RELEASE_FILE: Final = "release.json"
_FIGURES: Final = (
    ("epsilon", "epsilon at the end", 4),
    ("epsilon_where_times_are_seen", "for observers of answer times", 4),
    ("epsilon_of_a_patient_in_two_hospitals", "of a patient in two hospitals", 4),
    ("epsilon_by_rdp", "the same by Rényi's looser accounting", 4),
    ("delta", "delta", 6),
)


def privacy_section(run: Run, audits: Mapping[str, Any] | None) -> Section:
    """What was promised to patients, what it cost by site, and what audits found.

    Args:
        run: the run.
        audits: `audits` of a release; None where the mixer was not exported.
    """
    told = run.record.privacy
    mode = str(told.get("mode") or run.setting("privacy", "mode") or "not recorded")
    facts: list[tuple[str, Markup]] = [
        ("mode", foreign(mode)),
        ("meaning", foreign(str(told.get("statement", "not recorded")))),
    ]
    facts += [
        (name, number(figure(told.get(key)), pointer(RUN_FILE, "privacy", key), decimals))
        for key, name, decimals in _FIGURES
        if key in told
    ]
    facts += [
        (name, foreign(str(told[key])))
        for key, name in (("unit", "protects"), ("relation", "neighbours"), ("accountant", "by"))
        if key in told
    ]
    content: list[Markup] = [
        tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in facts))
    ]
    if mode == "none":
        content.append(lacking("Without noise there is no epsilon, and no site has a ledger line."))
    else:
        content.append(_by_site(run))
    if "times" in told:
        content.append(tag("p", foreign(str(told["times"])), class_="note"))
    if run.record.gain is not None:
        content.append(_gain(run.record.gain))
    content.append(tag("h3", "Audits"))
    content += _audits(audits)
    return Section("privacy", "Privacy", tuple(content))


def figure(value: JsonValue) -> float | None:
    """The number that a record holds; None where it holds none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _gain(gain: GainRecord) -> Markup:
    """What the mixer gains over no mixer, by the sites' noisy sums."""
    found = gain.difference_db
    if found.value is None:
        return lacking("The gain of the mixer cannot be seen above its noise.")

    def shown(value: float | None, end: str) -> Markup:
        return number(value, pointer(RUN_FILE, "gain", "difference_db", end), 2)

    return tag(
        "p",
        "Gain of the mixer in PSNR over no mixer, clipped per patient, from noisy sums of ",
        number(gain.sites, pointer(RUN_FILE, "gain", "sites"), 0),
        " sites: ",
        shown(found.value, "value"),
        " dB [",
        shown(found.low, "low"),
        ", ",
        shown(found.high, "high"),
        "] (95%, over noise and patients). It is counted in epsilon.",
    )


def _by_site(run: Run) -> Markup:
    told, met = run.record.privacy, run.record.epsilon_met
    planned, patients = _object(told.get("epsilon_by_site")), _object(told.get("public_patients"))
    rows = []
    # a release names sites here alone
    for site in run.sites or sorted(planned):
        head = run.record.ledger_heads.get(site)
        rows.append(
            [
                foreign(site),
                number(
                    figure(planned.get(site)),
                    pointer(RUN_FILE, "privacy", "epsilon_by_site", site),
                    4,
                ),
                number(met.get(site), pointer(RUN_FILE, "epsilon_met", site), 4),
                number(
                    figure(patients.get(site)),
                    pointer(RUN_FILE, "privacy", "public_patients", site),
                    0,
                ),
                tag("td", tag("code", foreign(head or "not reported")), class_="word"),
            ]
        )
    return table(
        "Epsilon of one patient at each site: as planned, and as spent by the server's record "
        "(each round in which the site was asked counts). The ledger of the hospital is the "
        "authority. Its head is as reported by the site; `lift-client ledger` shows it there.",
        [
            "site",
            "epsilon planned",
            "epsilon met",
            "patients (public number)",
            tag("th", "head of the ledger (SHA-256)", scope="col", class_="word"),
        ],
        rows,
    )


def _audits(audits: Mapping[str, Any] | None) -> Sequence[Markup]:
    if audits is None:
        return [
            tag(
                "p",
                "This report was written before any audit. ",
                tag("code", "lift audit patients"),
                " at each site and ",
                tag("code", "lift audit training"),
                " create them. ",
                tag("code", "lift-server export"),
                " requires them and writes this report again.",
                class_="note",
            )
        ]
    rows = []
    for site, audit in audits["sites"].items():
        for attack, figures in audit["attacks"].items():
            place = ("audits", "sites", site, "attacks", attack)

            def shown(
                key: str,
                decimals: int = 3,
                held: Mapping[str, Any] = figures,
                at: tuple[str, ...] = place,
            ) -> Markup:
                return number(held[key], pointer(RELEASE_FILE, *at, key), decimals)

            rows.append(
                [
                    foreign(site),
                    tag("td", foreign(attack), class_="word"),
                    join([shown("auc"), " [", shown("auc_low"), ", ", shown("auc_high"), "]"]),
                    join([shown("tpr"), " at ", shown("fpr_of_tpr")]),
                    join([shown("members", 0), " / ", shown("others", 0)]),
                ]
            )
    content: list[Markup] = []
    if rows:
        content.append(
            table(
                "Membership inference at the sites, on their own patients: how well an attack "
                "separates training patients from held-out ones. 0.5 is chance. Brackets: 95% "
                "interval.",
                [
                    "site",
                    tag("th", "attack", scope="col", class_="word"),
                    "AUC",
                    "true at false positive rate",
                    "training / held-out patients",
                ],
                rows,
            )
        )
    missing = [str(name) for name in audits.get("missing", [])]
    if missing:
        names = join((foreign(name) for name in missing), ", ")
        content.append(tag("p", tag("b", "RELEASED WITHOUT AUDIT: "), names, class_="note trouble"))
    training = audits.get("training")
    if training:
        content.append(tag("p", "Audit of the training: ", foreign(training["statement"])))
        if training.get("noise_ratio") is not None:
            content.append(_noise_table(training))
    return content or [lacking("No audit was asked for.")]


def _noise_table(training: Mapping[str, Any]) -> Markup:
    """The noise that the training's audit measured, beside what it would have found."""
    cells: list[str] = [
        number(training.get(key), pointer(RELEASE_FILE, "audits", "training", key), decimals)
        for key, decimals in (
            ("noise_ratio", 3),
            ("noise_numbers", 0),
            ("noise_steps", 0),
            ("noise_p_value", 5),
            ("noise_p_more", 5),
            ("noise_smallest_found", 3),
        )
    ]
    return table(
        "Noise of the training as measured over the claimed one (standard deviations). The audit "
        "is not passed if so little has a probability below 0.001. More than claimed is no "
        "failure. Smaller noise than the last figure would have a probability below 0.00001.",
        [
            "measured / claimed",
            "by numbers",
            "of steps",
            "probability of so little",
            "probability of so much",
            "smallest share that is found",
        ],
        [cells],
    )


def _object(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}
