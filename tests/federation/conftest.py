"""Volumes and generator are made once; each federation has folders and ports of its own."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lift.protocol.flower.superlink import make_app
from tests.end_to_end.tiny_run import TinyRun, make_tiny_run
from tests.federation.attackers import Server, running_server
from tests.federation.desk import Real, real_site
from tests.federation.world import Federation, add_north, simulate


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Three sites' volumes and a bundle, which no test changes."""
    tiny = make_tiny_run(tmp_path_factory.mktemp("volumes"))
    add_north(tiny)
    return tiny


@pytest.fixture
def federation(volumes: TinyRun, tmp_path: Path) -> Iterator[Federation]:
    """A federation to be made; whatever runs of it at the end is stopped."""
    made = Federation(tmp_path, volumes)
    yield made
    made.close()


@pytest.fixture(scope="session")
def finished(volumes: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation that ran to its end, undisturbed, and whose sites were then told to stop."""
    made = Federation(tmp_path_factory.mktemp("finished"), volumes)
    try:
        made.make()
        made.start_server()
        made.start_sites()
        assert made.wait_server() == 0, made.log("server")
        made.stop_sites()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def simulated(finished: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a simulation of that federation."""
    return simulate(finished, tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A SuperLink that runs and admits three sites."""
    with running_server(tmp_path_factory.mktemp("doors")) as made:
        yield made


@pytest.fixture(scope="module")
def app(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same app in this process, with a state of its own."""
    database = tmp_path_factory.mktemp("app") / "superlink.db"
    with warnings.catch_warnings():
        # Flower's way of calling its migrations
        warnings.simplefilter("ignore", DeprecationWarning)
        return make_app(dataclasses.replace(server.settings, database=str(database)))


@pytest.fixture
def real(volumes: TinyRun, tmp_path: Path) -> Real:
    """A real session on tiny volumes, without a wire."""
    return real_site(volumes, tmp_path)
