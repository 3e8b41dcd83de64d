"""The health service: it answers, and a port that is taken is an error of the connection."""

from __future__ import annotations

import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lift.errors import EXIT_CODES, ProtocolError
from lift.protocol.health import health_service
from tests.ports import free_port


def test_it_serves_inside_the_block() -> None:
    port = free_port()
    with health_service(port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = check(health_pb2.HealthCheckRequest(), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_port_that_is_taken_is_told_and_nothing_else_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ProtocolError) as caught, health_service(port):
            pass
    assert caught.value.exit_code == EXIT_CODES["connection"].number
    assert str(port) in caught.value.seen
    assert capfd.readouterr() == ("", "")
