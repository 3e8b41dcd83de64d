"""The gRPC health service (`grpc.health.v1`) on 127.0.0.1, for orchestrators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lift.errors import ProtocolError
from lift.protocol.local_port import free_local_port


@contextlib.contextmanager
def health_service(port: int | None) -> Iterator[None]:
    """Answers SERVING inside the block, for the whole server; None serves nothing.

    Raises:
        ProtocolError: the port is taken.
    """
    if port is None:
        yield
        return
    # asked first: gRPC would print lines of its own
    if free_local_port(port) != port:
        raise _taken(port)
    server = grpc.server(ThreadPoolExecutor(max_workers=2), options=[("grpc.so_reuseport", 0)])
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        bound = 0
    if bound != port:
        raise _taken(port)
    server.start()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        servicer.enter_graceful_shutdown()
        server.stop(grace=1).wait()


def _taken(port: int) -> ProtocolError:
    return ProtocolError(
        "the health service's port is taken",
        where="health_port",
        seen=f"127.0.0.1:{port} is in use",
        remedy="Nothing was started. Choose another health_port, or null for none.",
    )
