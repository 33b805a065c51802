"""Which profile an answer takes on, and that it is the edit that was fitted."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import torch
from fastapi.testclient import TestClient

from alignez_core import neighbors
from alignez_core.editing import EditPlan
from alignez_core.embeddings import from_representation, query_embedding
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.fit import FittedProfile
from alignez_core.methods.alignez import neighbor_plan
from alignez_core.methods.base import vote
from profiles.uow import Scope, SessionFactory, UnitOfWork
from tests.api.conftest import Tenant
from tests.api.events import BARE, chunks
from tests.api.fitting import QUERIES

GLOBAL = {"method": "distill"}
CONDITIONAL = {"method": "alignez"}

#: Representations are stored with two bytes a number (`profiles.vectors.pack`).
STORED = 1e-3


def assert_stored(got: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    assert got is not None
    assert expected is not None
    torch.testing.assert_close(got, expected, atol=STORED, rtol=STORED)


AT_HOME = [{"text": f"At home, {q}", "preferred": "like a pirate", "dispreferred": "formal"} for q in QUERIES[:4]]
AT_WORK = [{"text": f"At work, {q}", "preferred": "formal", "dispreferred": "like a pirate"} for q in QUERIES[4:]]


def edit(tenant: Tenant) -> EditPlan:
    found = tenant.engine.requests[-1].edit
    assert found is not None
    return found


def nearest_rows(fitted: FittedProfile, embedding: torch.Tensor) -> torch.Tensor:
    return neighbors.nearest(embedding, fitted.embeddings, fitted.config.neighbors)


def expected_plan(engine: FakeEngine, fitted: FittedProfile, query: str, strength: float = 1.0) -> EditPlan:
    """The edit by neighbours computed in memory, without database or API."""
    rows = fitted.neighbor_rows
    assert rows is not None
    rows = rows.rows(nearest_rows(fitted, query_embedding(engine, [query])[0]).tolist())
    return neighbor_plan(fitted.config, rows.layers, rows.help, rows.harm, strength)


def test_a_conditional_profile_edits_with_the_querys_own_neighbours(tenant: Tenant) -> None:
    fitted = tenant.ready("p", fit=CONDITIONAL)
    query = "What is a good way to cook rice?"
    body = tenant.chat(query, model="fake@p").json()

    expected = expected_plan(tenant.engine, fitted, query)
    plan = edit(tenant)
    assert plan.layers == expected.layers
    assert_stored(plan.V, expected.V)
    assert_stored(plan.U, expected.U)
    assert_stored(plan.c, expected.c)
    assert plan.steps == expected.steps
    applied = body["alignez"]
    assert (applied["profile"], applied["version"], applied["sha256"]) == ("p", 1, fitted.sha256)
    assert len(applied["neighbors"]) == 3
    assert applied["edit_ratio"] > 0


@pytest.mark.parametrize("given", [*AT_HOME, *AT_WORK], ids=lambda q: str(q["text"])[:24])
def test_the_neighbours_vote_which_groups_edit_applies(tenant: Tenant, given: dict[str, str]) -> None:
    fitted = tenant.ready("p", queries=[*AT_HOME, *AT_WORK], fit={"neighbors": 5})
    assert len(fitted.edits) == 2
    query = given["text"]
    near = nearest_rows(fitted, query_embedding(tenant.engine, [query])[0]).tolist()
    similarities = (fitted.embeddings[near] @ query_embedding(tenant.engine, [query])[0]).tolist()
    group = vote([fitted.fit_samples[i].group for i in near], similarities)

    applied = tenant.chat(query, profile={"name": "p", "strength": 0.5}).json()["alignez"]
    assert edit(tenant) == fitted.plan(0.5, group)
    assert len(applied["neighbors"]) == 5
    assert applied["edit_ratio"] > 0


def test_a_global_profile_costs_no_pass_and_no_second_read(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant.ready("p", fit=GLOBAL)
    tenant.chat(model="fake@p")
    monkeypatch.setattr(tenant.engine, "represent", lambda *_: pytest.fail("the query was read"))
    reads: list[object] = []
    reading = UnitOfWork.reading

    def counted(sessions: SessionFactory, scope: Scope) -> Any:
        reads.append(scope)
        return reading(sessions, scope)

    monkeypatch.setattr(UnitOfWork, "reading", counted)
    assert tenant.chat("Another one", model="fake@p").status_code == 200
    assert reads == [tenant.caller.tenant_id]


def test_the_reported_neighbours_are_the_nearest_fit_queries(tenant: Tenant) -> None:
    fitted = tenant.ready("p", queries=QUERIES, fit={**CONDITIONAL, "neighbors": 3})
    rows = tenant.get("/v1/profiles/p/versions/1/pairs").json()["data"]
    text = {row["query_id"]: row["query"] for row in rows}
    applied = tenant.chat(QUERIES[4], model="fake@p").json()["alignez"]

    chosen = neighbors.nearest(query_embedding(tenant.engine, [QUERIES[4]])[0], fitted.embeddings, 3)
    assert [text[i] for i in applied["neighbors"]] == [QUERIES[int(i)] for i in chosen]
    assert text[applied["neighbors"][0]] == QUERIES[4]


def test_the_edit_ratio_is_the_mean_relative_change_over_the_edited_layers(tenant: Tenant) -> None:
    tenant.ready("p", fit=CONDITIONAL)
    query = "Why is the sky blue?"
    applied = tenant.chat(query, model="fake@p").json()["alignez"]
    plan = edit(tenant)
    x = tenant.engine.represent([tenant.engine.prompt_format.wrap(query)])[0]
    ratios = [float((plan.apply(x[layer], layer) - x[layer]).norm() / x[layer].norm()) for layer in plan.layers]
    assert applied["edit_ratio"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-5)


def test_a_global_profile_edits_with_its_own_directions(tenant: Tenant) -> None:
    fitted = tenant.ready("p", fit=GLOBAL)
    applied = tenant.chat(model="fake@p").json()["alignez"]
    assert edit(tenant) == fitted.plan()
    assert applied == {**BARE, "profile": "p", "version": 1, "sha256": fitted.sha256}


def test_streams_report_what_was_applied_in_their_last_chunk(tenant: Tenant) -> None:
    fitted = tenant.ready("p")
    events = chunks(tenant.chat(model="fake@p", stream=True).text)
    assert events[-1]["alignez"]["sha256"] == fitted.sha256
    assert all("alignez" not in e for e in events[:-1])


def test_every_way_to_name_a_version_reaches_it(tenant: Tenant) -> None:
    first, second = tenant.ready("p", fit=GLOBAL), tenant.next_version("p", fit={"strength": 0.5})
    third = tenant.next_version("p", fit={"strength": 0.25})
    tenant.put("/v1/profiles/p/aliases/beta", json={"version": 2})
    identity = tenant.get("/v1/profiles/p").json()["id"]

    ways: list[tuple[dict[str, Any], FittedProfile]] = [
        ({"model": "fake@p"}, first),
        ({"model": "fake@p:beta"}, second),
        ({"model": "fake@p#3"}, third),
        ({"model": f"fake@{identity}#2"}, second),
        ({"profile": {"name": "p"}}, first),
        ({"profile": {"name": "p", "alias": "beta"}}, second),
        ({"profile": {"name": "p", "version": 3}}, third),
        ({"model": "fake@p", "profile": {"name": "p", "version": 3}}, third),
    ]
    for fields, fitted in ways:
        reply = tenant.chat(**fields)
        assert reply.json()["alignez"]["sha256"] == fitted.sha256, fields
        assert edit(tenant) == fitted.plan()


def test_strength_is_a_dose_per_request(tenant: Tenant) -> None:
    fitted = tenant.ready("p", fit=GLOBAL)
    for strength in (0.25, 0.75, 0.25):
        tenant.chat(profile={"name": "p", "strength": strength})
        assert edit(tenant) == fitted.plan(strength)
    tenant.chat(profile={"name": "p", "strength": 0})
    assert edit(tenant).is_identity
    query = "And now?"
    conditional = tenant.ready("q", fit=CONDITIONAL)
    tenant.chat(query, profile={"name": "q", "strength": 0.5})
    assert_stored(edit(tenant).V, expected_plan(tenant.engine, conditional, query, 0.5).V)


def test_promotion_and_rollback_work_from_the_next_request_on(tenant: Tenant) -> None:
    first, second = tenant.ready("p", fit=GLOBAL), tenant.next_version("p", fit={"strength": 0.5})
    for path, body, fitted in (("promote", {"version": 2}, second), ("rollback", None, first)):
        tenant.post(f"/v1/profiles/p/{path}", json=body)
        assert tenant.chat(model="fake@p").json()["alignez"]["sha256"] == fitted.sha256


def test_an_end_users_assignment_decides_when_nothing_is_named(tenant: Tenant) -> None:
    first, second = tenant.ready("p", fit=GLOBAL), tenant.next_version("p", fit={"strength": 0.5})
    other = tenant.ready("q", fit={**GLOBAL, "strength": 2})
    tenant.put("/v1/users/anna/profile", json={"profile": "p"})
    tenant.put("/v1/users/ben/profile", json={"profile": "p", "version": 2})

    def applied(path: str, **more: Any) -> dict[str, Any]:
        body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], **more}
        return dict(tenant.post(path, json=body).json()["alignez"])

    chat = "/v1/chat/completions"
    assert applied(chat, user="anna")["sha256"] == first.sha256
    assert applied(chat, user="ben")["sha256"] == second.sha256
    assert applied(chat, user="carl") == BARE
    assert applied(chat) == BARE
    assert applied(chat, user="") == BARE
    assert applied("/v1/users/anna/chat/completions")["sha256"] == first.sha256
    assert applied("/v1/users/carl/chat/completions") == BARE
    assert applied("/v1/users/ben/chat/completions", user="ben")["sha256"] == second.sha256
    # What is named explicitly wins over the assignment.
    assert applied("/v1/users/anna/chat/completions", model="fake@q")["sha256"] == other.sha256
    tenant.delete("/v1/users/anna/profile")
    assert applied(chat, user="anna") == BARE


def test_a_canary_keeps_each_end_user_on_one_side(tenant: Tenant) -> None:
    tenant.ready("p", fit=GLOBAL)
    tenant.next_version("p", fit={"strength": 0.5})
    tenant.put("/v1/profiles/p/aliases/default", json={"weights": {"1": 1, "2": 1}})

    def version(user: str) -> int:
        return int(tenant.chat(model="fake@p", user=user).json()["alignez"]["version"])

    sides = {user: version(user) for user in (f"user {i}" for i in range(12))}
    assert set(sides.values()) == {1, 2}
    assert all(version(user) == side for user, side in sides.items())


@pytest.mark.parametrize(
    "model",
    ["fake@", "fake@p:", "fake@p#", "fake@p#0", "fake@p#x", "fake@p#99999999999", "fake@p:a b",
     f"fake@p:{'x' * 65}", f"fake@{'x' * 201}", f"fake@{'x' * 250}:beta", f"fake@{'x' * 250}#3"],
)  # fmt: skip
def test_malformed_models_are_refused(tenant: Tenant, model: str) -> None:
    for reply in (tenant.chat(model=model), tenant.get(f"/v1/models/{quote(model, safe='')}")):
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "invalid_model"


def test_an_alias_ends_where_its_name_ends(tenant: Tenant) -> None:
    assert tenant.chat(model="fake@p:beta\n").json()["error"]["code"] == "invalid_model"


def test_an_alias_may_be_as_long_as_aliases_are(tenant: Tenant) -> None:
    fitted = tenant.ready("p", fit=GLOBAL)
    alias = "x" * 64
    assert tenant.put(f"/v1/profiles/p/aliases/{alias}", json={"version": 1}).status_code == 200
    for fields in ({"model": f"fake@p:{alias}"}, {"profile": {"name": "p", "alias": alias}}):
        assert tenant.chat(**fields).json()["alignez"]["sha256"] == fitted.sha256
    assert tenant.get(f"/v1/models/fake@p:{alias}").json()["id"] == f"fake@p:{alias}"
    assert tenant.chat(profile={"name": "p", "alias": "x" * 65}).status_code == 400


def test_contradictions_are_refused(tenant: Tenant) -> None:
    tenant.ready("p")
    assert tenant.chat(model="fake@p", profile={"name": "q"}).json()["error"]["code"] == "conflicting_profile"
    assert tenant.chat(model="fake@p#1", profile={"name": "p", "version": 1}).status_code == 400
    reply = tenant.post(
        "/v1/users/anna/chat/completions",
        json={"model": "fake", "user": "ben", "messages": [{"role": "user", "content": "x"}]},
    )
    assert reply.json()["error"]["code"] == "conflicting_user"


def test_unknown_and_foreign_profiles_are_not_found(tenant: Tenant, stranger: Tenant) -> None:
    tenant.ready("p")
    for caller, model in ((stranger, "fake@p"), (tenant, "fake@q"), (tenant, "fake@p#2"), (tenant, "fake@p:beta")):
        reply = caller.chat(model=model)
        assert reply.status_code == 404, model
        assert reply.json()["error"] | {"code": "not_found", "param": "model"} == reply.json()["error"]


def test_a_version_in_every_state_but_ready_is_a_conflict_that_names_state_and_job(tenant: Tenant) -> None:
    job = tenant.pending("p")["job"]["id"]

    def details() -> dict[str, Any]:
        reply = tenant.chat(model="fake@p")
        assert reply.status_code == 409
        return dict(reply.json()["error"]["details"])

    assert details()["state"] == "pending"
    tenant.post(f"/v1/jobs/{job}/cancel")
    assert details()["state"] == "failed"
    assert details()["job"] == f"/v1/jobs/{job}"
    tenant.ready("q")
    tenant.next_version("q")
    tenant.post("/v1/profiles/q/versions/2/archive")
    assert tenant.chat(model="fake@q#2").json()["error"]["details"]["state"] == "archived"


def test_a_profile_of_another_model_is_a_conflict(tenant: Tenant, make_app: Any) -> None:
    tenant.ready("p")
    with TestClient(make_app(FakeEngine(name="other"))) as client:
        reply = client.post(
            "/v1/chat/completions",
            json={"model": "other@p", "messages": [{"role": "user", "content": "x"}]},
            headers=tenant.headers,
        )
    assert reply.status_code == 409
    error = reply.json()["error"]
    assert error["code"] == "model_mismatch"
    assert error["details"]["got"] == tenant.engine.info.fingerprint
    with TestClient(make_app(FakeEngine(name="other"))) as client:
        assert [row["id"] for row in client.get("/v1/models", headers=tenant.headers).json()["data"]] == ["other"]
        shown = client.get("/v1/models/other@p", headers=tenant.headers)
    assert shown.status_code == 404
    assert shown.json()["error"]["code"] == "model_not_found"


def test_a_text_completion_is_looked_up_by_its_prompt(tenant: Tenant) -> None:
    fitted = tenant.ready("p", fit=CONDITIONAL)
    assert fitted.neighbor_rows is not None
    ids = tenant.engine.tokenize("Once upon a time")
    for prompt in ("Once upon a time", ids):
        tenant.post("/v1/completions", json={"model": "fake@p", "prompt": prompt})
        embedding = from_representation(tenant.engine.represent([ids]))[0]
        rows = fitted.neighbor_rows.rows(nearest_rows(fitted, embedding).tolist())
        expected = neighbor_plan(fitted.config, rows.layers, rows.help, rows.harm, 1.0)
        assert_stored(edit(tenant).V, expected.V)


def test_requests_of_different_profiles_do_not_mix(tenant: Tenant) -> None:
    fits = {f"p{i}": tenant.ready(f"p{i}", fit={**GLOBAL, "strength": 0.1 * (i + 1)}) for i in range(4)}
    for name, fitted in fits.items():
        text = tenant.chat(model=f"fake@{name}").json()["choices"][0]["message"]["content"]
        plan = fitted.plan()
        assert plan is not None
        assert f"edit={plan.sha256}" in text
    assert "plain" in tenant.chat().json()["choices"][0]["message"]["content"]
