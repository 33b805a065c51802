"""A stream that waits sends comments, which clients pass over; until it begins, an error is an HTTP status."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from openai import OpenAI

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.prompts import ChatFormat, Message
from api.http.sse import HEARTBEAT
from tests.api.conftest import AppMaker, Tenant, serving
from tests.api.generation.test_parameters import BODIES

INTERVAL_S = 0.02
WAIT_S = 20.0


class OpensGate:
    """Middleware: the first heartbeat that is sent opens the gate at which an engine waits."""

    def __init__(self, app: Any, gate: threading.Event) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def watched(message: Any) -> None:
            await send(message)
            if message.get("body") == HEARTBEAT:
                self._gate.set()

        await self._app(scope, receive, watched)


Waiting = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def waiting(make_app: AppMaker) -> Waiting:
    """`waiting(engine, gate)`: the URL of a server whose first heartbeat opens the gate."""

    @contextmanager
    def start(engine: FakeEngine, gate: threading.Event, heartbeat_s: float = INTERVAL_S) -> Iterator[str]:
        app = make_app(engine, heartbeat_s=heartbeat_s)
        app.add_middleware(OpensGate, gate=gate)
        with serving(app) as (url, _):
            yield url

    return start


def gated(gate: threading.Event) -> FakeEngine:
    """An engine whose answers wait for the gate."""

    def reply(_: GenerationRequest) -> str:
        assert gate.wait(WAIT_S)
        return "Here it is."

    return FakeEngine(reply=reply)


@pytest.mark.parametrize("path", list(BODIES))
def test_a_stream_that_waits_for_its_first_token_sends_comments(waiting: Waiting, tenant: Tenant, path: str) -> None:
    tenant.ready("p")
    gate = threading.Event()
    body = {**BODIES[path], "stream": True, "max_tokens": 20}
    with waiting(gated(gate), gate) as url, httpx.Client(timeout=WAIT_S) as client:
        reply = client.post(f"{url}{path}", json=body, headers=tenant.headers)
        assert reply.status_code == 200
        comments = [line for line in reply.text.split("\n") if line.startswith(":")]
        assert comments
        assert set(comments) == {HEARTBEAT.decode().strip()}
        gate.clear()
        with connect_sse(client, "POST", f"{url}{path}", json=body, headers=tenant.headers) as source:
            events = list(source.iter_sse())
        assert gate.is_set()
        assert all(json.loads(event.data) for event in events if event.data != "[DONE]")


def test_the_official_client_passes_over_them(waiting: Waiting, tenant: Tenant) -> None:
    gate = threading.Event()
    with (
        waiting(gated(gate), gate) as url,
        OpenAI(base_url=f"{url}/v1", api_key=tenant.secret, max_retries=0, timeout=WAIT_S) as client,
    ):
        stream = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Here it is."
        assert gate.is_set()
        gate.clear()
        text = client.completions.create(model="fake", prompt="x", stream=True)
        assert "".join(chunk.choices[0].text for chunk in text) == "Here it is."
        assert gate.is_set()


def test_a_quick_answer_has_none(tenant: Tenant) -> None:
    assert not [line for line in tenant.chat(stream=True).text.split("\n") if line.startswith(":")]


#: Long enough to be rendered beside the event loop, which a template that waits would hold up.
LONG = "x" * 8100


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/compare"])
def test_an_error_is_a_status_until_the_first_heartbeat_and_an_event_after_it(
    waiting: Waiting, tenant: Tenant, path: str
) -> None:
    tenant.ready("p")
    gate = threading.Event()

    def template(_: Sequence[Message]) -> str:
        assert gate.wait(WAIT_S)
        raise ValueError("roles must alternate")

    more: dict[str, Any] = {"profiles": [{"name": "p"}]} if path == "/v1/compare" else {}
    body = {"messages": [{"role": "user", "content": LONG}], "stream": True, **more}
    with httpx.Client(timeout=WAIT_S) as client:
        with waiting(FakeEngine(prompt_format=ChatFormat(template)), gate) as url:
            reply = client.post(f"{url}{path}", json=body, headers=tenant.headers)
            assert reply.status_code == 200
            assert reply.text.startswith(HEARTBEAT.decode())
            last = json.loads(reply.text.strip().split("data: ")[-1])
            assert last["error"]["code"] == "invalid_messages"
            assert last["error"]["request_id"] == reply.headers["x-request-id"]
        gate.set()
        with waiting(FakeEngine(prompt_format=ChatFormat(template)), gate, heartbeat_s=60) as url:
            reply = client.post(f"{url}{path}", json=body, headers=tenant.headers)
            assert reply.status_code == 400
            assert reply.json()["error"]["code"] == "invalid_messages"
