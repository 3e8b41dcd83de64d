"""The API between the two processes of a site, on 127.0.0.1."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts
from flwr.app import RecordDict
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from lift.config.plan import Plan, TaskPlan
from lift.config.privacy import NoPrivacy
from lift.protocol.codec import encode
from lift.protocol.flower.children import write_local_certificate
from lift.protocol.flower.records import pack
from lift.protocol.flower.supernode import CHILD_PATHS
from lift.protocol.messages import Kind, Parcel, StatisticsRequest
from tests.federation.local_child import (
    LOCAL_CERTIFICATE,
    LOCAL_KEY,
    ChildApi,
    first_reply,
    stub_fab,
)

pytestmark = pytest.mark.timeout(300)
SECRET = "s" * 64


def a_request() -> RecordDict:
    task = TaskPlan(source=("t1n",), target="t2f")
    plan = Plan(task=task, privacy=NoPrivacy(mode="none"))
    return pack(encode(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))))


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> ChildApi:
    folder = tmp_path_factory.mktemp("child")
    return ChildApi(stub_fab(), a_request(), folder, secret=SECRET.encode())


def test_the_childs_api_gives_nothing_without_secret_or_token(child: ChildApi) -> None:
    paths = {str(found.path or "") for found in iter_route_contexts(child.app.routes)} - {""}
    # a route that Flower adds is closed until it stands in the list
    assert len(paths) > 15
    assert paths > CHILD_PATHS
    wrong = [
        {},
        {"flwr-task-token": "x"},
        {"flwr-task-token": ""},
        {"authorization": "Bearer x"},
        {"authorization": "Bearer"},
    ]
    with child.running(), child.http() as client:
        for path in sorted(paths - CHILD_PATHS):
            for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
                assert client.request(method, path).status_code == 404, path
        for path in sorted(CHILD_PATHS):
            for headers in wrong:
                sent = headers | {"content-type": PROTOBUF_MEDIA_TYPE}
                answer = client.post(path, content=b"", headers=sent)
                assert answer.status_code in {401, 403}, (path, headers, answer)
                plain = headers | {"content-type": "application/json"}
                assert client.post(path, content=b"{}", headers=plain).status_code >= 400
            for method in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS"):
                assert client.request(method, path).status_code in {405, 411}, path
    assert not child.replies()


@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect", "/openapi.json"])
def test_the_childs_api_has_no_page_for_anybody(child: ChildApi, path: str) -> None:
    with child.running(), child.http() as client:
        assert client.get(path).status_code == 404


def test_an_impostor_on_the_local_port_gets_no_answer(tmp_path: Path) -> None:
    (tmp_path / "executor.secret").write_bytes(SECRET.encode())
    write_local_certificate(tmp_path / LOCAL_CERTIFICATE, tmp_path / LOCAL_KEY)
    (tmp_path / "elsewhere").mkdir()
    impostor = ChildApi(stub_fab(), a_request(), tmp_path / "elsewhere", secret=None)
    asked: list[Parcel] = []
    assert first_reply(impostor, tmp_path, asked) is None
    assert not asked
