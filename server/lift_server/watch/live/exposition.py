"""The run's figures in Prometheus' text format, version 0.0.4.

Names are stable: `docs/guides/monitoring.md` lists them, and a test compares. Units are base
units (seconds, bytes), times are seconds since 1970, totals only grow within a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from lift.records.rounds import RoundRecord
from lift_server.watch.status_view import time_of

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PHASES: Final = ("waiting", "round", "decision", "done", "stopped", "not running")
_Sample = tuple[Mapping[str, str], float | None]


def exposition(state: Mapping[str, Any], lines: Sequence[RoundRecord]) -> str:
    """Return all figures of a snapshot. Unknown values have no sample.

    Args:
        state: what the live page shows.
        lines: the rounds on record.
    """
    sites: Mapping[str, Mapping[str, Any]] = state.get("sites", {})
    trained = [line for line in lines if line.kind == "train"]
    last = trained[-1] if trained else None

    def by_site(key: str) -> list[_Sample]:
        return [({"site": name}, _number(site.get(key))) for name, site in sites.items()]

    parts = [
        _family("lift_build_info", "gauge", "Version of the software.", [(_version(state), 1.0)]),
        _family(
            "lift_up",
            "gauge",
            "Whether the server's process is there.",
            [({}, _number(state.get("running")))],
        ),
        _family(
            "lift_run_phase",
            "gauge",
            "1 for the phase that the run is in.",
            [({"phase": phase}, float(state.get("phase") == phase)) for phase in PHASES],
        ),
        _family(
            "lift_run_complete",
            "gauge",
            "Whether the run came to its end.",
            [({}, _number(state.get("complete")))],
        ),
        _family(
            "lift_status_update_timestamp_seconds",
            "gauge",
            "When the server last wrote its status.",
            [({}, _moment(state.get("updated")))],
        ),
        _family(
            "lift_rounds_planned",
            "gauge",
            "Training rounds of the plan.",
            [({}, _number(state.get("rounds")))],
        ),
        _family(
            "lift_rounds_completed_total",
            "counter",
            "Training rounds that are aggregated and on disk.",
            [({}, float(len(trained)))],
        ),
        _family(
            "lift_round_start_timestamp_seconds",
            "gauge",
            "When the exchange under way began.",
            [({}, _moment(state.get("round_started")))],
        ),
        _family(
            "lift_round_deadline_timestamp_seconds",
            "gauge",
            "When the exchange under way closes.",
            [({}, _deadline(state))],
        ),
        _family(
            "lift_last_round_duration_seconds",
            "gauge",
            "What the last training round took.",
            [({}, None if last is None else last.seconds)],
        ),
        _family("lift_site_online", "gauge", "Whether the site is connected.", by_site("online")),
        _family(
            "lift_site_last_contact_timestamp_seconds",
            "gauge",
            "When the site was last seen.",
            [({"site": name}, _moment(site.get("last_contact"))) for name, site in sites.items()],
        ),
        _family(
            "lift_site_rounds_counted_total",
            "counter",
            "Training rounds in which the site's update counted.",
            by_site("counted"),
        ),
        _family(
            "lift_site_rounds_missed_total",
            "counter",
            "Training rounds in which the site was asked and did not count.",
            by_site("missed"),
        ),
        _family(
            "lift_site_rounds_clipped_total",
            "counter",
            "Training rounds in which the site's update was scaled down.",
            [
                ({"site": name}, float(sum(name in line.clipped for line in trained)))
                for name in sites
            ],
        ),
        _family(
            "lift_site_received_bytes_total",
            "counter",
            "Bytes of the site's answers on record.",
            by_site("received_bytes"),
        ),
        _family(
            "lift_site_training_loss",
            "gauge",
            "Training loss of the last round in which the site counted.",
            by_site("loss"),
        ),
        _family(
            "lift_site_validation_psnr_decibels",
            "gauge",
            "PSNR of the site's validation patients before the last round in which it counted.",
            by_site("validation_psnr_db"),
        ),
        _family(
            "lift_site_privacy_epsilon",
            "gauge",
            "Epsilon that the site's patients have met by the server's record.",
            by_site("epsilon"),
        ),
        _family(
            "lift_certificate_expiry_timestamp_seconds",
            "gauge",
            "When the certificate ends.",
            [
                ({"certificate": name}, _moment(ends))
                for name, ends in state.get("expiry", {}).items()
            ],
        ),
    ]
    return "".join(parts)


def _family(name: str, kind: str, text: str, samples: Iterable[_Sample]) -> str:
    known = [(labels, value) for labels, value in samples if value is not None]
    if not known:
        return ""
    rows = [f"{name}{_labels(labels)} {value!r}" for labels, value in known]
    return "\n".join([f"# HELP {name} {text}", f"# TYPE {name} {kind}", *rows, ""])


def _labels(labels: Mapping[str, str]) -> str:
    written = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return f"{{{written}}}" if written else ""


def _escaped(text: str) -> str:
    """A label's value: a backslash, a quote and a line feed are the only ones with a meaning."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _version(state: Mapping[str, Any]) -> dict[str, str]:
    return {"version": str(state.get("version", ""))}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None


def _moment(text: object) -> float | None:
    time = time_of(text) if isinstance(text, str) else None
    return None if time is None else time.timestamp()


def _deadline(state: Mapping[str, Any]) -> float | None:
    began, length = _moment(state.get("round_started")), _number(state.get("deadline_s"))
    # after the last exchange there is no deadline to look at
    return (
        None if began is None or length is None or state.get("phase") != "round" else began + length
    )
