"""What browsers need: pages of other origins where a setting allows them, and documentation from this server alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from alignez_core.engines.fake.engine import FakeEngine
from api.settings import ApiSettings
from tests.api.conftest import Tenant

ORIGIN = "https://app.example.com"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, idempotency-key, x-stainless-lang",
}


def test_no_origin_may_call_unless_a_setting_names_it(client: TestClient, tenant: Tenant) -> None:
    for reply in (
        client.options("/v1/profiles", headers=PREFLIGHT),
        tenant.get("/v1/profiles", headers={"origin": ORIGIN}),
    ):
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_named_origin_may_call_and_reads_errors_and_ids(make_app: Any, tenant: Tenant) -> None:
    with TestClient(make_app(FakeEngine(), cors_origins=[ORIGIN], max_body_bytes=1024)) as client:
        asked = client.options("/v1/chat/completions", headers=PREFLIGHT)  # browsers send no key with it
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == ORIGIN
        assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
        header = {**tenant.headers, "origin": ORIGIN}
        replies = {
            200: client.get("/v1/models", headers=header),
            401: client.get("/v1/models", headers={"origin": ORIGIN}),
            413: client.post("/v1/chat/completions", content=b" " * 2000, headers=header),
        }
        for status, reply in replies.items():
            assert reply.status_code == status
            assert reply.headers["access-control-allow-origin"] == ORIGIN
            assert "x-request-id" in reply.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize("origin", ["app.example.com", "https://", "https://app.example.com/page", "*.example.com"])
def test_an_origin_that_no_browser_sends_is_a_wrong_setting(origin: str) -> None:
    with pytest.raises(ValidationError, match="must be origins"):
        ApiSettings(cors_origins=(origin,))
    assert ApiSettings(cors_origins=(f"{ORIGIN}:8443/", "*")).cors_origins == (f"{ORIGIN}:8443", "*")


def test_another_origin_may_not(make_app: Any) -> None:
    with TestClient(make_app(role="control", cors_origins=[ORIGIN])) as client:
        other = {**PREFLIGHT, "origin": "https://elsewhere.example.com"}
        assert client.options("/v1/profiles", headers=other).status_code == 400
        assert "access-control-allow-origin" not in client.get("/health", headers=other).headers


def test_the_documentation_needs_nothing_from_elsewhere(client: TestClient) -> None:
    assert client.head("/docs").status_code == 200
    page = client.get("/docs").text
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", page)
    links = re.findall(r"(?:src|href)=[\"']([^\"']+)", page)
    assert len(links) == 3
    for link in links:
        assert client.get(f"/{link}").status_code == 200
    assert client.get("/redoc").status_code == 404


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/docs/assets/swagger-ui.css"])
def test_a_setting_closes_the_documentation(make_app: Any, path: str) -> None:
    with TestClient(make_app(role="control", docs=False)) as client:
        assert client.get(path).status_code == 404
