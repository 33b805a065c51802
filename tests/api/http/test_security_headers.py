"""Security headers: on every route, with and without a key, on errors, streams and what no route answers."""

from __future__ import annotations

import asyncio
import re
import timeit
from collections.abc import Mapping
from http.client import HTTPResponse
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from alignez_core.engines.fake.engine import FakeEngine
from api.http.security import App, Message, Receive, Scope, SecurityHeaders, Send, inline_source
from tests.api.conftest import AppMaker, Tenant, serving
from tests.api.raw_http import closed_by_server, raw_connection, read_reply
from tests.api.test_openapi import OPERATIONS

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
ROUTES = [(path, method) for path, method, _ in OPERATIONS]
HSTS = "strict-transport-security"


def check(headers: Mapping[str, str], cached: str = "no-store") -> None:
    """Asserts that a response over plain HTTP has every header."""
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["content-security-policy"].endswith("frame-ancestors 'none'")
    assert headers["cache-control"] == cached
    assert "server" not in headers
    assert HSTS not in headers


@pytest.mark.parametrize("with_key", [True, False], ids=["with a key", "without a key"])
@pytest.mark.parametrize(("path", "method"), ROUTES, ids=[f"{method} {path}" for path, method in ROUTES])
def test_every_route_has_them(tenant: Tenant, path: str, method: str, with_key: bool) -> None:
    url = re.sub(r"\{\w+\}", "1", path)
    check(tenant.client.request(method, url, headers=tenant.headers if with_key else {}).headers)


@pytest.mark.parametrize(
    ("status", "method", "path", "sent"),
    [
        (404, "GET", "/nowhere", {}),
        (404, "GET", "/docs/assets/nothing.js", {}),
        (405, "TRACE", "/v1/jobs", {}),
        (405, "OPTIONS", "/v1/jobs", {}),
        (422, "POST", "/v1/profiles", {"content": b'{"name":', "headers": {"content-type": "application/json"}}),
        (415, "POST", "/v1/profiles", {"content": b"name", "headers": {"content-type": "text/plain"}}),
        (413, "POST", "/v1/profiles", {"content": b" " * 5_000_000}),
        (400, "POST", "/v1/chat/completions", {"json": {"model": "fake", "messages": []}}),
        (401, "GET", "/v1/jobs", {"headers": {"Authorization": "Bearer wrong"}}),
        (200, "HEAD", "/health", {}),
        (200, "GET", "/openapi.json", {}),
    ],
)
def test_errors_and_other_paths_have_them(
    tenant: Tenant, status: int, method: str, path: str, sent: dict[str, Any]
) -> None:
    headers = {**tenant.headers, **sent.pop("headers", {})}
    reply = tenant.client.request(method, path, headers=headers, **sent)
    assert reply.status_code == status
    check(reply.headers)


def test_an_unexpected_error_has_them(make_app: AppMaker) -> None:
    app = make_app(role="control")

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("planted")

    with TestClient(app) as client:
        reply = client.get("/broken")
    assert reply.status_code == 500
    check(reply.headers)


def test_streams_have_them(tenant: Tenant) -> None:
    reply = tenant.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    check(reply.headers, cached="no-store, no-transform")
    assert reply.headers["x-accel-buffering"] == "no"
    tenant.ready("p")
    job = tenant.get("/v1/profiles/p/versions/1").json()["job_id"]
    check(tenant.get(f"/v1/jobs/{job}/events").headers, cached="no-store, no-transform")


def test_a_browsers_question_has_them(make_app: AppMaker) -> None:
    origin = "https://app.example.com"
    with TestClient(make_app(FakeEngine(), cors_origins=[origin])) as client:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        for asked in (headers, {**headers, "origin": "https://elsewhere.example.com"}):
            check(client.options("/v1/profiles", headers=asked).headers)


