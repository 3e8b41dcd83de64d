"""Which cipher suites our servers take: a real handshake with each, in memory."""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import uvicorn

from lift.protocol.flower.children import write_local_certificate
from lift.protocol.flower.superlink import SuperLinkSettings, door_config
from lift.protocol.flower.supernode import take_sound_ciphers_alone

# what uvicorn loads for web sockets, which nobody here speaks
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CBC = (
    "ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA256:"
    "ECDHE-ECDSA-AES256-SHA:ECDHE-ECDSA-AES128-SHA"
)
SOUND = ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256")
Made = Callable[[Path], ssl.SSLContext]


async def nobody(_scope: object, _receive: object, _send: object) -> None:
    """An app that is never asked."""


def files_of(folder: Path) -> dict[str, str]:
    certificate, key = folder / "server.pem", folder / "server.key"
    if not key.exists():
        write_local_certificate(certificate, key)
    return {"certificate": str(certificate), "key": str(key)}


def loaded(config: uvicorn.Config) -> ssl.SSLContext:
    config.load()
    assert config.ssl is not None
    return config.ssl


def of_the_server(folder: Path) -> ssl.SSLContext:
    """Both of its doors."""
    settings = SuperLinkSettings(
        listen_host="127.0.0.1",
        listen_port=1,
        control_port=1,
        ca="",
        database="",
        secret="",
        second_sessions="",
        **files_of(folder),
    )
    return loaded(door_config(settings, nobody, "127.0.0.1", 1, lifespan=False))


def of_a_site(folder: Path) -> ssl.SSLContext:
    """The API on 127.0.0.1, as Flower makes it."""
    command = importlib.import_module("flwr.supernode.cli.flower_supernode")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "uvicorn", uvicorn)
        take_sound_ciphers_alone(command)
        made = files_of(folder)
        return loaded(
            command.uvicorn.Config(
                nobody, ssl_certfile=made["certificate"], ssl_keyfile=made["key"]
            )
        )


def as_uvicorn_would(folder: Path) -> ssl.SSLContext:
    made = files_of(folder)
    return loaded(uvicorn.Config(nobody, ssl_certfile=made["certificate"], ssl_keyfile=made["key"]))


def shaken(server: ssl.SSLContext, ciphers: str | None, folder: Path) -> tuple[str, str]:
    """The suite and the version that both sides agree on; an SSLError where there is none."""
    client = ssl.create_default_context(cafile=files_of(folder)["certificate"])
    client.check_hostname = False
    if ciphers is not None:
        client.set_ciphers(ciphers)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [server.wrap_bio(there, back, server_side=True), client.wrap_bio(back, there)]
    done = [False, False]
    for _ in range(10):
        for index in (1, 0):
            try:
                ends[index].do_handshake()
                done[index] = True
            except ssl.SSLWantReadError:
                continue
    assert done == [True, True]
    agreed = ends[0].cipher()
    assert agreed is not None
    return agreed[0], str(ends[0].version())


@pytest.mark.parametrize("made", [of_the_server, of_a_site])
def test_a_cbc_suite_is_refused_and_a_sound_one_is_taken(made: Made, tmp_path: Path) -> None:
    context = made(tmp_path)
    for suite in CBC.split(":"):
        with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
            shaken(context, suite, tmp_path)
    for suite in SOUND:
        assert shaken(context, suite, tmp_path) == (suite, "TLSv1.2")
    assert shaken(context, None, tmp_path)[1] == "TLSv1.3"


def test_without_the_list_a_cbc_suite_is_taken(tmp_path: Path) -> None:
    suite, version = shaken(as_uvicorn_would(tmp_path), CBC, tmp_path)
    assert suite in CBC.split(":")
    assert version == "TLSv1.2"
