"""The OpenAPI file: current, complete, and true about its errors."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.openapi_file import FILE, render
from tests.api.conftest import Tenant

SCHEMA: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
OPERATIONS = [(path, method, op) for path, ops in SCHEMA["paths"].items() for method, op in ops.items()]


def test_the_committed_file_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == render(), "run: make openapi"


def test_every_call_of_the_design_is_there() -> None:
    named = {
        "POST /v1/profiles", "GET /v1/profiles", "GET /v1/profiles/{profile}", "PATCH /v1/profiles/{profile}",
        "DELETE /v1/profiles/{profile}", "POST /v1/profiles/{profile}/versions", "GET /v1/profiles/{profile}/versions",
        "GET /v1/profiles/{profile}/versions/{number}", "GET /v1/profiles/{profile}/versions/{number}/pairs",
        "PUT /v1/profiles/{profile}/aliases/{alias}", "POST /v1/profiles/{profile}/promote",
        "POST /v1/profiles/{profile}/rollback", "PUT /v1/users/{user}/profile", "GET /v1/users/{user}/profile",
        "DELETE /v1/users/{user}/profile", "GET /v1/jobs", "GET /v1/jobs/{job}", "POST /v1/jobs/{job}/cancel",
        "GET /v1/jobs/{job}/events", "POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models",
        "POST /v1/users/{user}/chat/completions", "POST /v1/compare", "GET /admin/tenants", "POST /admin/tenants",
        "GET /admin/keys", "POST /admin/keys", "GET /admin/audit", "GET /admin/usage", "GET /admin/profiles",
        "GET /health", "GET /ready",
    }  # fmt: skip
    assert named <= {f"{method.upper()} {path}" for path, method, _ in OPERATIONS}


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=[f"{m} {p}" for p, m, _ in OPERATIONS])
def test_every_call_says_what_it_does_who_may_and_how_it_fails(
    path: str, method: str, operation: dict[str, Any]
) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    assert bool(operation.get("security")) == (path not in ("/health", "/ready"))
    for status, response in operation["responses"].items():
        if int(status) >= 400 and path != "/ready":
            name = response["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            openai = re.match(r"/v1/(users/\{user\}/)?(chat|completions|models)", path)
            assert name == ("OpenAIError" if openai else "Error")


def test_the_pages_for_people_are_served(client: TestClient) -> None:
    assert "swagger" in client.get("/docs").text.lower()
    assert client.get("/openapi.json").json()["paths"].keys() == SCHEMA["paths"].keys()


def test_the_declared_scheme_is_the_one_that_works(tenant: Tenant) -> None:
    (scheme,) = SCHEMA["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert tenant.get("/v1/jobs").status_code == 200
