"""Paths and methods that no route has, `HEAD`, and bodies without the header that says they are JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from alignez_core.engines.fake.engine import FakeEngine
from tests.api.conftest import Tenant, serving

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def test_every_path_says_which_methods_it_has(app: FastAPI, client: TestClient) -> None:
    """RFC 9110, 15.5.6: a 405 must have `Allow`. One path's methods are several routes."""
    refused = 0
    for template, operations in app.openapi()["paths"].items():
        path = template.format(
            **dict.fromkeys(("profile", "number", "alias", "user", "job", "key", "tenant", "name"), "x")
        )
        has = {method.upper() for method in operations} | ({"HEAD"} if template in ("/health", "/ready") else set())
        for method in METHODS:
            if method not in has:
                reply = client.request(method, path)
                assert reply.status_code == 405, (method, path)
                assert set(reply.headers["allow"].split(", ")) == has, (method, path)
                refused += 1
                if method != "HEAD":
                    error = reply.json()["error"]
                    assert method in error["message"]
                    assert reply.headers["allow"] in error["message"]
    assert refused > 100


def test_probes_answer_head_over_a_socket(make_app: Any) -> None:
    with serving(make_app(FakeEngine(), role="inference")) as (url, _), httpx.Client() as client:
        for path in ("/health", "/ready"):
            reply = client.head(f"{url}{path}")
            assert (reply.status_code, reply.content) == (200, b"")
            assert reply.headers["content-length"] == client.get(f"{url}{path}").headers["content-length"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/nothing", ("paths below /v1:", "profiles", "/docs")),
        ("/v1/profile", ("did you mean /v1/profiles?",)),
        ("/v1/profiles/", ("/v1/profiles,", "slash")),
        ("/v1/profiles/p/version", ("did you mean /v1/profiles/{profile}/versions?",)),
        ("/v1/profiles/p/versions/1/x", ("below /v1/profiles/{profile}/versions/{number}", "report", "pairs")),
        ("/chat/completions", ("did you mean /v1/chat/completions?",)),
        ("/", ("paths below /:", "health")),
        ("/v1/users/a%2Fb/profile", ("paths below /v1/users/{user}:", "profile", "%2F")),
        ("/v1/chat/completion", ("did you mean /v1/chat/completions?",)),
        ("/" + "x/" * 2000, ("paths below /:",)),
    ],
)
def test_an_unknown_path_says_what_there_is(tenant: Tenant, path: str, said: tuple[str, ...]) -> None:
    reply = tenant.get(path)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (404, "not_found")
    for part in said:
        assert part in error["message"]
    assert len(error["message"]) < 800


BODIES = {
    "/v1/chat/completions": {"model": "fake", "messages": [{"role": "user", "content": "x"}]},
    "/v1/users/anna/profile": {"profile": "p"},
}


@pytest.mark.parametrize("path", list(BODIES))
def test_json_without_a_content_type_is_read(tenant: Tenant, path: str) -> None:
    tenant.ready("p")
    send = tenant.put if path.endswith("profile") else tenant.post
    assert send(path, content=json.dumps(BODIES[path])).status_code == 200
    assert send(path, content="{").json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
def test_a_body_of_another_type_gets_one_clear_line(tenant: Tenant, path: str, kind: str) -> None:
    """`curl -d` without a header sends the first of these."""
    send = tenant.put if path.endswith("profile") else tenant.post
    reply = send(path, content=json.dumps(BODIES[path]), headers={"content-type": kind})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in error["message"]
    assert kind in error["message"]
    assert error["details"] == {"field": "Content-Type"}


@pytest.mark.parametrize(
    "path", ["/v1/jobs?statu=failed", "/v1/profiles?limit=5&crsor=x", "/v1/profiles/x/versions?limt=5"]
)
def test_a_misspelt_query_parameter_is_refused_by_name(tenant: Tenant, path: str) -> None:
    error = tenant.get(path).json()["error"]
    assert (error["code"], error["details"]["field"]) == ("unknown_parameter", re.split("[?&=]", path)[-2])
    assert "there are" in error["message"]


def test_a_route_without_query_parameters_ignores_a_clients_own(tenant: Tenant) -> None:
    assert tenant.get("/v1/models?api-version=2024-10-21").status_code == 200


def test_no_body_at_all_says_so(tenant: Tenant) -> None:
    reply = tenant.post("/v1/profiles")
    assert (reply.status_code, reply.json()["error"]["message"]) == (422, "body: a JSON object is required")


@pytest.mark.parametrize(
    ("method", "path", "field", "place"),
    [
        ("GET", "/v1/jobs?limit=0", "limit", "query"),
        ("GET", "/v1/jobs?status=done", "status", "query"),
        ("GET", "/admin/usage?since=x", "since", "query"),
        ("GET", "/admin/keys?tenant=x", "tenant", "query"),
        ("GET", "/v1/profiles/p/versions/x", "number", "path"),
        ("GET", "/v1/profiles/p/versions/1/report?format=pdf", "format", "query"),
        ("GET", "/v1/users/%0A/profile", "user", "path"),
        ("GET", "/v1/profiles/%00", "profile", "path"),
        ("PUT", "/v1/profiles/p/aliases/a@b", "alias", "path"),
        ("POST", "/v1/users/%0A/chat/completions", "user", "path"),
    ],
)
def test_parameters_are_named_as_they_are_written(
    operator: Tenant, method: str, path: str, field: str, place: str
) -> None:
    send = getattr(operator, method.lower())
    reply = send(path, json=BODIES["/v1/chat/completions"]) if method == "POST" else send(path)
    error = reply.json()["error"]
    assert (error["details"]["field"], error["details"]["errors"][0]["in"]) == (field, place)
    assert error["message"].startswith(f"{field} ({place}): ")
    assert error.get("param", field) == field
