"""Wrong input, row by row of the design's table: nothing is a 500, and every refusal names field and limit."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from sqlalchemy import text

from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.query_bank import default_queries
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import LIMITS
from alignez_core.spec.persona import FitQuery, FitSpec, Persona
from alignez_core.spec.samples import fit_query_count
from api.profiles.schemas import FitBody
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.api.conftest import Tenant, serving

PERSONA = {"preferred": "cheerful", "dispreferred": "gloomy"}


def create(tenant: Tenant, **body: Any) -> Any:
    return tenant.post("/v1/profiles", json={"name": "p", **body})


@pytest.mark.parametrize(
    ("body", "field", "limit"),
    [
        ({}, "persona", ""),
        ({"persona": {}}, "persona", ""),
        ({"persona": {"preferred": ""}}, "persona.preferred", "1"),
        ({"persona": {"preferred": "   "}}, "persona.preferred", "1"),
        ({"persona": {"preferred": "x" * 201}}, "persona.preferred", "200"),
        ({"persona": {"dispreferred": "x" * 201}}, "persona.dispreferred", "200"),
        ({"persona": {"description": "x" * 2001}}, "persona.description", "2000"),
        ({"persona": {"preferred": "a\x00b"}}, "persona.preferred", "NUL"),
        ({"persona": {"preferred": 5}}, "persona.preferred", "string"),
        ({"persona": {**PERSONA, "tone": "x"}}, "persona.tone", ""),
        ({"queries": ["q"] * 2001}, "queries", "2000"),
        ({"queries": ["ok", "x" * 8001]}, "queries.1", "8000"),
        ({"queries": ["a\x00"]}, "queries.0", "NUL"),
        ({"queries": [""]}, "queries.0", "1"),
        ({"queries": [{"text": "x", "preferred": "y" * 201}]}, "queries.0", "200"),
        ({"queries": "one"}, "queries", "list"),
        ({"pairs": [{"query": "x", "preferred": "y"}]}, "pairs.0.dispreferred", "required"),
        ({"pairs": [{"query": "x", "preferred": "y" * 16001, "dispreferred": "z"}]}, "pairs.0.preferred", "16000"),
        ({"persona": PERSONA, "name": "a/b"}, "name", ""),
        ({"persona": PERSONA, "name": "x" * 65}, "name", ""),
        ({"persona": PERSONA, "name": "p@q"}, "name", ""),
        ({"persona": PERSONA, "name": "01a20be1-5033-74a9-bc10-d9d9fc8d0a3a"}, "name", "id"),
        ({"persona": PERSONA, "description": "x" * 2001}, "description", "2000"),
        ({"persona": PERSONA, "fti": {}}, "fti", ""),
    ],
)
def test_malformed_personas_and_queries(tenant: Tenant, body: dict[str, Any], field: str, limit: str) -> None:
    reply = create(tenant, **body)
    assert reply.status_code == 422
    error = reply.json()["error"]
    named = " ".join([str(error["details"].get("field", "")), error["message"], str(error["details"])])
    assert field in named
    assert limit in named
    assert tenant.get("/v1/profiles").json()["data"] == []


def test_what_is_just_within_every_limit_is_accepted(tenant: Tenant, make_app: Any) -> None:
    """The bodies' limits are the service's own: nothing passes the one and is refused by the other."""
    phrases = {"preferred": "x" * 200, "dispreferred": "y" * 200}
    body = {
        "name": "n" * 64,
        "description": "d" * 2000,
        "persona": {"description": "d" * 2000, **phrases},
        "queries": [{"text": "q" * 8000, **phrases}],
        "pairs": [{"query": "q" * 8000, "preferred": "x" * 16_000, "dispreferred": "y" * 16_000}],
    }
    with TestClient(make_app(role="control")) as client:  # with the model at hand its context would be the limit
        reply = client.post("/v1/profiles", json=body, headers=tenant.headers)
    assert reply.status_code == 202, reply.text


@pytest.mark.parametrize(
    ("fit", "named"),
    [
        ({"method": "lora"}, ("fit.method", "transport", "'lora'")),
        ({"contrast": 8.5}, ("fit.contrast", "8.5", "equal to 8")),
        ({"contrast": -1}, ("fit.contrast", "-1", "equal to 0")),
        ({"contrast_form": "half"}, ("fit.contrast_form", "clipped", "'half'")),
        ({"rank": 8}, ("fit.rank", "got 8", "equal to 7")),
        ({"rank": 0}, ("fit.rank", "got 0", "equal to 1")),
        ({"ridge": 0}, ("fit.ridge", "got 0")),
        ({"method": "alignez", "contrast": 1}, ("fit.contrast", "1.0", "'alignez'", "distill")),
        ({"method": "transport", "rank": 3}, ("fit.rank", "3", "'transport'", "distill")),
        ({"method": "prompt", "layers": 2}, ("fit.layers", "2", "'prompt'")),
        ({"method": "distill", "edit_rule": "sequential"}, ("fit.edit_rule", "'distill'", "alignez")),
        ({"method": "distill", "prompt_margin": 1}, ("fit.prompt_margin", "'distill'", "auto")),
        ({"representation": "response_mean"}, ("fit.representation", "'auto'", "alignez")),
        ({"judge": "gpt"}, ("fit.judge", "'gpt'", "openai")),
        ({"judge": "openai"}, ("fit.judge", "'openai'", "self, nano")),
        ({"judge": "model:"}, ("fit.judge",)),
        ({"answers": 0}, ("fit.answers", "got 0")),
        ({"tune_queries": 65}, ("fit.tune_queries", "64")),
        ({"held_out_queries": 513}, ("fit.held_out_queries", "512")),
        ({"answer_tokens": 1025}, ("fit.answer_tokens", "1024")),
        ({"own_queries": 257}, ("fit.own_queries", "256")),
        ({"temperature": 2.5}, ("fit.temperature", "2")),
        ({"chunk_size": 4}, ("fit.chunk_size",)),
        ({"neighbors": 0}, ("fit.neighbors", "1")),
        ({"neighbors": 2001}, ("fit.neighbors", "2000")),
        ({"layers": 5}, ("fit.layers", "4")),
        ({"layers": [0, 4]}, ("fit.layers", "layer 4", "0 to 3")),
        ({"layers": [1, 1]}, ("fit.layers", "once")),
        ({"layers": []}, ("fit.layers",)),
        ({"layers": "most"}, ("fit.layers",)),
        ({"layer_rule": "best"}, ("fit.layer_rule",)),
        ({"representation": "mean"}, ("fit.representation",)),
        ({"edit_rule": "x"}, ("fit.edit_rule",)),
        ({"strength": 8.5}, ("fit.strength", "8")),
        ({"strength": -1}, ("fit.strength", "0")),
        ({"steps": 0}, ("fit.steps",)),
        ({"responses": 4}, ("fit.responses",)),
        ({"query_encoder": "../../etc"}, ("fit.query_encoder", "lm")),
        ({"seed": -1}, ("fit.seed",)),
        ({"seed": 2**63}, ("fit.seed",)),
        ({"speed": 1}, ("fit.speed",)),
    ],
)
def test_malformed_fit_settings(tenant: Tenant, fit: dict[str, Any], named: tuple[str, ...]) -> None:
    reply = create(tenant, persona=PERSONA, fit=fit)
    assert reply.status_code == 422
    error = reply.json()["error"]
    assert all(part in error["message"] + str(error["details"]) for part in named), error


@pytest.mark.parametrize("role", ["all", "control"])
def test_more_neighbours_than_queries_names_both(tenant: Tenant, make_app: Any, role: str) -> None:
    pair = {"query": "Tea?", "preferred": "Yes!", "dispreferred": "No."}
    body: dict[str, Any] = {"name": "p", "queries": ["one", "two", "three"], "pairs": [pair]}

    def status(client: TestClient, **fit: int) -> tuple[int, str]:
        reply = client.post("/v1/profiles", json={**body, "fit": fit}, headers=tenant.headers)
        return reply.status_code, reply.json().get("error", {}).get("message", "")

    with TestClient(make_app(role=role)) as client:
        code, message = status(client, neighbors=6, own_queries=1)
        assert code == 422
        assert "neighbors=6 is more than the 5 fit queries" in message
        assert status(client, neighbors=5, own_queries=1)[0] == 202


def test_queries_that_are_kept_for_choice_and_proof_are_no_neighbours(tenant: Tenant) -> None:
    queries = [f"Number {i}?" for i in range(24)]
    count = fit_query_count(FitSpec(Persona(), tuple(map(FitQuery, queries)), (), default_queries()))
    assert count < 24
    reply = create(tenant, queries=queries, fit={"neighbors": count + 1})
    assert (reply.status_code, reply.json()["error"]["details"]["field"]) == (422, "fit.neighbors")
    assert f"neighbors={count + 1} is more than the {count} fit queries" in reply.json()["error"]["message"]
    assert create(tenant, queries=queries, fit={"neighbors": count}).status_code == 202


def test_more_neighbours_than_are_fitted_on_of_the_query_bank_names_both(tenant: Tenant) -> None:
    count = fit_query_count(FitSpec(bank=default_queries()))
    reply = create(tenant, persona=PERSONA, fit={"neighbors": count + 1})
    error = reply.json()["error"]
    assert (reply.status_code, error["details"]["field"]) == (422, "fit.neighbors")
    assert f"neighbors={count + 1} is more than the {count} fit queries" in error["message"]
    assert create(tenant, persona=PERSONA, fit={"neighbors": count}).status_code == 202
    # A later version that fits on fewer is measured by it too.
    assert tenant.post("/v1/profiles/p/versions", json={"fit": {"answers": 8}}).status_code == 422


def test_a_process_without_the_model_leaves_the_bank_to_the_worker(tenant: Tenant, make_app: Any) -> None:
    with TestClient(make_app(role="control")) as client:
        body = {"name": "p", "persona": PERSONA, "fit": {"neighbors": 2000}}
        assert client.post("/v1/profiles", json=body, headers=tenant.headers).status_code == 202


def test_numbers_that_are_none_are_refused(tenant: Tenant) -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = f'{{"name": "p", "persona": {{"preferred": "x"}}, "fit": {{"strength": {number}}}}}'
        reply = tenant.post("/v1/profiles", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 422


def test_a_setting_must_go_with_the_method_also_when_the_method_is_inherited(tenant: Tenant) -> None:
    reply = create(tenant, persona=PERSONA, fit={"representation": "response_mean"})
    assert (reply.status_code, reply.json()["error"]["details"]["field"]) == (422, "fit.representation")
    fit = {"representation": "response_mean", "method": "alignez"}
    assert create(tenant, persona=PERSONA, fit=fit).status_code == 202
    reply = tenant.post("/v1/profiles/p/versions", json={"fit": {"contrast": 1}})
    assert (reply.status_code, reply.json()["error"]["details"]["field"]) == (422, "fit.contrast")


def test_a_query_over_the_context_names_itself_and_the_context(tenant: Tenant) -> None:
    reply = create(tenant, queries=["short", "word " * 600])
    assert reply.status_code == 422
    error = reply.json()["error"]
    assert error["details"]["field"] == "queries.1.text"
    assert "512" in error["message"]


WORDS = "word " * 300  # 300 tokens of the fake engine, whose context has 512


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"persona": {**PERSONA, "description": "a " * 480}}, "persona.description"),
        ({"persona": {**PERSONA, "description": "a " * 480}, "queries": ["short"]}, "persona.description"),
        ({"persona": {**PERSONA, "description": "a " * 240}, "queries": ["short", WORDS]}, "queries.1.text"),
        ({"persona": {**PERSONA, "description": WORDS}, "queries": ["short", "a " * 240]}, "persona.description"),
        ({"persona": PERSONA, "queries": ["short", "word " * 470]}, "queries.1.text"),
        ({"persona": PERSONA, "queries": [WORDS], "fit": {"answer_tokens": 220}}, "queries.0.text"),
        (
            {"persona": {**PERSONA, "description": WORDS},
             "pairs": [{"query": "short", "preferred": "a " * 240, "dispreferred": "no"}]},
            "persona.description",
        ),
        (
            {"persona": PERSONA, "pairs": [{"query": "short", "preferred": "yes", "dispreferred": "no " * 520}]},
            "pairs.0.dispreferred",
        ),
    ],
)  # fmt: skip
def test_a_prompt_of_the_fit_over_the_context_names_the_text_to_blame(
    tenant: Tenant, body: dict[str, Any], field: str
) -> None:
    reply = create(tenant, **body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["details"]["field"]) == (422, "context_length_exceeded", field)
    assert "512" in error["message"]


def test_a_prompt_of_the_fit_within_the_context_is_accepted(tenant: Tenant) -> None:
    persona = {**PERSONA, "description": "a " * 100}
    pairs = [{"query": "short", "preferred": WORDS, "dispreferred": "no"}]
    # A query with phrases of its own leaves the description out.
    own = {"text": "word " * 420, "preferred": "formal", "dispreferred": "slang"}
    assert create(tenant, persona=persona, queries=[WORDS, own], pairs=pairs).status_code == 202


def test_texts_are_measured_before_the_tenants_lock_is_taken(
    tenant: Tenant, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: list[bool] = []

    def measuring(*_: object) -> None:
        with UnitOfWork.open(sessions, PLATFORM) as uow:
            lock = text("SELECT id FROM tenants WHERE id = :id FOR UPDATE SKIP LOCKED")
            free.append(uow.session.execute(lock, {"id": tenant.caller.tenant_id}).first() is not None)

    monkeypatch.setattr("api.profiles.checks._check_lengths", measuring)
    assert create(tenant, persona=PERSONA).status_code == 202
    assert tenant.post("/v1/profiles/p/versions", json={}).status_code == 202
    assert free == [True, True]


def test_a_wrong_base_model_names_both(tenant: Tenant) -> None:
    reply = create(tenant, persona=PERSONA, base_model="none")
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (409, "model_mismatch")
    assert error["details"] == {"expected": "fake", "got": "none"}
    assert "'fake'" in error["message"]
    assert "'none'" in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": ' + b"[" * 100_000, b'"x"', b'{"seed": ' + b"9" * 5000]
)
def test_what_is_no_json_object_is_refused(tenant: Tenant, body: bytes) -> None:
    for path in ("/v1/profiles", "/v1/chat/completions", "/v1/compare"):
        reply = tenant.post(path, content=body, headers={"content-type": "application/json"})
        assert reply.status_code in (400, 422)
        assert "Traceback" not in reply.text


def test_lone_surrogates_are_refused_in_values_and_names(tenant: Tenant) -> None:
    for body in (
        '{"name": "p", "persona": {"preferred": "\\ud800"}}',
        '{"name": "p", "persona": {"\\ud800": "x"}}',
        '{"name": "\\ud800", "persona": {"preferred": "x"}}',
    ):
        reply = tenant.post("/v1/profiles", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 422


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_unread(tenant: Tenant, make_app: Any, declared: bool) -> None:
    large = b'{"name": "' + b"x" * 70_000 + b'"}'
    with TestClient(make_app(FakeEngine(), max_body_bytes=65_536)) as client:
        for path in ("/v1/profiles", "/v1/chat/completions"):
            content = large if declared else iter([large[:40_000], large[40_000:]])
            reply = client.post(path, content=content, headers={**tenant.headers, "content-type": "application/json"})
            assert reply.status_code == 413
            assert reply.json()["error"]["details"]["limit_bytes"] == 65_536


def test_a_body_over_the_limit_is_refused_over_a_socket(tenant: Tenant, make_app: Any) -> None:
    with serving(make_app(FakeEngine(), max_body_bytes=65_536)) as (url, _), httpx.Client() as client:
        reply = client.post(f"{url}/v1/profiles", content=b"x" * 100_000, headers=tenant.headers)
        assert reply.status_code == 413
        assert client.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/profiles/%00", "/v1/profiles/a%00b/versions", "/v1/users/%00/profile", "/v1/jobs/%00",
        "/v1/profiles/p/versions/1%00", "/v1/profiles/" + "x" * 3000, "/v1/users/%0a/profile",
        "/v1/models/%00", "/v1/profiles?cursor=%00", "/v1/jobs?limit=0", "/v1/jobs?limit=201", "/v1/jobs?limit=x",
        "/v1/profiles/p/versions/-1", "/v1/profiles/p/versions/99999999999999999999",
    ],
)  # fmt: skip
def test_odd_paths_and_parameters_are_refused(tenant: Tenant, path: str) -> None:
    reply = tenant.get(path)
    assert reply.status_code in (400, 404, 422)
    assert reply.json()["error"]["message"]


def test_unknown_paths_and_methods_have_our_envelope(tenant: Tenant) -> None:
    assert tenant.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert tenant.delete("/v1/profiles").json()["error"]["code"] == "method_not_allowed"
    assert tenant.get("/v1/chat/completions").json()["error"]["type"] == "invalid_request_error"


def test_the_fit_settings_of_the_api_are_the_cores_own() -> None:
    """Every setting of `FitConfig` can be given, and within its limits the one takes what the other takes."""
    mine = set(FitBody.model_fields)
    core = set(FitConfig.__dataclass_fields__)
    assert mine <= core
    assert core - mine == {"chunk_size"}  # the worker's business
    extremes: list[dict[str, Any]] = [
        {"steps": None}, {"steps": "default"}, {"layers": "all"}, {"layers": [0, 7]}, {"conditional": False},
        {"method": "alignez", "edit_rule": "orthogonal"}, {"method": "alignez", "layer_rule": "separation"},
        {"method": "alignez", "representation": "response_mean"}, {"contrast_form": "mean"}, {"judge": "model:x"},
    ]  # fmt: skip
    for name in sorted(mine & set(LIMITS)):
        low, high = LIMITS[name]
        of_alignez = {"method": "alignez"} if name == "characteristics_tokens" else {}
        extremes += [{**of_alignez, name: low}, {**of_alignez, name: high}]
        for beyond in (low - 1, high + 1):
            with pytest.raises(ValidationError):
                FitBody.model_validate({name: beyond})
    for settings in extremes:
        FitConfig.from_dict(FitBody.model_validate(settings).given())


def test_a_query_that_is_too_long_is_named_by_its_place_alone(tenant: Tenant) -> None:
    reply = tenant.post("/v1/profiles", json={"name": "long", "queries": ["How?", "x" * 100_000]})
    assert reply.status_code == 422
    error = reply.json()["error"]
    fields = [each["field"] for each in error["details"]["errors"]]
    assert fields[0] == "queries.1"
    assert not any("function" in field for field in fields)
    assert "0x" not in reply.text
