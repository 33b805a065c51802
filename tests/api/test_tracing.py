"""What a trace shows of a request: its own span, and under it what it waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select

from alignez_core.engines.fake.engine import FakeEngine
from api.app import create_app
from api.settings import ApiSettings
from profiles.models import Job
from profiles.settings import DatabaseSettings
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from telemetry.tracing import Tracing
from tests.api.conftest import Tenant, new_tenant

TRACE = "0af7651916cd43dd8448eb211c80319c"
FROM_CALLER = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}

Spans = Callable[[], dict[str, ReadableSpan]]


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    """Exports each span as it ends, so that no test waits for a batch."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    yield tracing
    tracing.stop()


@pytest.fixture(scope="module")
def traced_client(
    engine: FakeEngine, sessions: SessionFactory, database: DatabaseSettings, tracing: Tracing
) -> Iterator[TestClient]:
    app = create_app(ApiSettings(), engine=engine, session_factory=sessions, database=database, tracing=tracing)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def traced(traced_client: TestClient, sessions: SessionFactory, engine: FakeEngine) -> Tenant:
    return new_tenant(traced_client, sessions, engine)


@pytest.fixture
def spans(exporter: InMemorySpanExporter, tracing: Tracing) -> Spans:
    """The spans since the test began, by name."""
    assert tracing.enabled
    exporter.clear()

    def finished() -> dict[str, ReadableSpan]:
        return {span.name: span for span in exporter.get_finished_spans()}

    return finished


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def own_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
def test_a_personalised_answer_shows_look_up_and_generation(traced: Tenant, spans: Spans, stream: bool) -> None:
    traced.ready("p", fit={"method": "alignez"})
    spans()
    reply = traced.chat(model="fake@p", max_tokens=3, stream=stream, headers=FROM_CALLER)
    assert reply.status_code == 200
    found = spans()
    request = found["POST /v1/chat/completions"]
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == TRACE
    assert parent_of(request) == int("b7ad6b7169203331", 16)
    shown = attributes(request)
    assert shown["http.response.status_code"] == 200
    assert shown["alignez.request_id"] == reply.headers["x-request-id"]
    assert parent_of(found["personalise"]) == own_id(request)
    assert parent_of(found["represent query"]) == parent_of(found["lookup"]) == own_id(found["personalise"])
    generation = found["chat fake"]
    assert parent_of(generation) == own_id(request)
    assert [event.name for event in generation.events] == ["first_token"]
    told = attributes(generation)
    assert told["gen_ai.usage.output_tokens"] == 3
    assert told["gen_ai.latency.time_in_queue"] == 0.0  # the fake engine has no queue
    assert told["gen_ai.response.finish_reasons"] == ("length",)
    assert told["alignez.edits"] == ("conditional",)
    assert generation.end_time is not None
    assert request.end_time is not None
    assert generation.end_time <= request.end_time


def test_the_bare_model_looks_nothing_up(traced: Tenant, spans: Spans) -> None:
    traced.chat(max_tokens=1)
    assert "personalise" not in spans()


def test_a_profile_s_job_keeps_the_request_that_asked_for_it(
    traced: Tenant, spans: Spans, sessions: SessionFactory
) -> None:
    headers = {**FROM_CALLER, "x-request-id": "req-of-the-caller"}
    body = {"name": "kept", "persona": {"preferred": "cheerful", "dispreferred": "gloomy"}}
    reply = traced.post("/v1/profiles", json=body, headers=headers).json()
    assert reply["job"]["request_id"] == "req-of-the-caller"
    assert traced.get(f"/v1/jobs/{reply['job']['id']}").json()["request_id"] == "req-of-the-caller"
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        (traceparent,) = uow.session.scalars(select(Job.traceparent).where(Job.id == reply["job"]["id"]))
    request = spans()["POST /v1/profiles"]
    assert traceparent == f"00-{TRACE}-{own_id(request):016x}-01"


def test_a_failed_request_s_span_is_an_error(traced: Tenant, spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("api.jobs.routes.list_jobs", broken)
    assert traced.get("/v1/jobs").status_code == 500
    assert not spans()["GET /v1/jobs"].status.is_ok


def test_probes_are_not_traced(traced: Tenant, spans: Spans) -> None:
    traced.get("/health")
    traced.get("/ready")
    assert spans() == {}


def test_a_malformed_traceparent_begins_a_trace_of_its_own(traced: Tenant, spans: Spans) -> None:
    traced.get("/v1/jobs", headers={"traceparent": "00-nonsense"})
    assert spans()["GET /v1/jobs"].parent is None
