"""`…/evaluate`, `…/report`, and what a weak version may not do."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from profiles.models import JobStatus
from profiles.uow import SessionFactory
from tests.api.conftest import AppMaker, Tenant, new_tenant
from tests.api.events import BARE
from tests.api.fitting import WEAK, end_job
from tests.api.fitting import evaluate as finish_evaluation

REPORT = "/v1/profiles/p/versions/1/report"
EVALUATE = "/v1/profiles/p/versions/1/evaluate"


def details(reply: Any) -> dict[str, Any]:
    return dict(reply.json()["error"]["details"])


# Report


def test_a_fit_brings_its_proof(tenant: Tenant) -> None:
    fitted = tenant.ready("p")
    body = tenant.get(REPORT).json()
    assert (body["profile"], body["version"], body["judge"]) == ("p", 1, "self")
    assert (body["quality"], body["reasons"]) == ("good", [])
    assert body["report"] == fitted.report
    assert body["choice"] == fitted.choice
    assert body["job_id"] == tenant.get("/v1/profiles/p/versions/1").json()["job_id"]


@pytest.mark.parametrize(
    ("query", "accept", "page"),
    [("?format=html", "*/*", True), ("", "text/html,application/xhtml+xml;q=0.9", True), ("", "*/*", False),
     ("", "application/json", False), ("?format=json", "text/html", False)],
)  # fmt: skip
def test_a_report_is_a_page_for_those_who_ask_for_one(tenant: Tenant, query: str, accept: str, page: bool) -> None:
    tenant.ready("p", "weak")
    reply = tenant.get(f"{REPORT}{query}", headers={"accept": accept})
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html" if page else "application/json")
    assert "accept" in reply.headers["vary"].lower()
    if page:
        assert "p, version 1" in reply.text
        assert WEAK in reply.text
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "<script" not in reply.text


def test_a_control_process_makes_the_page_too(tenant: Tenant, make_app: AppMaker) -> None:
    tenant.ready("p")
    with TestClient(make_app(role="control")) as client:
        reply = client.get(f"{REPORT}?format=html", headers=tenant.headers)
    assert (reply.status_code, reply.text[:15]) == (200, "<!doctype html>")


@pytest.mark.parametrize("query", ["?format=pdf", "?judge=%00", f"?judge={'x' * 201}"])
def test_malformed_questions_are_refused(tenant: Tenant, query: str) -> None:
    tenant.ready("p")
    assert tenant.get(f"{REPORT}{query}").status_code == 422


# Evaluate


def test_an_evaluation_is_a_job_whose_report_is_the_latest_one(tenant: Tenant) -> None:
    fitted = tenant.ready("p")
    asked = {"held_out_queries": 16, "answer_tokens": 24, "seed": 5}
    reply = tenant.post(EVALUATE, json={"judge": "nano", **asked})
    assert reply.status_code == 202
    job = reply.json()["job"]
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["status"], job["version"]) == ("evaluate", "queued", 1)

    finish_evaluation(tenant.sessions, UUID(job["id"]), "weak", "nano", seed=5)
    assert tenant.get(f"/v1/jobs/{job['id']}").json()["status"] == "succeeded"
    latest = tenant.get(REPORT).json()
    assert (latest["judge"], latest["quality"], latest["report"]["seed"]) == ("nano", "weak", 5)
    assert (latest["job_id"], latest["choice"]) == (job["id"], None)
    assert tenant.get(f"{REPORT}?judge=self").json()["report"] == fitted.report
    assert tenant.get(f"{REPORT}?judge=openai").status_code == 404
    # The version stays as it is.
    version = tenant.get("/v1/profiles/p/versions/1").json()
    assert (version["quality"], version["sha256"], version["job_id"] != job["id"]) == ("good", fitted.sha256, True)


def test_an_evaluation_that_failed_leaves_version_and_report(tenant: Tenant) -> None:
    tenant.ready("p")
    job = tenant.post(EVALUATE, json={}).json()["job"]
    end_job(tenant.sessions, UUID(job["id"]), JobStatus.FAILED, "judge_unavailable")
    assert tenant.get(f"/v1/jobs/{job['id']}").json()["error"]["code"] == "judge_unavailable"
    assert tenant.get("/v1/profiles/p/versions/1").json()["state"] == "ready"
    assert tenant.get(REPORT).json()["judge"] == "self"
    assert tenant.chat(model="fake@p").status_code == 200


def test_the_same_idempotency_key_evaluates_once(tenant: Tenant) -> None:
    tenant.ready("p")
    key = {"Idempotency-Key": "abc"}
    first, second = (tenant.post(EVALUATE, json={"seed": 1}, headers=key) for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"judge": "gpt"}, ("judge", "'gpt'", "openai")),
        ({"judge": "openai"}, ("judge", "'openai'", "self, nano")),
        ({"judge": "model:"}, ("judge",)),
        ({"held_out_queries": 513}, ("held_out_queries", "512", "513")),
        ({"answer_tokens": 0}, ("answer_tokens", "1", "0")),
        ({"seed": -1}, ("seed", "-1")),
        ({"strength": 1}, ("strength",)),
    ],
)
def test_malformed_evaluations_name_field_value_and_limit(
    tenant: Tenant, body: dict[str, Any], named: tuple[str, ...]
) -> None:
    tenant.ready("p")
    reply = tenant.post(EVALUATE, json=body)
    assert reply.status_code == 422
    error = reply.json()["error"]
    assert all(part in error["message"] + str(error["details"]) for part in named), error


def test_a_judge_that_the_deployment_offers_is_taken(make_app: AppMaker, sessions: SessionFactory, engine: Any) -> None:
    with TestClient(make_app(engine, judges=("openai",))) as client:
        tenant = new_tenant(client, sessions, engine)
        tenant.ready("p", fit={"judge": "openai"})
        assert tenant.post(EVALUATE, json={"judge": "openai"}).status_code == 202
        assert tenant.post(EVALUATE, json={"judge": "model:/x"}).status_code == 422


def test_only_ready_versions_of_ones_own_are_evaluated(tenant: Tenant, stranger: Tenant) -> None:
    tenant.pending("p")
    reply = tenant.post(EVALUATE, json={})
    assert (reply.status_code, details(reply)["state"]) == (409, "pending")
    assert stranger.post(EVALUATE, json={}).status_code == 404
    assert stranger.get(REPORT).status_code == 404
    assert tenant.post("/v1/profiles/p/versions/2/evaluate", json={}).status_code == 404


# Weak versions


def test_a_weak_version_becomes_the_default_with_force_only(tenant: Tenant, operator: Tenant) -> None:
    tenant.ready("p", "weak")
    assert tenant.get("/v1/profiles/p").json()["aliases"] == {}
    calls = (("post", "promote", {"version": 1}), ("put", "aliases/default", {"version": 1}),
             ("put", "aliases/default", {"weights": {"1": 1}}))  # fmt: skip
    for method, path, body in calls:
        reply = getattr(tenant, method)(f"/v1/profiles/p/{path}", json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "version_weak")
        assert details(reply)["reasons"] == [WEAK]
    assert tenant.put("/v1/profiles/p/aliases/beta", json={"version": 1}).status_code == 200
    assert tenant.chat(model="fake@p:beta").json()["alignez"]["version"] == 1

    for method, path, body in calls:
        assert getattr(tenant, method)(f"/v1/profiles/p/{path}", json={**body, "force": True}).status_code == 200
        assert tenant.chat(model="fake@p").json()["alignez"]["version"] == 1
    rows = operator.get("/admin/audit", params={"tenant": str(tenant.caller.tenant_id)}).json()["data"]
    assert [row["details"]["force"] for row in rows if row["action"] == "profile.promote"] == [True]


def test_a_weak_version_does_not_take_over_from_a_good_one(tenant: Tenant) -> None:
    tenant.ready("p")
    tenant.next_version("p", "weak", promote=True)
    assert tenant.get("/v1/profiles/p").json()["aliases"] == {"default": {"1": 1.0}}
    tenant.next_version("p", "good", promote=True)
    assert tenant.get("/v1/profiles/p").json()["aliases"] == {"default": {"3": 1.0}}


def test_a_profile_without_a_default_answers_with_the_reasons(tenant: Tenant) -> None:
    fitted = tenant.ready("p", "weak")
    job = tenant.get("/v1/profiles/p/versions/1").json()["job_id"]
    for reply in (
        tenant.chat(model="fake@p"),
        tenant.post("/v1/completions", json={"model": "fake@p", "prompt": "x"}),
        tenant.post("/v1/compare", json={"prompt": "x", "profiles": [{"name": "p"}]}),
    ):
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "no_default_version")
        assert details(reply)["reasons"] == [WEAK]
        assert details(reply)["job"] == f"/v1/jobs/{job}"
        assert WEAK in reply.json()["error"]["message"]
    assert tenant.chat(model="fake@p#1").json()["alignez"]["sha256"] == fitted.sha256


def test_an_assigned_user_of_such_a_profile_gets_the_bare_model_and_is_told(tenant: Tenant) -> None:
    tenant.ready("p", "weak")
    tenant.put("/v1/users/anna/profile", json={"profile": "p"})
    applied = tenant.chat(user="anna").json()["alignez"]
    assert applied == {**BARE, "profile": "p", "reason": "no_default_version"}
    assert tenant.engine.requests[-1].edit is None
    reply = tenant.post("/v1/users/anna/completions", json={"model": "fake", "prompt": "x"})
    assert reply.json()["alignez"]["reason"] == "no_default_version"
    tenant.post("/v1/profiles/p/promote", json={"version": 1, "force": True})
    assert tenant.chat(user="anna").json()["alignez"]["version"] == 1
