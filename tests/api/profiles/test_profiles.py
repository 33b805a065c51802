"""`/v1/profiles`."""

from __future__ import annotations

import threading
from typing import Any
from uuid import uuid4

import pytest

from tests.api.conftest import Tenant

PERSONA = {"preferred": "cheerful", "dispreferred": "gloomy"}


def test_creating_a_profile_queues_its_fit_and_says_where_to_watch_it(tenant: Tenant) -> None:
    reply = tenant.post("/v1/profiles", json={"name": "cheerful", "persona": PERSONA})

    assert reply.status_code == 202
    body = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{body['job']['id']}"
    assert body["profile"]["name"] == "cheerful"
    assert body["profile"]["base_model"] == "fake"
    assert body["version"] | {"number": 1, "state": "pending"} == body["version"]
    assert body["job"]["status"] == "queued"
    assert tenant.get(reply.headers["location"]).json() == body["job"]


def test_every_part_of_a_spec_is_stored_as_it_was_asked_for(tenant: Tenant) -> None:
    spec: dict[str, Any] = {
        "persona": {"description": "A friend.", **PERSONA},
        "queries": ["How are you?", {"text": "And at work?", "preferred": "formal", "dispreferred": "casual"}],
        "pairs": [{"query": "Tea?", "preferred": "Yes, please!", "dispreferred": "No."}],
        "fit": {"method": "alignez", "neighbors": 2, "layers": [0, 2], "edit_rule": "orthogonal", "steps": None},
    }
    tenant.post("/v1/profiles", json={"name": "full", **spec})

    stored = tenant.get("/v1/profiles/full/versions/1").json()["spec"]
    assert stored["persona"] == spec["persona"]
    assert stored["pairs"] == spec["pairs"]
    assert stored["queries"] == [{"text": "How are you?", "preferred": None, "dispreferred": None}, spec["queries"][1]]
    assert stored["fit"] == spec["fit"]


def test_a_k_left_open_stays_open_for_later_versions(tenant: Tenant) -> None:
    tenant.pending("few", queries=["One?", "Two?", "Three?"])
    assert tenant.get("/v1/profiles/few/versions/1").json()["spec"]["fit"] == {}
    for queries in (["One?", "Two?"], [f"Number {i}?" for i in range(20)]):
        assert tenant.post("/v1/profiles/few/versions", json={"queries": queries}).status_code == 202
    assert tenant.get("/v1/profiles/few/versions/3").json()["spec"]["fit"] == {}


def test_a_name_is_taken_once_per_tenant(tenant: Tenant, stranger: Tenant) -> None:
    tenant.pending("taken")
    again = tenant.post("/v1/profiles", json={"name": "taken", "persona": PERSONA})

    assert again.status_code == 409
    assert again.json()["error"]["code"] == "name_taken"
    assert stranger.post("/v1/profiles", json={"name": "taken", "persona": PERSONA}).status_code == 202


def test_a_profile_is_found_by_id_and_by_name(tenant: Tenant) -> None:
    made = tenant.pending("findable")["profile"]
    assert tenant.get("/v1/profiles/findable").json() == made
    assert tenant.get(f"/v1/profiles/{made['id']}").json() == made


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
def test_unknown_and_foreign_profiles_look_the_same(tenant: Tenant, stranger: Tenant, method: str) -> None:
    made = tenant.pending("mine")["profile"]
    body = {"json": {"description": "x"}} if method == "patch" else {}
    for path in (f"/v1/profiles/{uuid4()}", "/v1/profiles/never", f"/v1/profiles/{made['id']}", "/v1/profiles/mine"):
        reply = getattr(stranger, method)(path, **body)
        assert reply.status_code == 404, path
        assert reply.json()["error"]["code"] == "not_found"
    assert tenant.get("/v1/profiles/mine").json() == made


