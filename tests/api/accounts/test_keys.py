"""A tenant's administrator manages its keys; bound keys; rotation."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from alignez_core.engines.fake.engine import FakeEngine
from profiles.uow import SessionFactory
from tests.api.conftest import Tenant, new_tenant

GLOBAL = {"method": "alignez", "conditional": False}


@pytest.fixture
def admin(client: TestClient, sessions: SessionFactory, engine: FakeEngine) -> Tenant:
    """An administrator with the profiles `p` and `q`."""
    made = new_tenant(client, sessions, engine, role="admin")
    for name in ("p", "q"):
        made.ready(name, fit=GLOBAL)
    return made


def key(admin: Tenant, **spec: Any) -> dict[str, Any]:
    reply = admin.post("/v1/keys", json={"name": "k", **spec})
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


def chat(admin: Tenant, secret: str, path: str = "/v1/chat/completions", **body: Any) -> Any:
    body = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, **body}
    return admin.client.post(path, json=body, headers={"Authorization": f"Bearer {secret}"})


def served(reply: Any) -> Any:
    assert reply.status_code == 200, reply.text
    return reply.json()["alignez"]["profile"]


def test_a_key_is_made_listed_used_and_revoked_in_its_own_tenant(admin: Tenant) -> None:
    made = key(admin, role="member")
    assert made["tenant_id"] == str(admin.caller.tenant_id)
    headers = {"Authorization": f"Bearer {made['secret']}"}
    assert admin.client.get("/v1/profiles", headers=headers).status_code == 200
    listed = {row["id"]: row for row in admin.get("/v1/keys").json()["data"]}
    assert set(listed) == {made["id"], str(admin.caller.key_id)}
    assert (listed[made["id"]]["last_used_from"], listed[made["id"]]["last_used_at"] is not None) == (
        "testclient",
        True,
    )
    assert admin.delete(f"/v1/keys/{made['id']}").json()["revoked_at"]
    assert admin.client.get("/v1/profiles", headers=headers).status_code == 401
    actions = [row["action"] for row in admin.get("/v1/audit").json()["data"]]
    assert actions[:2] == ["key.refused", "key.revoke"]
    assert admin.get("/v1/audit/verify").json()["first_wrong"] is None


def test_nobody_gives_or_takes_more_than_they_have(admin: Tenant, operator: Tenant) -> None:
    assert admin.post("/v1/keys", json={"name": "k", "role": "operator"}).status_code == 403
    tenant = {"tenant": str(admin.caller.tenant_id)}
    higher = operator.post("/admin/keys", params=tenant, json={"name": "k", "role": "operator"}).json()
    for method, path in (("delete", ""), ("post", "/rotate")):
        reply = getattr(admin, method)(f"/v1/keys/{higher['id']}{path}", **({"json": {}} if method == "post" else {}))
        assert reply.status_code == 403, "an administrator would get an operator's secret, or lock it out"
    assert operator.delete(f"/admin/keys/{higher['id']}", params=tenant).status_code == 200


def test_a_key_of_a_profile_generates_with_it_alone(admin: Tenant) -> None:
    secret = key(admin, role="inference", profile="p")["secret"]
    assert served(chat(admin, secret)) == "p"  # without a name
    assert served(chat(admin, secret, model="fake@p")) == "p"
    assert served(chat(admin, secret, model="fake@p#1")) == "p"
    assert chat(admin, secret, model="fake@q").status_code == 404
    assert chat(admin, secret, profile={"name": "q", "version": 1}).status_code == 404
    admin.put("/v1/users/eve/profile", json={"profile": "q"})
    assert served(chat(admin, secret, user="eve")) == "p"
    compared = {"profiles": [{"name": "q"}], "prompt": "Hi", "max_tokens": 2}
    headers = {"Authorization": f"Bearer {secret}"}
    assert admin.client.post("/v1/compare", json=compared, headers=headers).status_code == 404
    models = [row["id"] for row in admin.client.get("/v1/models", headers=headers).json()["data"]]
    assert models == ["fake", "fake@p"]
    assert admin.client.get("/v1/models/fake@q", headers=headers).status_code == 404


def test_a_key_of_an_end_user_generates_for_them_alone(admin: Tenant) -> None:
    secret = key(admin, role="inference", end_user="ada")["secret"]
    assert served(chat(admin, secret)) is None  # ada has no profile yet
    admin.put("/v1/users/ada/profile", json={"profile": "p"})
    admin.put("/v1/users/eve/profile", json={"profile": "q"})
    assert served(chat(admin, secret)) == "p"
    assert served(chat(admin, secret, user="ada")) == "p"
    assert served(chat(admin, secret, "/v1/users/ada/chat/completions")) == "p"
    assert chat(admin, secret, user="eve").status_code == 403
    assert chat(admin, secret, "/v1/users/eve/chat/completions").status_code == 403
    assert chat(admin, secret, model="fake@q").status_code == 403


def test_a_key_of_an_end_user_lists_no_profiles_and_nobody_else_s_models(admin: Tenant) -> None:
    headers = {"Authorization": f"Bearer {key(admin, role='inference', end_user='ada')['secret']}"}

    def get(path: str) -> Any:
        return admin.client.get(path, headers=headers)

    for path in ("/v1/models", "/v1/users/ada/models"):
        assert [row["id"] for row in get(path).json()["data"]] == ["fake"]
    assert get("/v1/models/fake").status_code == 200
    for path in (
        "/v1/models/fake@p",
        "/v1/users/eve/models",
        "/v1/users/eve/models/fake",
        "/v1/users/ada/models/fake@p",
    ):
        assert get(path).status_code == 403, path


def test_an_operator_s_repeated_call_for_another_tenant_makes_another_key(
    admin: Tenant, operator: Tenant, stranger: Tenant
) -> None:
    made = [
        operator.post(
            "/admin/keys", params={"tenant": str(tenant.caller.tenant_id)}, headers={"Idempotency-Key": "same"},
            json={"name": "zebrafish", "role": "inference", "end_user": "ada"},
        ).json()
        for tenant in (admin, stranger, admin)
    ]  # fmt: skip
    assert [row["tenant_id"] for row in made] == [str(t.caller.tenant_id) for t in (admin, stranger, admin)]
    assert [row["secret"] is None for row in made] == [False, False, True]
    assert admin.delete("/v1/users/ada").json()["removed"] == {"api_keys": 1, "idempotency_keys": 1}
    unknown = {"tenant": "00000000-0000-0000-0000-000000000000"}
    body, headers = {"name": "k"}, {"Idempotency-Key": "other"}
    assert operator.post("/admin/keys", params=unknown, headers=headers, json=body).status_code == 404


def test_an_operator_s_look_at_profiles_is_in_their_tenants_logs(admin: Tenant, operator: Tenant) -> None:
    assert operator.get("/admin/profiles", params={"limit": 2}).status_code == 200
    entry = admin.get("/v1/audit").json()["data"][0]
    assert (entry["action"], entry["details"]) == ("operator.read", {"what": "profiles"})
    assert entry["key_id"] == str(operator.caller.key_id)


@pytest.mark.parametrize("role", ["member", "admin"])
@pytest.mark.parametrize("binding", [{"profile": "p"}, {"end_user": "ada"}])
def test_only_inference_keys_are_bound(admin: Tenant, role: str, binding: dict[str, str]) -> None:
    assert admin.post("/v1/keys", json={"name": "k", "role": role, **binding}).status_code == 422


def test_a_key_of_an_unknown_or_foreign_profile_is_not_made(admin: Tenant, stranger: Tenant) -> None:
    stranger.ready("theirs")
    foreign = stranger.get("/v1/profiles/theirs").json()["id"]
    for profile in ("none", "theirs", foreign):
        body = {"name": "k", "role": "inference", "profile": profile}
        assert admin.post("/v1/keys", json=body).status_code == 404


def test_rotation_overlaps_as_long_as_asked(admin: Tenant, app: FastAPI) -> None:
    old = key(admin, role="inference", profile="p")
    new = admin.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_s": 600}).json()
    assert new["secret"] != old["secret"]
    assert (new["role"], new["profile_id"], new["name"]) == (old["role"], old["profile_id"], old["name"])
    assert served(chat(admin, old["secret"])) == served(chat(admin, new["secret"])) == "p"
    last = admin.post(f"/v1/keys/{new['id']}/rotate", json={"overlap_s": 0}).json()
    app.state.services.auth.forget(UUID(new["id"]))
    assert chat(admin, new["secret"]).status_code == 401
    assert served(chat(admin, last["secret"])) == "p"
    assert admin.post(f"/v1/keys/{new['id']}/rotate", json={}).status_code == 409


def test_a_refused_call_is_noted_once_in_a_while(admin: Tenant) -> None:
    made = key(admin, role="inference")
    headers = {"Authorization": f"Bearer {made['secret']}"}
    for _ in range(3):
        assert admin.client.get("/v1/profiles", headers=headers).status_code == 403
    noted = [row for row in admin.get("/v1/audit").json()["data"] if row["action"] == "call.refused"]
    assert [row["details"] for row in noted] == [{"call": "GET /v1/profiles", "needs": "member"}]
    assert noted[0]["key_id"] == made["id"]
    assert noted[0]["address"] == "testclient"
