"""`Idempotency-Key` on every POST that changes something."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from tests.api.conftest import Tenant

#: Answers requests and changes nothing, so that a repeated one is a new one.
_GENERATION = ("/chat/completions", "/completions", "/compare")
KEY = {"Idempotency-Key": "once"}


def test_every_post_that_changes_something_takes_a_key(app: FastAPI) -> None:
    posts = {path: operations["post"] for path, operations in app.openapi()["paths"].items() if "post" in operations}
    changing = {path: post for path, post in posts.items() if not path.endswith(_GENERATION)}
    without = [
        path for path, post in changing.items() if "Idempotency-Key" not in [p["name"] for p in post["parameters"]]
    ]
    assert len(changing) >= 8
    assert without == []


def default_of(tenant: Tenant) -> Any:
    return tenant.get("/v1/profiles/p").json()["aliases"]["default"]


def test_a_repeated_rollback_goes_back_once(tenant: Tenant) -> None:
    tenant.ready("p")
    for number in (2, 3):
        tenant.next_version("p")
        assert tenant.post("/v1/profiles/p/promote", json={"version": number}).status_code == 200
    first = tenant.post("/v1/profiles/p/rollback", headers=KEY)
    second = tenant.post("/v1/profiles/p/rollback", headers=KEY)
    assert first.json() == second.json() == {"alias": "default", "targets": {"2": 1.0}}
    assert (second.headers["idempotency-replayed"], default_of(tenant)) == ("true", {"2": 1.0})
    tenant.post("/v1/profiles/p/rollback", headers={"Idempotency-Key": "again"})
    assert default_of(tenant) == {"1": 1.0}


def test_a_repeated_promotion_does_not_undo_what_came_after_it(tenant: Tenant) -> None:
    tenant.ready("p")
    tenant.next_version("p")
    first = tenant.post("/v1/profiles/p/promote", json={"version": 2}, headers=KEY)
    tenant.post("/v1/profiles/p/rollback")
    assert tenant.post("/v1/profiles/p/promote", json={"version": 2}, headers=KEY).json() == first.json()
    assert default_of(tenant) == {"1": 1.0}
    reply = tenant.post("/v1/profiles/p/promote", json={"version": 1}, headers=KEY)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "idempotency_key_reused")


@pytest.mark.parametrize("act", ["archive", "cancel"])
def test_a_repeated_end_gets_the_first_answer(tenant: Tenant, act: str) -> None:
    tenant.ready("p")
    tenant.next_version("p")
    job = tenant.post("/v1/profiles/p/versions", json={}).json()["job"]["id"]
    path = "/v1/profiles/p/versions/2/archive" if act == "archive" else f"/v1/jobs/{job}/cancel"
    first, second = tenant.post(path, headers=KEY), tenant.post(path, headers=KEY)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"


def test_a_key_whose_request_failed_is_free(tenant: Tenant) -> None:
    tenant.ready("p")
    assert tenant.post("/v1/profiles/p/rollback", headers=KEY).status_code == 409
    assert tenant.post("/v1/profiles/p/promote", json={"version": 1}, headers=KEY).status_code == 200
