"""Ask whether a server admits a site's key, without joining.

Flower's fleet API has no question for this, so a request is sent that it must refuse: to
activate the key's node, with a lease of no length. An unknown or removed key is refused for
being unknown; an admitted one is refused for the lease, which is looked at next, before any
state is touched. A site that is connected stays connected, one that is not stays offline.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from lift.errors import ConfigError, ProtocolError
from lift.protocol.flower.connection import ADMISSION_CHECK, SESSION_HEADER

_TIMEOUT_S: Final = 10.0
# shorter than Flower's shortest: a server that took it would at once forget the site again
_NO_LEASE: Final = 0.0
_NOT_ASKED: Final = "cannot ask the server for this site's key"


def admission_problem(address: str, ca: Path, key_path: Path) -> str | None:
    """Return why the server does not admit the site's key, or None.

    One signed request; nothing changes at the server, whether the site is connected or not.
    HTTPS_PROXY is honoured.

    Args:
        address: the server's, `host:port`.
        ca: the certificate authority's certificate (PEM): the only one that is trusted.
        key_path: the site's private key (OpenSSH).

    Raises:
        ConfigError: key or certificate cannot be read.
        ProtocolError: the server could not be reached, did not take the signature, or gave an
            answer of another version.
    """
    key, context = _read_key(key_path), _read_authority(ca)
    request = ActivateNodeRequest(
        public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=_NO_LEASE
    )
    interceptors: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    try:
        with FleetHttpClient(
            f"https://{address}", interceptors=interceptors, verify=context, timeout=_TIMEOUT_S
        ) as client:
            client._client.headers[SESSION_HEADER] = ADMISSION_CHECK  # noqa: SLF001
            client.ActivateNode(request)
    except httpx.HTTPStatusError as error:
        return _meaning(address, error.response)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ProtocolError(
            _NOT_ASKED,
            where=address,
            seen=str(error) or type(error).__name__,
            remedy="Ask the coordinator whether the server is up, then try again.",
        ) from None
    raise _other_answer(address, "it took a request that it should have refused")


def _meaning(address: str, answer: httpx.Response) -> str | None:
    refusal = FlowerError.from_json(answer.text)
    code = None if refusal is None else refusal.code
    if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return None
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return (
            "the server does not know this site's key: it was not admitted, it was removed, or "
            "a running server has not begun a round since"
        )
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise ProtocolError(
            "the server does not take this site's signature",
            where=address,
            seen="it was refused; it holds for 5 minutes by the server's clock",
            remedy="Set this machine's clock by NTP, then try again.",
        )
    raise _other_answer(address, f"HTTP status {answer.status_code}, error code {code}")


def _other_answer(address: str, seen: str) -> ProtocolError:
    return ProtocolError(
        _NOT_ASKED,
        where=address,
        seen=seen,
        remedy="Ask the coordinator whether both sides run the same version.",
    )


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unreadable(path, error, "an OpenSSH private key without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _unreadable(path, None, "an EC P-384 key")
    return key


def _read_authority(path: Path) -> ssl.SSLContext:
    # as the site's own connection: this authority alone, and the name is checked
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=path)
    except OSError as error:
        raise _unreadable(path, error, "a PEM certificate") from None
    return context


def _unreadable(path: Path, error: Exception | None, needed: str) -> ConfigError:
    reason = "not readable"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        reason = error.strerror or reason
    return ConfigError(
        _NOT_ASKED,
        where=str(path),
        seen=f"{reason}; needed: {needed}",
        remedy="Restore the file from your backup, or ask the coordinator for a new kit.",
    )
