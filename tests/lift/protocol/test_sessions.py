"""One key, one session: an ASGI app before Flower's."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from lift.protocol.flower.connection import ADMISSION_CHECK, KEY_IN_USE, SECOND_HEADER
from lift.protocol.flower.sessions import Sessions

KEY = ec.generate_private_key(ec.SECP384R1())
OTHER = ec.generate_private_key(ec.SECP384R1())
LEASE_S = 20.0


@dataclass
class World:
    """The app behind it takes everything, unless `status` says otherwise."""

    status: int = 200
    now: float = 0.0
    reached: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sessions = Sessions(
            self._app, lease_s=LEASE_S, on_second=self.alarms.append, clock=lambda: self.now
        )

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        del receive
        self.reached.append(scope["path"])
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask(
        self,
        name: str,
        session: str | None,
        *,
        previous: str | None = None,
        signed_by: ec.EllipticCurvePrivateKey = KEY,
    ) -> tuple[int, bool]:
        """Status of a request with KEY's name, and whether the answer tells of a second session."""
        stamp = now().isoformat()
        headers = {
            "flwr-public-key": b64encode(public_key_to_bytes(KEY.public_key())).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": b64encode(sign_message(signed_by, stamp.encode())).decode(),
        }
        if session is not None:
            headers["x-lift-session"] = session
        if previous is not None:
            headers["x-lift-previous-session"] = previous
        scope = {
            "type": "http",
            "path": f"/v1/fleet/{name}",
            "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
        }
        events: list[MutableMapping[str, Any]] = []

        async def send(event: MutableMapping[str, Any]) -> None:
            events.append(event)

        async def receive() -> MutableMapping[str, Any]:
            return {}

        asyncio.run(self.sessions(scope, receive, send))
        start = events[0]
        return start["status"], SECOND_HEADER.encode() in dict(start["headers"])


@pytest.fixture
def world() -> World:
    made = World()
    assert made.ask("activate-node", "owner") == (200, False)
    return made


@pytest.mark.parametrize("name", ["activate-node", "pull-messages", "push-messages"])
@pytest.mark.parametrize("session", ["twin", None])
def test_a_second_session_is_refused_and_the_owner_is_told_once(
    world: World, name: str, session: str | None
) -> None:
    reached = list(world.reached)
    assert world.ask(name, session)[0] == KEY_IN_USE
    assert world.ask(name, session)[0] == KEY_IN_USE
    assert world.reached == reached
    assert len(world.alarms) == 1
    assert world.ask("pull-messages", "owner") == (200, True)
    assert world.ask("pull-messages", "owner") == (200, False)


def test_a_stranger_raises_no_alarm(world: World) -> None:
    assert world.ask("pull-messages", "twin", signed_by=OTHER)[0] == KEY_IN_USE
    assert not world.alarms


def test_a_restarted_site_takes_over_with_the_number_before(world: World) -> None:
    assert world.ask("deactivate-node", "new", previous="owner")[0] == 200
    assert world.ask("activate-node", "new", previous="owner")[0] == 200
    assert world.ask("pull-messages", "owner")[0] == KEY_IN_USE


def test_a_guessed_number_does_not(world: World) -> None:
    assert world.ask("activate-node", "new", previous="guess")[0] == KEY_IN_USE


def test_a_silent_session_ends_with_its_lease(world: World) -> None:
    world.now = LEASE_S
    assert world.ask("activate-node", "new")[0] == KEY_IN_USE
    world.now = LEASE_S + 1
    assert world.ask("activate-node", "new")[0] == 200


def test_a_session_that_speaks_keeps_the_key(world: World) -> None:
    for _ in range(3):
        world.now += LEASE_S - 1
        assert world.ask("send-node-heartbeat", "owner")[0] == 200
    assert world.ask("activate-node", "new")[0] == KEY_IN_USE


def test_a_site_that_left_frees_the_key(world: World) -> None:
    assert world.ask("deactivate-node", "owner")[0] == 200
    assert world.ask("activate-node", "new")[0] == 200


def test_what_flower_refuses_begins_no_session() -> None:
    world = World(status=401)
    assert world.ask("activate-node", "stranger")[0] == 401
    world.status = 200
    assert world.ask("activate-node", "owner")[0] == 200


def test_the_admission_check_takes_no_session_and_reaches_flower(world: World) -> None:
    assert world.ask("activate-node", ADMISSION_CHECK)[0] == 200
    assert not world.alarms
    assert world.ask("pull-messages", "owner")[0] == 200
    # and is good for nothing else
    assert world.ask("pull-messages", ADMISSION_CHECK)[0] == KEY_IN_USE
