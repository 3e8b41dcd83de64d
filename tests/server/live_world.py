"""A coordinator's folder in the middle of a run, written by hand: what the live page reads."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lift.config.server import ServerConfig
from lift.files import write_json, write_json_lines
from lift.keys import key_fingerprint
from lift_server.sites.provisioning import init_folder, load_settings

SCRIPT = "<script>alert('x')</script>"
RIGHT_TO_LEFT = "\u05d0\u05d1\u05d2 \u202e \u4e2d"
HOSTILE = (SCRIPT, "A" * 300, RIGHT_TO_LEFT, 'quote"back\\slash\nline')
SITES = ("harbour", "north", "valley")


def round_line(
    index: int, sites: Sequence[str], *, noise: bool = False, clips: bool = False
) -> dict[str, Any]:
    """One line of rounds.jsonl: the last site is late in each seventh round, the second one is
    refused in each eleventh. With `clips` the first is clipped in each third, and the run goes back
    in the ninth.
    """
    refused = {}
    if index and index % 7 == 0:
        refused[sites[-1]] = "no_answer"
    if index and index % 11 == 0 and len(sites) > 1:
        refused[sites[1]] = "data"
    counted = [site for site in sites if site not in refused]
    clipped: dict[str, Any] = {}
    if clips and index and index % 3 == 0:
        ratios = {site: 1.0 + 0.1 * place for place, site in enumerate(counted)}
        ratios[sites[0]] = 2.0 + index
        clipped = {"norm_ratios": ratios, "clipped": {sites[0]: 2 / (2.0 + index)}}
    if clips and index == 9:
        clipped["fall"] = {
            "by_db": 3.25,
            "best_round": 8,
            "action": "go-back",
            "farthest": sites[0],
            "left_out": sites[0],
        }
    return {
        **clipped,
        "round": index,
        "kind": "train" if index else "statistics",
        "asked": list(sites),
        "answered": [site for site in sites if refused.get(site) != "no_answer"],
        "counted": {site: 20.0 if not index else 1 / len(counted) for site in counted},
        "refused": refused,
        "bytes": {} if noise else {site: 22_070 + 7 * place for place, site in enumerate(counted)},
        "sent_again": {},
        "seconds": None if noise else round(4 + math.sin(index), 3),
        "loss": {
            s: None if noise else round(0.2 / (1 + index / 5) + 0.01 * sites.index(s), 6)
            for s in counted
        }
        if index
        else {},
        "validation_psnr_db": {
            s: None if noise else round(22 - 4 * math.exp(-index / 8) - 0.3 * sites.index(s), 4)
            for s in counted
        }
        if index
        else {},
        "epsilon": round(0.4 * math.sqrt(index), 4) if noise else None,
    }


def make_live(
    folder: Path,
    *,
    sites: Sequence[str] = SITES,
    strangers: Sequence[str] = (),
    rounds: int = 12,
    planned: int = 20,
    noise: bool = False,
    clips: bool = False,
    page_port: int | None = None,
    phantom: bool = False,
) -> ServerConfig:
    """A folder whose run has `rounds` training rounds on record and is in the next one.

    Args:
        folder: where; must not exist.
        sites: admitted sites.
        strangers: names that stand in the record only, whatever they look like.
        rounds: finished training rounds; -1 for a run that waits for its first exchange.
        planned: training rounds of the plan.
        noise: the record has epsilon, and no losses.
        clips: the record has clipped updates, and a fall.
        page_port: of the live page.
        phantom: what the settings and the run's record say of the volumes.
    """
    init_folder(folder, ["localhost"], "trial")
    text = (folder / "server.yaml").read_text(encoding="utf-8")
    port = "null" if page_port is None else str(page_port)
    text = text.replace("page_port: 8446 ", f"page_port: {port} ")
    text = text.replace("phantom: false ", f"phantom: {str(phantom).lower()} ")
    text = text.replace("    rounds: 20\n", f"    rounds: {planned}\n")
    (folder / "server.yaml").write_text(text, encoding="utf-8")
    config = load_settings(folder)
    now = datetime.now(UTC)
    entry = {"admitted": (now - timedelta(days=3)).isoformat(), "removed": None}
    admitted = {}
    for place, site in enumerate(sites):
        # not a key at all, but it has the form of one and a fingerprint of its own
        key = f"ecdsa-sha2-nistp384 {place:0100d}"
        admitted[site] = entry | {"public_key": key, "fingerprint": key_fingerprint(key)}
    write_json(config.sites, {"format_version": 1, "sites": admitted})
    everyone = [*sites, *strangers]
    write_json_lines(
        config.output / "rounds.jsonl",
        [round_line(index, everyone, noise=noise, clips=clips) for index in range(rounds + 1)],
    )
    write_status(config, everyone, rounds + 1, planned)
    write_json(
        config.output / "run.json",
        {
            "name": "trial",
            "started": (now - timedelta(hours=2)).isoformat(timespec="seconds"),
            "complete": False,
            "phantom": phantom,
            "plan": {},
            "plan_digest": config.plan.digest(),
            "privacy": {"mode": "none", "statement": "no noise is added"},
        },
    )
    (config.state / "log.txt").write_text(
        "".join(
            f"2026-01-01 10:{index:02d}:00,000 INFO lift_server.app event=round_done "
            f"round={index}\n"
            for index in range(rounds)
        ),
        encoding="utf-8",
    )
    return config


def write_status(
    config: ServerConfig, names: Sequence[str], current: int, planned: int, **changes: object
) -> None:
    """What a running server writes: this test's process stands for it."""
    now = datetime.now(UTC)
    states = ("asked", "answered", "asked")
    status: dict[str, object] = {
        "pid": os.getpid(),
        "started": now.isoformat(timespec="seconds"),
        "phase": "round",
        "exchange": "train",
        "round": current,
        "rounds": planned,
        "round_started": (now - timedelta(seconds=20)).isoformat(timespec="seconds"),
        "deadline_s": 300.0,
        "sites": {
            site: {
                "online": place != 2,
                "last_contact": (now - timedelta(seconds=3 + 40 * place)).isoformat(
                    timespec="seconds"
                ),
                "state": states[place % 3],
            }
            for place, site in enumerate(names)
        },
        "updated": now.isoformat(timespec="seconds"),
    }
    # whole or not at all, as a server does: a page may be reading
    write_json(config.state / "status.json", status | changes)
