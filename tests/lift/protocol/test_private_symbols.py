"""Every name of Flower's that is not part of its public interface, in one list.

When a new release of Flower moves one, this says which, and where the code leans on it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Final

import pytest

import lift.protocol.flower

PUBLIC: Final = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
PRIVATE: Final = {
    "flwr.cli.build": {"build_fab_from_files"},
    "flwr.common.constant": {"ErrorCode", "TIMESTAMP_HEADER"},
    "flwr.common.serde": {
        "context_from_proto",
        "context_to_proto",
        "fab_to_proto",
        "run_from_proto",
    },
    "flwr.proto.control_pb2": {
        "ListNodesRequest",
        "ListRunsRequest",
        "RegisterNodeRequest",
        "StartRunRequest",
        "StopRunRequest",
        "UnregisterNodeRequest",
    },
    "flwr.proto.fleet_pb2": {"ActivateNodeRequest", "PullMessagesRequest", "PushMessagesRequest"},
    "flwr.app.message": {"make_message"},
    "flwr.proto.message_pb2": {
        "ConfirmMessageReceivedRequest",
        "PullObjectRequest",
        "PullObjectResponse",
        "PushObjectRequest",
    },
    "flwr.proto.node_pb2": {"NodeInfo"},
    "flwr.proto.runtime_pb2": {
        "AcquireTaskRequest",
        "PullAppMessagesRequest",
        "PullTaskInputRequest",
        "PushTaskOutputRequest",
    },
    "flwr.supercore.auth": {"load_superexec_auth_secret"},
    "flwr.supercore.constant": {
        "FLEET_HTTP_PUBLIC_KEY_HEADER",
        "FLEET_HTTP_SIGNATURE_HEADER",
        "SYSTEM_MESSAGE_TYPE",
        "TASK_TOKEN_HEADER",
    },
    "flwr.supercore.control": {"ControlHttpClient"},
    "flwr.supercore.date": {"now"},
    "flwr.supercore.dependencies.runtime": {"get_runtime_handlers", "get_runtime_state"},
    "flwr.supercore.dependencies.task": {"authenticate_task"},
    "flwr.supercore.error": {"ApiErrorCode", "FlowerError"},
    "flwr.supercore.fab": {"Fab"},
    "flwr.supercore.heartbeat": {"HeartbeatSender", "make_task_heartbeat_fn_http"},
    "flwr.supercore.inflatable.inflatable_object": {
        "get_all_nested_objects",
        "iterate_object_tree",
    },
    "flwr.supercore.inflatable.inflatable_protobuf_utils": {"make_pull_object_fn_protobuf"},
    "flwr.supercore.inflatable.inflatable_utils": {
        "ObjectPullError",
        "ObjectPushError",
        "inflate_object_from_contents",
        "pull_and_inflate_object_from_tree",
        "pull_objects",
    },
    "flwr.supercore.interceptors": {
        "RuntimeTokenHttpInterceptor",
        "RuntimeVersionHttpInterceptor",
    },
    "flwr.supercore.interceptors.http.superexec_auth": {"SuperExecAuthHttpInterceptor"},
    "flwr.supercore.object_store": {"ObjectStoreFactory"},
    "flwr.supercore.primitives.asymmetric": {
        "bytes_to_public_key",
        "public_key_to_bytes",
        "verify_signature",
    },
    "flwr.supercore.protobuf.client": {
        "ProtobufCall",
        "ProtobufClientInterceptor",
        "ProtobufRequestContext",
    },
    "flwr.supercore.retry": {"RetryInvoker"},
    "flwr.supercore.run": {"Run", "RunNotRunningException"},
    "flwr.supercore.runtime": {"RuntimeHttpClient"},
    "flwr.supercore.task_identity": {"TaskIdentity"},
    "flwr.server.superlink.linkstate.sql_linkstate": {"SqlLinkState"},
    "flwr.supercore": {"sql_mixin"},
    "flwr.superlink.cli.flower_superlink": {"SuperLinkLifespan"},
    "flwr.superlink.config_loader": {"SuperLinkLifespanConfig", "load_control_authn_plugin"},
    "flwr.superlink.grid.http_grid": {"HttpGrid"},
    "flwr.superlink.main": {"create_app"},
    "flwr.supercore.protobuf.constants": {"PROTOBUF_MEDIA_TYPE"},
    "flwr.supercore.protobuf.translation": {"PROTOBUF_REQUEST_TYPES"},
    "flwr.superlink.dependencies.linkstate": {"get_linkstate"},
    "flwr.superlink.routers.fleet.node_auth": {"authenticate_node"},
    "flwr.superlink.servicer.fleet": {"fleet_handlers"},
    "flwr.superlink.servicer.fleet.fleet_handlers": {"pull_object", "push_object"},
    "flwr.supernode.fleet_http_client": {"FleetHttpClient"},
    "flwr.supernode.node_auth_http_interceptor": {"NodeAuthHttpInterceptor"},
    "flwr.supernode.nodestate": {"NodeStateFactory"},
    "flwr.supernode.runtime": {"run_clientapp"},
    "flwr.supernode.runtime.run_clientapp": {
        "pull_task_input",
        "push_message",
        "push_task_output",
    },
}
REPLACED: Final = {
    "flwr.supernode.fleet_http_connection": {
        "DeactivateNodeRequest",
        "FleetHttpClient",
        "HEARTBEAT_DEFAULT_INTERVAL",
        "fab_from_proto",
        "make_simple_http_retry_invoker",
    },
    "flwr.supernode.start_client_internal": {
        "_pull_and_store_message",
        "_push_messages",
        "_verify_fab",
        "start_client_internal",
        "time",
    },
    "flwr.supernode.cli.flower_supernode": {
        "SuperNodeLifespanConfig",
        "_start_supernode_http_api",
    },
    "flwr.supercore.heartbeat": {"HEARTBEAT_DEFAULT_INTERVAL"},
    "flwr.supercore.telemetry": {"FLWR_TELEMETRY_ENABLED"},
    "flwr.superlink.routers.fleet.router": {
        "fleet_confirm_message_received",
        "fleet_pull_messages",
        "fleet_pull_object",
        "fleet_push_messages",
        "fleet_push_object",
        "fleet_send_node_heartbeat",
    },
    "flwr.supercore.routers.runtime.router": {
        "confirm_message_received",
        "get_nodes",
        "pull_messages",
        "pull_object",
        "push_messages",
        "push_object",
    },
}
"""What `lift.protocol.flower` replaces or calls inside Flower's own modules."""


