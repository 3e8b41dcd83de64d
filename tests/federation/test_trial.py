"""`lift-server try`: real processes that end with their parent, and the simulation's very mixer."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from lift.config.server import ServerConfig
from lift.config.site import SiteConfig
from lift_server.sites.roster import Roster
from tests.end_to_end.tiny_run import bytes_under, check_refusal, command, run_outside
from tests.federation.world import children, run, runs, until

pytestmark = pytest.mark.timeout(900)
SITES = ("north", "harbour")
OPTIONS = ("--sites", "2", "--patients", "6", "--rounds", "5")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A trial that was ended by force in its federation, then went to its end with the drill."""
    folder = tmp_path_factory.mktemp("trial") / "it"
    log = folder.with_name("first.txt")
    with log.open("wb") as output:
        first = subprocess.Popen(
            command("lift-server", "try", folder, *OPTIONS),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        rounds = folder / "server" / "run" / "rounds.jsonl"
        until(rounds.is_file, 400, "the first round")
        started = children(first.pid)
        # the server and the sites, each with processes of its own
        assert len(started) == 1 + len(SITES)
        below = [pid for parent in started for pid in children(parent)]
        assert len(below) >= 1 + len(SITES)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(30)
    # nobody could tell them: the system did
    until(lambda: not any(map(runs, [*started, *below])), 30, "the end of all processes")
    done = run_outside("lift-server", "try", folder, *OPTIONS, "--drill")
    assert done.code == 0, done
    return folder, done.stderr


@pytest.mark.slow
def test_the_mixer_is_the_simulations_bit_for_bit(trial: tuple[Path, str]) -> None:
    folder, said = trial
    (line,) = [line for line in said.splitlines() if line.startswith("  lift-simulate ")]
    program, *arguments = line.split()
    assert run_outside(program, *arguments).code == 0
    mixer = (folder / "server" / "run" / "mixer.safetensors").read_bytes()
    assert mixer == (folder / "simulated" / "mixer.safetensors").read_bytes()
    # the drill's federation lost a site on the way, and has another one
    assert mixer != (folder / "server" / "drill" / "mixer.safetensors").read_bytes()


@pytest.mark.slow
def test_the_drill_tells_what_it_saw(trial: tuple[Path, str]) -> None:
    folder, said = trial
    for words in (
        "kill site north",
        "kill the server",
        "remove site harbour",
        "from round 5 on it is not asked any more: 1 of 1 counted",
        "the mixer of round 3 is the same, bit for bit, as in the first run",
    ):
        assert words in " ".join(said.split()), words
    # the removed site is back: the folder is as before
    settings = ServerConfig.from_yaml(folder / "server" / "server.yaml").under(folder / "server")
    assert set(Roster.read(settings.sites).admitted_keys) == set(SITES)


@pytest.mark.slow
def test_the_folder_is_what_the_guides_make_and_passes_their_checks(
    trial: tuple[Path, str],
) -> None:
    folder, said = trial
    run("lift-server", "check", folder / "server")
    for name in SITES:
        site = folder / "sites" / name
        assert {"site.key", "site.pub", "site.yaml", "kit", "data", "work"} == {
            path.name for path in site.iterdir()
        }
        assert (site / "site.key").stat().st_mode & 0o777 == 0o600
        settings = SiteConfig.from_yaml(site / "site.yaml")
        # the folder can be carried away as a whole
        assert not settings.data.root.is_absolute()
        assert f"report of {name}: {site / 'work' / 'report' / 'report.html'}" in said
        assert (site / "work" / "report" / "report.html").is_file()
    assert "next: " in said


@pytest.mark.slow
def test_the_same_command_again_changes_nothing_and_says_what_is_there(
    trial: tuple[Path, str],
) -> None:
    folder, _ = trial
    without = ("lock", "server/sites.json.lock")
    before = bytes_under(folder, without=without)
    done = run_outside("lift-server", "try", folder, *OPTIONS)
    assert done.code == 0, done
    assert f"mixer: {folder / 'server' / 'run' / 'mixer.safetensors'}" in done.stderr
    assert "The drill" not in done.stderr
    assert bytes_under(folder, without=without) == before


@pytest.mark.full
def test_ctrl_c_ends_every_process_and_the_folder_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    process = subprocess.Popen(
        command("lift-server", "try", folder, *OPTIONS),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        status = folder / "server" / "state" / "status.json"
        until(status.is_file, 400, "the start of the server")
        started = children(process.pid)
        assert len(started) == 1 + len(SITES)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped, with all programs of the trial; the same command goes on" in said
    assert not any(map(runs, started))


@pytest.mark.slow
def test_a_folder_of_other_things_or_of_another_trial_is_refused(
    trial: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    done = run_outside("lift-server", "try", tmp_path)
    check_refusal(done, 2, names=(str(tmp_path), "not empty"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    other = run_outside("lift-server", "try", trial[0], *OPTIONS[:-1], "6")
    check_refusal(other, 2, names=("rounds: 5",))
