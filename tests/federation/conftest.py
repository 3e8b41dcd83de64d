"""Volumes and generator are made once; each federation has folders and ports of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.tiny_run import TinyRun, make_tiny_run
from tests.federation.network import ConnectProxy, TlsTap
from tests.federation.world import Federation, add_north


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


@pytest.fixture(scope="module")
def finished(volumes: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation that ran to its end, undisturbed."""
    made = Federation(tmp_path_factory.mktemp("finished"), volumes)
    try:
        made.make()
        made.start_server()
        made.start_sites()
        assert made.wait_server() == 0, made.log("server")
        yield made
    finally:
        made.close()


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    """A CONNECT proxy."""
    made = ConnectProxy()
    with made.running():
        yield made


@pytest.fixture
def tap() -> Iterator[TlsTap]:
    """An ear between sites and server, behind TLS."""
    made = TlsTap()
    with made.running():
        yield made
