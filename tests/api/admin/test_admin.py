"""`/admin`."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from tests.api.conftest import Tenant


def unique(name: str) -> str:
    return f"{name} {time.time_ns()}"


def test_a_tenant_is_made_once(operator: Tenant) -> None:
    name = unique("acme")
    made = operator.post("/admin/tenants", json={"name": name, "max_queued_jobs": 3})
    assert made.status_code == 201
    assert made.json()["max_queued_jobs"] == 3
    again = operator.post("/admin/tenants", json={"name": name})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "name_taken")
    assert made.json() in operator.get("/admin/tenants").json()["data"]
    read, entry = operator.get("/admin/audit", params={"tenant": made.json()["id"]}).json()["data"]
    assert (entry["action"], entry["key_id"]) == ("tenant.create", str(operator.caller.key_id))
    assert (read["action"], read["details"]) == ("operator.read", {"what": "audit log"})  # who looks is seen


def test_a_new_key_works_for_its_tenant_and_is_listed_without_its_secret(operator: Tenant) -> None:
    tenant = operator.post("/admin/tenants", json={"name": unique("acme")}).json()
    made = operator.post("/admin/keys", params={"tenant": tenant["id"]}, json={"name": "backend"}).json()

    header = {"Authorization": f"Bearer {made['secret']}"}
    assert operator.client.get("/v1/profiles", headers=header).json() == {"data": [], "next": None}
    listed = operator.get("/admin/keys", params={"tenant": tenant["id"]}).json()["data"]
    assert [row["id"] for row in listed] == [made["id"]]
    assert "secret" not in listed[0]
    assert made["secret"].startswith(listed[0]["prefix"])


def test_a_replayed_key_creation_does_not_repeat_the_secret(operator: Tenant) -> None:
    key = {"Idempotency-Key": "k"}
    first = operator.post("/admin/keys", json={"name": "one"}, headers=key).json()
    second = operator.post("/admin/keys", json={"name": "one"}, headers=key).json()
    assert first["secret"]
    assert second == {**first, "secret": None}


def test_unknown_tenants_and_keys_are_not_found(operator: Tenant, stranger: Tenant) -> None:
    assert operator.post("/admin/keys", params={"tenant": str(uuid4())}, json={"name": "x"}).status_code == 404
    assert operator.delete(f"/admin/keys/{uuid4()}").status_code == 404
    assert operator.delete("/admin/keys/none").status_code == 404
    # A key is revoked within its tenant.
    assert operator.delete(f"/admin/keys/{stranger.caller.key_id}").status_code == 404


def test_the_last_admin_key_cannot_lock_itself_out(operator: Tenant) -> None:
    assert operator.delete(f"/admin/keys/{operator.caller.key_id}").status_code == 409
    assert operator.get("/admin/keys").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x", "role": "root"},
        {"name": "x", "expires_at": "2031-01-01T00:00:00"},
        {"name": "x", "expires_at": (datetime.now(UTC) - timedelta(days=1)).isoformat()},
    ],
)
def test_malformed_keys_are_refused(operator: Tenant, body: dict[str, str]) -> None:
    assert operator.post("/admin/keys", json=body).status_code == 422


def test_administrators_see_everybodys_profiles(operator: Tenant, stranger: Tenant) -> None:
    made = stranger.pending("theirs")["profile"]
    rows = operator.get("/admin/profiles").json()["data"]
    assert {**made, "tenant_id": str(stranger.caller.tenant_id)} in rows


def test_the_audit_log_is_paged(operator: Tenant) -> None:
    made = [operator.post("/admin/keys", json={"name": f"k{i}"}).json()["id"] for i in range(3)]
    first = operator.get("/admin/audit", params={"limit": 2}).json()
    rest = operator.get("/admin/audit", params={"limit": 2, "cursor": first["next"]}).json()
    assert [row["subject_id"] for row in first["data"] + rest["data"]][:3] == made[::-1]
