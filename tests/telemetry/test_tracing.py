"""Where traces go, and how a request's trace reaches the process that does its job."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from telemetry.tracing import NO_ORIGIN, Origin, Tracing, TracingSettings, parent_context, start_tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_without_a_collector_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    tracing = start_tracing("api")
    assert not tracing.enabled
    with tracing.tracer.start_as_current_span("work") as span:
        assert not span.is_recording()
        assert Origin.here("req_1") == Origin("req_1", None)
    tracing.stop()


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_the_standard_variables_turn_it_on(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    tracing = start_tracing("api")
    assert tracing.enabled
    tracing.stop()  # nothing was recorded, so nobody is called
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not start_tracing("api").enabled


@pytest.mark.parametrize(("given", "named"), [(None, "alignez-worker"), ("fits-eu", "fits-eu")])
def test_a_process_is_named_by_its_role_unless_it_is_told_otherwise(given: str | None, named: str) -> None:
    spans = InMemorySpanExporter()
    tracing = start_tracing("worker", TracingSettings(service_name=given), spans)
    with tracing.tracer.start_as_current_span("work"):
        pass
    tracing.stop()
    (span,) = spans.get_finished_spans()
    assert span.resource.attributes["service.name"] == named


def test_a_job_carries_the_span_of_the_request_that_asked_for_it() -> None:
    spans = InMemorySpanExporter()
    tracing = start_tracing("api", TracingSettings(), spans)
    with tracing.tracer.start_as_current_span("request") as request:
        origin = Origin.here("req_1")
    assert origin.request_id == "req_1"
    with tracing.tracer.start_as_current_span("fit", origin.context) as fit:
        assert fit.get_span_context().trace_id == request.get_span_context().trace_id
    tracing.stop()
    fit_span = next(span for span in spans.get_finished_spans() if span.name == "fit")
    assert fit_span.parent is not None
    assert fit_span.parent.span_id == request.get_span_context().span_id


def test_a_traceparent_names_its_span() -> None:
    parent = trace.get_current_span(parent_context(PARENT)).get_span_context()
    assert trace.format_trace_id(parent.trace_id) == PARENT.split("-")[1]


_ZEROS = "00-" + "0" * 32 + "-" + "0" * 16 + "-01"


@pytest.mark.parametrize("malformed", [None, "", "00-xyz", PARENT.replace("0af7", "zzzz"), _ZEROS])
def test_a_traceparent_that_is_none_or_malformed_names_no_parent(malformed: str | None) -> None:
    assert not trace.get_current_span(parent_context(malformed)).get_span_context().is_valid
    assert not trace.get_current_span(NO_ORIGIN.context).get_span_context().is_valid


def test_a_current_span_does_not_become_the_parent_of_what_has_none() -> None:
    """A relay sends many jobs' messages in one loop; none is the child of another."""
    tracing = start_tracing("relay", TracingSettings(), InMemorySpanExporter())
    with tracing.tracer.start_as_current_span("turn"):
        assert not trace.get_current_span(NO_ORIGIN.context).get_span_context().is_valid
    tracing.stop()


def test_stopping_twice_is_harmless() -> None:
    tracing = start_tracing("api", TracingSettings(), InMemorySpanExporter())
    tracing.stop()
    tracing.stop()
    Tracing().stop()
