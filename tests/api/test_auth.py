"""Who may call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event

from alignez_core.engines.fake.engine import FakeEngine
from api.auth import Authenticator
from api.metrics import Metrics
from profiles.errors import Unauthenticated
from profiles.models import ApiKey
from profiles.service import KeySpec, create_key, revoke_key
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.api.conftest import Tenant, serving
from tests.api.raw_http import raw_connection, read_reply

OPEN = {"/health", "/ready"}


def test_every_route_but_the_probes_needs_a_key(app: FastAPI, client: TestClient) -> None:
    schema = app.openapi()
    seen = 0
    for path, operations in schema["paths"].items():
        for method in operations:
            if path in OPEN:
                continue
            url = path.replace("{", "").replace("}", "").replace("number", "1")
            # Malformed, so that only a key checked before the body is parsed gives 401.
            reply = client.request(method, url, content=b"{", headers={"content-type": "application/json"})
            assert reply.status_code == 401, (method, path)
            assert reply.headers["www-authenticate"] == "Bearer"
            seen += 1
    assert seen > 30


def test_without_a_key_the_body_is_not_waited_for_and_the_connection_stays(make_app: Any) -> None:
    body = b"x" * 200_000
    with serving(make_app(role="control")) as (url, _), raw_connection(url) as connection:
        head = b"POST /v1/profiles HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        connection.sendall(head % len(body))
        assert read_reply(connection)[0] == 401  # nothing of the body was sent yet
        connection.sendall(body + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_reply(connection)[0] == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic abc", "Bearer unknown", "Bearer az_" + "x" * 43, "Bearer " + "x" * 5000,
     "Bearer \xfc\xfc"],
)  # fmt: skip
def test_what_is_no_valid_key_is_refused_the_same_way(client: TestClient, header: str) -> None:
    reply = client.get("/v1/profiles", headers={b"Authorization": header.encode("latin-1")})
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "unauthenticated"


def test_openai_paths_refuse_in_openais_envelope(client: TestClient) -> None:
    error = client.post("/v1/chat/completions", json={"model": "fake", "messages": []}).json()["error"]
    assert error["type"] == "authentication_error"
    assert set(error) >= {"message", "type", "param", "code"}


def test_the_scheme_is_case_insensitive(tenant: Tenant) -> None:
    assert tenant.client.get("/v1/jobs", headers={"Authorization": f"bearer {tenant.secret}"}).status_code == 200


@pytest.mark.parametrize("path", ["tenants", "keys", "audit", "usage", "profiles"])
def test_members_are_kept_out_of_administration(tenant: Tenant, operator: Tenant, path: str) -> None:
    reply = tenant.get(f"/admin/{path}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden")
    assert operator.get(f"/admin/{path}").status_code == 200


def test_an_expired_key_is_refused(tenant: Tenant) -> None:
    with UnitOfWork.open(tenant.sessions, PLATFORM) as uow:
        row, secret = create_key(uow, tenant.caller.tenant_id, KeySpec("member", "short"))
        uow.session.get_one(ApiKey, row.id).expires_at = datetime.now(UTC) - timedelta(seconds=1)
    assert tenant.client.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 401


def test_a_key_revoked_here_stops_at_once(operator: Tenant) -> None:
    made = operator.post("/admin/keys", json={"name": "brief"}).json()
    header = {"Authorization": f"Bearer {made['secret']}"}
    assert operator.client.get("/v1/jobs", headers=header).status_code == 200
    assert operator.delete(f"/admin/keys/{made['id']}").json()["revoked_at"]
    assert operator.client.get("/v1/jobs", headers=header).status_code == 401


def test_a_key_revoked_elsewhere_stops_after_the_cache_time(tenant: Tenant) -> None:
    now = 100.0
    known = Authenticator(tenant.sessions, Metrics(), ttl_s=3.0, size=10, timer=lambda: now)
    header = tenant.headers["Authorization"]
    assert known.recall(header) is None
    assert known.look_up(header, None) == known.recall(header) == tenant.caller
    with UnitOfWork.open(tenant.sessions, PLATFORM) as uow:
        assert isinstance(tenant.caller.key_id, UUID)
        revoke_key(uow, tenant.caller.tenant_id, tenant.caller.key_id)
    now = 102.9
    assert known.recall(header) == tenant.caller
    now = 103.0
    assert known.recall(header) is None
    with pytest.raises(Unauthenticated):
        known.look_up(header, None)


def test_generation_for_a_known_key_asks_the_database_nothing(
    tenant: Tenant, sessions: SessionFactory, engine: FakeEngine
) -> None:
    assert tenant.chat().status_code == 200
    statements: list[str] = []

    def note(*args: Any) -> None:
        statements.append(args[2])

    bind = sessions.kw["bind"]
    event.listen(bind, "before_cursor_execute", note)
    try:
        assert tenant.chat().status_code == 200
    finally:
        event.remove(bind, "before_cursor_execute", note)
    assert statements == []