def test_tls_adds_strict_transport_security(client: TestClient) -> None:
    for path in ("/health", "/nowhere", "/docs"):
        assert client.get(f"https://testserver{path}").headers[HSTS] == "max-age=31536000"
        assert HSTS not in client.get(path).headers


# Below FastAPI


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"x" * 70_000,
    ],
    ids=["no request line", "no version", "no host", "no colon", "two lengths", "long headers"],
)
def test_what_is_not_http_gets_400_with_them(make_app: AppMaker, sent: bytes) -> None:
    with serving(make_app(role="control")) as (url, _), raw_connection(url) as connection:
        connection.sendall(sent)
        reply = HTTPResponse(connection)
        reply.begin()
        assert (reply.status, reply.read()) == (400, b"Invalid HTTP request received.")
    check(dict(reply.headers))
    assert reply.headers["connection"] == "close"


def test_a_broken_body_after_the_response_closes_the_connection(make_app: AppMaker) -> None:
    with serving(make_app(role="control")) as (url, _), raw_connection(url) as connection:
        connection.sendall(b"POST /v1/profiles HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        assert read_reply(connection)[0] == 401
        connection.sendall(b"no chunk\r\n")
        assert closed_by_server(connection)


def test_the_real_server_names_no_server_and_repeats_no_header(make_app: AppMaker) -> None:
    with serving(make_app(role="control", max_connections=1)) as (url, _), httpx.Client(trust_env=False) as client:
        replies = [client.get(f"{url}/health"), client.get(f"{url}/v1/jobs")]
        with raw_connection(url) as connection:
            full = HTTPResponse(connection)
            full.begin()
            assert (full.status, full.read()) == (503, b"all connections are in use\r\n")
        check(dict(full.headers))
    for reply in replies:
        check(reply.headers)
        names = [name for name, _ in reply.headers.multi_items()]
        assert len(set(names)) == len(names)


# Pages


def test_the_documentation_may_run_its_own_scripts_only(client: TestClient) -> None:
    reply = client.get("/docs")
    check(reply.headers)
    directives = dict(each.split(" ", 1) for each in reply.headers["content-security-policy"].split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", reply.text, re.DOTALL)
    assert directives["script-src"] == f"'self' {inline_source(script)}"
    assert directives["connect-src"] == directives["style-src"] == "'self'"
    assert not re.search(r"\son\w+=|javascript:", reply.text)


def test_a_browser_may_keep_the_documentations_files(client: TestClient) -> None:
    path = "/docs/assets/swagger-ui.css"
    reply = client.get(path)
    check(reply.headers, cached="no-cache")
    again = client.get(path, headers={"if-none-match": reply.headers["etag"]})
    assert again.status_code == 304
    check(again.headers, cached="no-cache")


def test_a_report_may_use_its_own_styles_only(tenant: Tenant) -> None:
    tenant.ready("p")
    reply = tenant.get("/v1/profiles/p/versions/1/report?format=html")
    check(reply.headers)
    directives = dict(each.split(" ", 1) for each in reply.headers["content-security-policy"].split("; "))
    (style,) = re.findall(r"<style>(.*?)</style>", reply.text, re.DOTALL)
    assert set(directives) == {"default-src", "style-src", "base-uri", "form-action", "frame-ancestors"}
    assert directives["style-src"] == inline_source(style)
    assert not re.search(r"<[^>]*\sstyle=", reply.text)  # a hash does not allow style attributes


# Cost


def test_their_cost_is_microseconds() -> None:
    """Mean time of a response with ten headers, against the same without the middleware."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"x-%d" % i, b"y") for i in range(10)]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(start))
        await send({"type": "http.response.body", "body": b"x"})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        pass

    def seconds(one: App) -> float:
        async def often() -> None:
            for _ in range(1000):
                await one({"type": "http", "scheme": "http"}, receive, send)

        return min(timeit.repeat(lambda: asyncio.run(often()), number=1, repeat=5)) / 1000

    assert seconds(SecurityHeaders(app)) - seconds(app) < 50e-6  # measured: 4 µs
