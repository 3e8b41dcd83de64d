"""The live page: shows the server's files, changes nothing, refuses strangers."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from lift.config.server import ServerConfig
from lift.files import write_json_lines
from lift.records.rounds import RoundRecord
from lift_server.release.privacy_record import epsilon_by_site
from lift_server.watch.live.app import make_app
from lift_server.watch.live.exposition import CONTENT_TYPE
from lift_server.watch.live.snapshot import Snapshots
from tests.opened_files import opened_files
from tests.server.live_world import HOSTILE, SITES, make_live, round_line, write_status

ADDRESS = "http://127.0.0.1:8446"
GUIDE = Path("docs/guides/monitoring.md")
BROWSERS = 100
LOOKS = 3
PATHS = ("/", "/page.css", "/page.js", "/state.json", "/rounds.json", "/metrics")


class Clock:
    """A time that only the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.began = datetime.now(UTC)

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.began + timedelta(seconds=self.seconds)


class Client:
    """Asks the application, without a network."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)
            async with httpx.AsyncClient(transport=transport, base_url=ADDRESS) as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return make_live(tmp_path / "fed")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(config: ServerConfig, clock: Clock) -> Client:
    snapshots = Snapshots(config, clock=clock.monotonic, now=clock.now)
    return Client(make_app(snapshots, config.page_host))


@pytest.fixture
def client(config: ServerConfig, clock: Clock) -> Client:
    return opened(config, clock)


def _reads(config: ServerConfig, clock: Clock, browsers: Sequence[Client]) -> Counter[str]:
    """How often each file of the server is opened while these browsers look."""
    with opened_files(config.state.parent) as found:
        for _ in range(LOOKS):
            for browser in browsers:
                for path in ("/state.json", "/rounds.json", "/metrics"):
                    assert browser.get(path).status_code == 200
            clock.seconds += 3
    return Counter(path.name for path in found)


def samples(client: Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def test_the_state_is_what_the_files_say(client: Client, config: ServerConfig) -> None:
    state = client.get("/state.json").json()

    assert state["summary"].startswith("round 13 of 20, for ")
    assert (state["rounds_done"], state["round_count"]) == (12, 13)
    assert {name: site["doing"] for name, site in state["sites"].items()} == {
        "harbour": "training",
        "north": "answered, waiting",
        "valley": "away, asked",
    }
    assert [site["counted"] for site in state["sites"].values()] == [12, 11, 11]
    assert [(line["round"], line["site"]) for line in state["refusals"]] == [
        (11, "north"),
        (7, "valley"),
    ]
    assert state["refusals"][1]["reason"] == "no answer before the deadline"
    lines = [round_line(index, SITES) for index in range(13)]
    for site in SITES:
        sent = sum(line["bytes"].get(site, 0) for line in lines)
        assert state["sites"][site]["received_bytes"] == sent
        assert state["sites"][site]["loss"] == lines[12]["loss"][site]
    assert state["plan_digest"] == config.plan.digest()
    assert set(state["expiry"]) == {"certificate authority", "server certificate"}
    assert state["log"][-1].endswith("event=round_done round=11")


def test_the_files_are_read_once_a_second_however_many_ask(
    client: Client, config: ServerConfig, clock: Clock
) -> None:
    before = client.get("/state.json").content
    write_status(config, SITES, 13, 20, phase="stopped")
    clock.seconds = 0.9
    assert client.get("/state.json").content == before
    clock.seconds = 1.0
    assert client.get("/state.json").json()["summary"] == "stopped (after round 13)"


def test_a_hundred_browsers_cost_as_many_reads_of_a_file_as_one(config: ServerConfig) -> None:
    one, many, unshared = Clock(), Clock(), Clock()
    together = opened(config, many)
    strangers = [opened(config, unshared) for _ in range(BROWSERS)]
    alone = _reads(config, one, [opened(config, one)])
    assert _reads(config, many, [together] * BROWSERS) == alone
    # the record of rounds is read once for as long as it does not change
    assert alone["rounds.jsonl"] == 1
    assert alone["status.json"] == LOOKS
    # the count sees what pages cost that share nothing
    assert _reads(config, unshared, strangers)["rounds.jsonl"] == BROWSERS


def test_a_page_gets_the_rounds_that_it_lacks_and_all_of_another_run(
    client: Client, config: ServerConfig, clock: Clock
) -> None:
    every = client.get("/rounds.json").json()
    assert [line["round"] for line in every["rounds"]] == list(range(13))
    assert every["rounds"][7]["sites"] == {
        "harbour": "counted",
        "north": "counted",
        "valley": "late",
    }
    nothing = client.get("/rounds.json", params={"after": 13, "run": every["run"]}).json()
    assert (nothing["from"], nothing["rounds"]) == (13, [])
    lines = [round_line(index, SITES) for index in range(14)]
    write_json_lines(config.output / "rounds.jsonl", lines)
    clock.seconds = 2
    fresh = client.get("/rounds.json", params={"after": 13, "run": every["run"]}).json()
    assert [line["round"] for line in fresh["rounds"]] == [13]
    other = client.get("/rounds.json", params={"after": 13, "run": "another"}).json()
    assert (other["from"], len(other["rounds"])) == (0, 14)


def test_who_was_clipped_by_how_much_and_what_came_of_it(tmp_path: Path, clock: Clock) -> None:
    client = opened(make_live(tmp_path / "fed", clips=True), clock)
    rounds = client.get("/rounds.json").json()["rounds"]
    assert {line["round"]: line["clipped"] for line in rounds if line["clipped"]} == {
        index: {"harbour": [2.0 + index, 2 / (2.0 + index)]} for index in (3, 6, 9, 12)
    }
    assert [line["round"] for line in rounds if line["fall"]] == [9]
    assert "harbour" in rounds[9]["fall"]
    found = samples(client)
    name = "lift_site_rounds_clipped_total"
    assert [found[name, frozenset({("site", site)})] for site in SITES] == [4.0, 0.0, 0.0]


@pytest.mark.parametrize("after", ["-1", "x", "9" * 400, "٣", "1e3", ""])
def test_a_strange_number_of_rounds_gets_all_of_them(client: Client, after: str) -> None:
    answer = client.get("/rounds.json", params={"after": after})
    assert len(answer.json()["rounds"]) == 13


def test_nothing_but_get_and_six_paths_is_answered(client: Client) -> None:
    for path in PATHS:
        assert client.get(path).status_code == 200
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert client.request(method, path).status_code == 405
    for path in ("/log.txt", "/../server.key", "/state", "/%2e%2e/state/log.txt", "/docs"):
        assert client.get(path).status_code == 404


def test_every_answer_forbids_foreign_content_and_frames(client: Client) -> None:
    for path in PATHS:
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "set-cookie" not in headers
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[::]", ""])
def test_a_request_by_another_hosts_name_is_refused(client: Client, host: str) -> None:
    for path in PATHS:
        assert client.get(path, headers={"host": host}).status_code == 400
    assert client.get("/", headers={"host": "localhost:8446"}).status_code == 200


def test_the_page_itself_names_no_other_host(client: Client) -> None:
    for path in ("/", "/page.css", "/page.js"):
        addresses = re.findall(r"https?://[^\s\"'`)]+", client.get(path).text)
        # the name of SVG's elements is no address that anybody asks
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}
    script = client.get("/page.js").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


@pytest.mark.parametrize("file", ["status.json", "rounds.jsonl", "sites.json"])
def test_a_damaged_file_is_named_and_the_page_goes_on(
    client: Client, config: ServerConfig, clock: Clock, file: str
) -> None:
    folders = {"status.json": config.state, "rounds.jsonl": config.output}
    path = config.sites if file == "sites.json" else folders[file] / file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    problem = client.get("/state.json").json()["problem"]
    assert problem["what"]
    assert problem["remedy"]
    assert client.get("/metrics").status_code == 200
    path.write_bytes(whole)
    clock.seconds = 2
    assert "problem" not in client.get("/state.json").json()


def test_a_folder_without_a_run_is_shown_as_such(config: ServerConfig, clock: Clock) -> None:
    (config.output / "rounds.jsonl").unlink()
    (config.output / "run.json").unlink()
    (config.state / "status.json").unlink()
    (config.state / "log.txt").unlink()
    client = opened(config, clock)
    state = client.get("/state.json").json()
    assert state["summary"] == "not running"
    assert state["log"] == []
    assert client.get("/rounds.json").json()["rounds"] == []
    assert samples(client)["lift_up", frozenset()] == 0


def test_the_metrics_are_what_an_independent_reader_takes_from_them(client: Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    state = client.get("/state.json").json()
    found = samples(client)

    def of(name: str, **labels: str) -> float | None:
        return found.get((name, frozenset(labels.items())))

    assert of("lift_up") == 1
    assert of("lift_rounds_completed_total") == 12
    assert of("lift_rounds_planned") == 20
    assert of("lift_run_phase", phase="round") == 1
    assert of("lift_run_phase", phase="done") == 0
    for site, figures in state["sites"].items():
        assert of("lift_site_online", site=site) == float(figures["online"])
        assert of("lift_site_rounds_counted_total", site=site) == figures["counted"]
        assert of("lift_site_rounds_missed_total", site=site) == figures["missed"]
        assert of("lift_site_received_bytes_total", site=site) == figures["received_bytes"]
        assert of("lift_site_training_loss", site=site) == figures["loss"]
        psnr = of("lift_site_validation_psnr_decibels", site=site)
        assert psnr == figures["validation_psnr_db"]
        contact = datetime.fromisoformat(figures["last_contact"]).timestamp()
        assert of("lift_site_last_contact_timestamp_seconds", site=site) == contact
        # without noise there is no epsilon to tell
        assert of("lift_site_privacy_epsilon", site=site) is None
    began = of("lift_round_start_timestamp_seconds")
    assert began is not None
    assert of("lift_round_deadline_timestamp_seconds") == began + 300
    ends = datetime.fromisoformat(state["expiry"]["server certificate"]).timestamp()
    name = "lift_certificate_expiry_timestamp_seconds"
    assert of(name, certificate="server certificate") == ends


def test_metric_names_keep_to_the_conventions_and_to_the_guide(
    tmp_path: Path, clock: Clock
) -> None:
    noisy = make_live(tmp_path / "noisy", noise=True)
    plain = make_live(tmp_path / "plain")
    told: dict[str, str] = {}
    for config in (noisy, plain):
        client = opened(config, clock)
        text = client.get("/metrics").text
        # each line's own name, as written: the reader drops `_total` from a counter's
        told |= dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    for name, kind in told.items():
        assert re.fullmatch(r"lift(_[a-z]+)+", name)
        assert (kind == "counter") == name.endswith("_total")
    documented = dict(re.findall(r"^\| `(lift_\w+)` \| (\w+) \|", GUIDE.read_text(), re.MULTILINE))
    assert documented == told


def test_epsilon_is_that_of_the_rounds_in_which_a_site_was_asked(
    tmp_path: Path, clock: Clock
) -> None:
    config = make_live(tmp_path / "noisy", noise=True)
    path = config.output / "rounds.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[10:]:
        line["asked"].remove("valley")
    write_json_lines(path, lines)
    client = opened(config, clock)
    state = client.get("/state.json").json()
    assert state["epsilon"] == lines[12]["epsilon"]
    assert state["sites"]["north"]["epsilon"] >= lines[12]["epsilon"]
    assert lines[9]["epsilon"] <= state["sites"]["valley"]["epsilon"] < lines[10]["epsilon"]
    assert all(site["loss"] is None for site in state["sites"].values())
    # the export's own count of the same lines, for a plan without noise: nothing
    read = [RoundRecord.model_validate(line) for line in lines]
    assert epsilon_by_site(config.plan, read) == {}


def test_hostile_names_reach_a_reader_as_they_are(tmp_path: Path, clock: Clock) -> None:
    config = make_live(tmp_path / "fed", strangers=HOSTILE)
    client = opened(config, clock)
    state = client.get("/state.json").json()
    assert set(HOSTILE) <= set(state["sites"])
    found = samples(client)
    for name in HOSTILE:
        key = ("lift_site_rounds_counted_total", frozenset({("site", name)}))
        assert found[key] == state["sites"][name]["counted"]