def test_lists_are_paged_newest_first_and_hold_only_ones_own(tenant: Tenant, stranger: Tenant) -> None:
    names = [f"p{i}" for i in range(5)]
    for name in names:
        tenant.pending(name)
    stranger.pending("other")

    seen: list[str] = []
    cursor = None
    while True:
        page = tenant.get("/v1/profiles", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        assert len(page["data"]) <= 2
        seen += [row["name"] for row in page["data"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == names[::-1]


def test_a_cursor_that_is_none_is_refused(tenant: Tenant) -> None:
    reply = tenant.get("/v1/profiles", params={"cursor": "nonsense"})
    assert reply.status_code == 422
    assert reply.json()["error"]["details"]["field"] == "cursor"


def test_renaming_frees_the_old_name(tenant: Tenant) -> None:
    tenant.pending("before")
    tenant.pending("other")

    assert tenant.patch("/v1/profiles/before", json={"name": "other"}).status_code == 409
    changed = tenant.patch("/v1/profiles/before", json={"name": "after", "description": "said"}).json()
    assert (changed["name"], changed["description"]) == ("after", "said")
    assert tenant.get("/v1/profiles/before").status_code == 404
    assert tenant.patch("/v1/profiles/after", json={"description": ""}).json()["description"] is None


def test_deleting_cancels_jobs_and_frees_the_name(tenant: Tenant) -> None:
    job = tenant.pending("gone")["job"]["id"]

    assert tenant.delete("/v1/profiles/gone").status_code == 204
    assert tenant.get("/v1/profiles/gone").status_code == 404
    assert tenant.delete("/v1/profiles/gone").status_code == 404
    assert tenant.get(f"/v1/jobs/{job}").json()["status"] == "cancelled"
    tenant.pending("gone")


def test_the_same_idempotency_key_creates_once(tenant: Tenant) -> None:
    body = {"name": "once", "persona": PERSONA}
    key = {"Idempotency-Key": "abc"}
    first = tenant.post("/v1/profiles", json=body, headers=key)
    second = tenant.post("/v1/profiles", json=body, headers=key)

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()
    assert second.headers["location"] == first.headers["location"]
    assert second.headers["idempotency-replayed"] == "true"
    assert len(tenant.get("/v1/jobs").json()["data"]) == 1


def test_an_idempotency_key_belongs_to_one_request_and_one_tenant(tenant: Tenant, stranger: Tenant) -> None:
    key = {"Idempotency-Key": "abc"}
    tenant.post("/v1/profiles", json={"name": "one", "persona": PERSONA}, headers=key)

    other = tenant.post("/v1/profiles", json={"name": "two", "persona": PERSONA}, headers=key)
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert stranger.post("/v1/profiles", json={"name": "two", "persona": PERSONA}, headers=key).status_code == 202


def test_simultaneous_requests_with_one_key_create_once(tenant: Tenant) -> None:
    replies = []

    def send() -> None:
        replies.append(
            tenant.post("/v1/profiles", json={"name": "race", "persona": PERSONA}, headers={"Idempotency-Key": "race"})
        )

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {reply.status_code for reply in replies} == {202}
    assert len({reply.json()["job"]["id"] for reply in replies}) == 1


def test_a_failed_request_does_not_use_its_key_up(tenant: Tenant) -> None:
    key = {"Idempotency-Key": "again"}
    tenant.pending("held")
    assert tenant.post("/v1/profiles", json={"name": "held", "persona": PERSONA}, headers=key).status_code == 409
    assert tenant.post("/v1/profiles", json={"name": "free", "persona": PERSONA}, headers=key).status_code == 202


def test_over_the_quota_of_jobs_a_caller_is_told_when_to_come_back(tenant: Tenant) -> None:
    for i in range(12):
        tenant.pending(f"q{i}")
    reply = tenant.post("/v1/profiles", json={"name": "one-more", "persona": PERSONA})
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json()["error"]["details"] == {"used": 12, "limit": 12}
    assert tenant.get("/v1/profiles/one-more").status_code == 404


def test_an_unknown_base_model_is_a_conflict_and_makes_nothing(tenant: Tenant) -> None:
    reply = tenant.post("/v1/profiles", json={"name": "x", "persona": PERSONA, "base_model": "gpt-9"})
    assert reply.status_code == 409
    assert "gpt-9" in reply.json()["error"]["message"]
    assert tenant.get("/v1/profiles/x").status_code == 404