def _imported() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    folder = Path(inspect.getfile(lift.protocol.flower)).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr"):
                names = {alias.name for alias in node.names}
                found.setdefault(node.module or "", set()).update(names)
    return found


def test_every_private_import_stands_in_the_list() -> None:
    private = {module: names for module, names in _imported().items() if module not in PUBLIC}
    assert private == PRIVATE


@pytest.mark.parametrize("module", sorted({*PRIVATE, *REPLACED}))
def test_flower_still_has_it(module: str) -> None:
    there = importlib.import_module(module)
    wanted = PRIVATE.get(module, set()) | REPLACED.get(module, set())
    assert {name for name in wanted if not hasattr(there, name)} == set()


def test_flower_does_not_refuse_a_site_of_another_version_of_flower() -> None:
    fleet = importlib.import_module("flwr.superlink.routers.fleet.router").router
    (check,) = [depends.dependency for depends in fleet.dependencies]
    # the day it does, docs/guides/operations.md has to say what each side shows
    assert check._reject_incompatible is False


def test_what_is_replaced_is_what_flower_calls() -> None:
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    source = inspect.getsource(loop)
    # replacing a name helps only as long as Flower looks it up there
    assert "_verify_fab(fab, trusted_entities)" in source
    assert "time.sleep(" in source
    assert "run_id = _pull_and_store_message(\n" in source
    assert "            _push_messages(\n" in source
    assert 'fab.verifications.get("valid_license", "")' in source
    telemetry = importlib.import_module("flwr.supercore.telemetry")
    assert 'if FLWR_TELEMETRY_ENABLED == "1":' in inspect.getsource(telemetry.create_event)
    connection = importlib.import_module("flwr.supernode.fleet_http_connection")
    source = inspect.getsource(connection.http_request_response)
    assert "FleetHttpClient.from_server_address(" in source
    assert "heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL" in source
    assert "retry_invoker = make_simple_http_retry_invoker()" in source
