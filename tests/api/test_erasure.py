"""Erasing by REST: a receipt, and caches of all processes that forget."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from alignez_core.engines.fake.engine import FakeEngine
from tests.api.conftest import AppMaker, Tenant

GLOBAL = {"method": "alignez", "conditional": False}


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def cached(app: Any) -> int:
    """Number of versions and edits that a process holds."""
    personaliser = app.state.services.model.personaliser
    return len(personaliser._versions._values) + len(personaliser._doses._values)


def test_an_erased_profile_is_forgotten_by_every_process(make_app: AppMaker, tenant: Tenant) -> None:
    tenant.ready("p", fit=GLOBAL)
    apps = [make_app(FakeEngine()) for _ in range(2)]
    with TestClient(apps[0]) as first, TestClient(apps[1]) as second:
        body = {"model": "fake@p#1", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        for client in (first, second):
            assert client.post("/v1/chat/completions", json=body, headers=tenant.headers).status_code == 200
        assert eventually(lambda: all(cached(app) for app in apps))
        receipt = first.delete("/v1/profiles/p", params={"erase": True}, headers=tenant.headers)
        assert receipt.status_code == 200
        assert receipt.json()["removed"]["profile_versions"] == 1
        assert eventually(lambda: not any(cached(app) for app in apps))
        for client in (first, second):
            assert client.post("/v1/chat/completions", json=body, headers=tenant.headers).status_code == 404
    entry = next(row for row in audit_of(tenant) if row["action"] == "profile.erase")
    assert entry["details"]["removed"] == receipt.json()["removed"]
    assert entry["request_id"] == receipt.headers["x-request-id"]


def audit_of(tenant: Tenant) -> list[dict[str, Any]]:
    from profiles.service import audit_entries
    from profiles.uow import UnitOfWork

    with UnitOfWork.open(tenant.sessions, tenant.caller.tenant_id) as uow:
        rows = audit_entries(uow, tenant.caller.tenant_id).rows
        return [{"action": r.action, "details": r.details, "request_id": r.request_id} for r in rows]


def test_a_revoked_key_is_forgotten_by_every_process(make_app: AppMaker, operator: Tenant, tenant: Tenant) -> None:
    apps = [make_app(FakeEngine(), auth_cache_s=60) for _ in range(2)]
    with TestClient(apps[0]) as first, TestClient(apps[1]) as second:
        for client in (first, second):
            assert client.get("/v1/models", headers=tenant.headers).status_code == 200
        ended = first.delete(
            f"/admin/keys/{tenant.caller.key_id}", params={"tenant": str(tenant.caller.tenant_id)},
            headers=operator.headers,
        )  # fmt: skip
        assert ended.status_code == 200
        assert eventually(lambda: second.get("/v1/models", headers=tenant.headers).status_code == 401)


def test_a_request_that_began_before_an_erasure_caches_nothing_after_it(make_app: AppMaker, tenant: Tenant) -> None:
    tenant.ready("p", fit=GLOBAL)
    app = make_app(FakeEngine())
    with TestClient(app) as client:
        personaliser = app.state.services.model.personaliser
        load = personaliser._load

        def slowly(*arguments: Any) -> Any:
            loaded = load(*arguments)
            assert tenant.delete("/v1/profiles/p", params={"erase": True}).status_code == 200
            assert eventually(lambda: personaliser._forgets > heard)
            return loaded

        heard = personaliser._forgets
        personaliser._load = slowly
        body = {"model": "fake@p", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=body, headers=tenant.headers).status_code == 200
        assert cached(app) == 0


@pytest.mark.parametrize(
    "notice", ["rubbish", "", "key", "key 1", "version x y", "other 00000000-0000-0000-0000-000000000000"]
)
def test_a_malformed_notice_stops_no_later_one(
    make_app: AppMaker, operator: Tenant, tenant: Tenant, postgres_url: str, notice: str
) -> None:
    with TestClient(make_app(FakeEngine(), auth_cache_s=60)) as other:
        assert other.get("/v1/models", headers=tenant.headers).status_code == 200
        with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("SELECT pg_notify('alignez_forget', %s)", [notice])
        time.sleep(0.3)
        assert other.get("/v1/models", headers=tenant.headers).status_code == 200
        path = f"/admin/keys/{tenant.caller.key_id}"
        assert operator.delete(path, params={"tenant": str(tenant.caller.tenant_id)}).status_code == 200
        assert eventually(lambda: other.get("/v1/models", headers=tenant.headers).status_code == 401)


def test_an_end_user_s_data_is_exported_and_erased(tenant: Tenant) -> None:
    tenant.ready("p")
    tenant.put("/v1/users/ada/profile", json={"profile": "p"})
    assert tenant.get("/v1/users/ada/export").json()["assignment"] is not None
    receipt = tenant.delete("/v1/users/ada").json()
    assert receipt["removed"] == {"assignments": 1}
    assert tenant.get("/v1/users/ada/export").json()["assignment"] is None
    assert tenant.get("/v1/users/ada/profile").status_code == 404


def test_an_operator_keeps_no_name_of_an_erased_tenant(operator: Tenant) -> None:
    call = {"json": {"name": "zebrafish ltd"}, "headers": {"Idempotency-Key": "create"}}
    tenant = operator.post("/admin/tenants", **call).json()
    assert operator.delete(f"/admin/tenants/{tenant['id']}").json()["removed"] == {"idempotency_keys": 1}
    again = operator.post("/admin/tenants", **call).json()
    assert again["id"] != tenant["id"]


def test_a_tenant_is_erased_by_an_operator_alone(operator: Tenant, tenant: Tenant) -> None:
    tenant.ready("p")
    path = f"/admin/tenants/{tenant.caller.tenant_id}"
    assert tenant.delete(path).status_code == 403
    assert operator.delete(f"/admin/tenants/{operator.caller.tenant_id}").status_code == 409
    assert operator.delete("/admin/tenants/none").status_code == 404
    assert operator.delete(path).status_code == 200
    assert eventually(lambda: tenant.get("/v1/profiles").status_code == 401)
    assert operator.delete(path).status_code == 404
