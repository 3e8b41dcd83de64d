"""`lift-server try` below its processes: the settings that it writes, and how children end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest

from lift.config.server import ServerConfig
from lift.errors import ConfigError
from lift_server.sites.provisioning import CONFIG_FILE, init_folder
from lift_server.trial.folder import TrialFolder, open_folder
from lift_server.trial.settings import Privacy, Trial, with_values
from tests.federation.world import runs, until

PARENT = """
import subprocess, sys
from lift_server.trial.children import _bound
sleeps = "import time; print('up', flush=True); time.sleep(600)"
child = subprocess.Popen(_bound(sys.executable, "-c", sleeps), stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
input()
"""


def trial(**changes: object) -> Trial:
    data = {"sites": 3, "patients": 8, "rounds": 5, "privacy": "none", **changes}
    return Trial.from_data(data, "test")


@pytest.mark.parametrize("mode", get_args(Privacy))
def test_every_privacy_mode_fits_the_settings_that_init_writes(tmp_path: Path, mode: str) -> None:
    init_folder(tmp_path, ["localhost"], "trial")
    path = tmp_path / CONFIG_FILE
    before = path.read_text(encoding="utf-8")
    text = with_values(before, trial(privacy=mode, rounds=9).plan())
    path.write_text(text, encoding="utf-8")
    plan = ServerConfig.from_yaml(path).plan
    assert (plan.privacy.mode, plan.federation.rounds, plan.threads) == (mode, 9, 1)
    # a second time gives the same: a set-up that was broken off begins again
    assert with_values(text, trial(privacy=mode, rounds=9).plan()) == text
    comments = [line.partition("#")[2] for line in before.splitlines()]
    assert [line.partition("#")[2] for line in text.splitlines()] == comments


@pytest.mark.parametrize("text", ["", "# key: 1\n", "key: 1\nother:\n  key: 2\n"])
def test_a_key_that_is_not_there_once_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        with_values(text, {"key": 3})


def test_values_are_replaced_and_comments_and_other_keys_stay() -> None:
    text = 'a: ""   # of "a"\nb: {c: 1, d: [2, 3]}\n  e: x  # e: y\nef: z\n'
    values = {"a": '"#1"', "b": "{}", "e": "1 2"}
    assert with_values(text, values) == 'a: "#1"   # of "a"\nb: {}\n  e: 1 2  # e: y\nef: z\n'


def test_sites_have_phantoms_and_names_of_their_own() -> None:
    many = trial(sites=12)
    assert len(set(many.names)) == 12
    assert len({many.phantoms(name)["seed"] for name in many.names}) == 12
    assert trial(sites=2).names == many.names[:2]


def test_what_a_folder_holds_is_found_again_and_other_options_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    assert open_folder(folder, trial()).trial == trial()
    trial(made=True).write(folder)
    assert open_folder(folder, trial()).trial.made
    with pytest.raises(ConfigError) as refused:
        open_folder(folder, trial(sites=2))
    assert "sites: 3" in refused.value.seen


def test_a_site_whose_settings_are_wrong_ends_the_trial_with_its_words(tmp_path: Path) -> None:
    folder, said = TrialFolder(tmp_path, trial()), list[str]()
    with folder.crew.kept():
        folder.start_site("north")
        assert folder.keep_sites(["north"], said.append) == []
        until(lambda: folder.crew.ended("north") is not None, 60, "the end of the site")
        with pytest.raises(click.exceptions.Exit) as ended:
            folder.keep_sites(["north"], said.append)
    assert ended.value.exit_code == 2
    assert "site.yaml" in said[-1]


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert runs(child)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not runs(child), 30, "the end of the child")
