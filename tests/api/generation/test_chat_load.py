"""`POST /v1/chat/completions` of many callers, of callers that leave, and on an engine that is full or fails."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import EngineClosed
from tests.api.conftest import Tenant, serving
from tests.api.events import chunks
from tests.core.engines.tiny_models import byte_tokenizer, tiny_engine, tiny_model


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_asks_to_come_back(make_app: Any, tenant: Tenant, stream: bool) -> None:
    engine = FakeEngine(max_waiting=2, step_s=0.02)
    with TestClient(make_app(engine)) as client:
        body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "n": 3, "stream": stream}
        reply = client.post("/v1/chat/completions", json=body, headers=tenant.headers)
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 1
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "engine_overloaded")
        # The two that had started were stopped again.
        wait_for(lambda: engine.running == 0, 1.0)
        fewer = client.post("/v1/chat/completions", json={**body, "n": 1, "max_tokens": 1}, headers=tenant.headers)
        assert fewer.status_code == 200


@pytest.mark.parametrize(("error", "status"), [(EngineClosed("down"), 503), (RuntimeError("boom"), 500)])
def test_an_engine_that_fails_is_a_status_before_the_first_byte_and_an_event_after_it(
    make_app: Any, tenant: Tenant, error: Exception, status: int
) -> None:
    engine = FakeEngine(error=error, fail_after=3)
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    with TestClient(make_app(engine)) as client:
        assert client.post("/v1/chat/completions", json=body, headers=tenant.headers).status_code == status
        reply = client.post("/v1/chat/completions", json={**body, "stream": True}, headers=tenant.headers)
        assert reply.status_code == 200
        blocks = reply.text.strip().split("\n\n")
        last = json.loads(blocks[-1].removeprefix("data: "))
        assert last["error"]["type"] == "server_error"
        assert last["error"]["request_id"] == reply.headers["x-request-id"]
        assert "boom" not in reply.text
        assert "[DONE]" not in reply.text


@pytest.fixture
def slow() -> FakeEngine:
    return FakeEngine(step_s=0.01)


@pytest.fixture
def slow_url(make_app: Any, slow: FakeEngine) -> Iterator[str]:
    with serving(make_app(slow)) as (url, _):
        yield url


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


@pytest.mark.parametrize("choices", [1, 3])
def test_a_client_that_goes_away_mid_stream_stops_its_rows(
    slow: FakeEngine, slow_url: str, tenant: Tenant, choices: int
) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "stream": True, "n": choices,
            "ignore_eos": True, "max_tokens": 400}  # fmt: skip
    with (
        httpx.Client(timeout=20) as client,
        client.stream("POST", f"{slow_url}/v1/chat/completions", json=body, headers=tenant.headers) as reply,
    ):
        lines = reply.iter_lines()  # httpx closes the connection when nobody holds this iterator any more
        next(lines)  # of one choice; the others may start after it
        wait_for(lambda: slow.running == choices)
    wait_for(lambda: slow.running == 0, 1.0)
    assert slow.cancelled == choices


def test_a_client_that_goes_away_before_a_whole_answer_stops_its_row(
    slow: FakeEngine, slow_url: str, tenant: Tenant
) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "ignore_eos": True, "max_tokens": 400}

    connection = http.client.HTTPConnection(urlsplit(slow_url).netloc, timeout=30)
    headers = {**tenant.headers, "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    wait_for(lambda: slow.running == 1)
    connection.close()
    wait_for(lambda: slow.running == 0, 3.0)  # the whole answer takes 4 s
    assert slow.cancelled == 1


def test_many_streams_at_once_each_get_their_own_answer(slow_url: str, tenant: Tenant) -> None:
    def ask(i: int, found: dict[int, str], stream: bool) -> None:
        body = {"model": "fake", "messages": [{"role": "user", "content": f"query {i}"}], "temperature": 0,
                "stream": stream}  # fmt: skip
        with httpx.Client(timeout=30) as client:
            reply = client.post(f"{slow_url}/v1/chat/completions", json=body, headers=tenant.headers)
        if stream:
            found[i] = "".join(e["choices"][0]["delta"].get("content", "") for e in chunks(reply.text))
        else:
            found[i] = reply.json()["choices"][0]["message"]["content"]

    results = []
    for stream in (True, False):
        found: dict[int, str] = {}
        threads = [threading.Thread(target=ask, args=(i, found, stream)) for i in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results.append(found)
    assert results[0] == results[1]
    assert len(set(results[0].values())) == 24


def test_every_row_says_on_whose_behalf_it_runs(tenant: Tenant, stranger: Tenant, engine: FakeEngine) -> None:
    for whose in (tenant, stranger):
        before = len(engine.requests)
        assert whose.chat(n=2, max_tokens=1).status_code == 200
        assert whose.post("/v1/completions", json={"model": "fake", "prompt": "a", "max_tokens": 1}).status_code == 200
        assert {row.group for row in engine.requests[before:]} == {str(whose.caller.tenant_id)}
        assert len(engine.requests) == before + 3


def test_a_request_over_the_engines_memory_is_told_both_numbers(make_app: Any, tenant: Tenant) -> None:
    with tiny_engine(max_cache_tokens=60) as engine, TestClient(make_app(engine, max_cache_tokens=60)) as client:
        body = {"model": "llama", "messages": [{"role": "user", "content": "x"}], "ignore_eos": True}
        for stream in (False, True):
            reply = client.post(
                "/v1/chat/completions", json={**body, "max_tokens": 80, "stream": stream}, headers=tenant.headers
            )
            assert reply.status_code == 400
            error = reply.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")
            assert error["details"]["limit"] == 60
            assert "80 new tokens" in error["message"]
            assert "60 tokens" in error["message"]
        # An answer of open length takes what there is.
        reply = client.post("/v1/chat/completions", json=body, headers=tenant.headers)
        assert reply.status_code == 200
        assert reply.json()["usage"]["total_tokens"] == 60


def test_a_full_engine_asks_one_tenant_to_come_back_and_lets_another_in(
    make_app: Any, tenant: Tenant, stranger: Tenant
) -> None:
    """The real engine behind a real server: one place, one more that waits."""
    gate, inside = threading.Event(), threading.Event()
    model = tiny_model("llama")

    def hold(*_: object) -> None:
        inside.set()
        assert gate.wait(20)

    with TransformersEngine.from_model(
        model, byte_tokenizer(), "llama-0", name="llama", max_slots=1, max_waiting=1
    ) as engine:
        # From now on: the engine runs the model once to prove where its layers are.
        model.get_input_embeddings().register_forward_pre_hook(hold)
        running = engine.stream(GenerationRequest("a", 1, group="nobody"))
        assert inside.wait(20)
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "stream": True}
        with serving(make_app(engine)) as (url, _), httpx.Client(timeout=20) as client:

            def ask(whose: Tenant) -> Any:
                return client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=whose.headers)

            with ask(tenant) as first, ask(stranger) as other:
                assert (first.status_code, other.status_code) == (200, 200)
                with ask(tenant) as refused:
                    assert refused.status_code == 429
                    assert int(refused.headers["retry-after"]) >= 1
                    assert json.loads(refused.read())["error"]["code"] == "engine_overloaded"
                gate.set()
                for reply in (first, other):
                    assert "data: [DONE]" in list(reply.iter_lines())
        list(running)
