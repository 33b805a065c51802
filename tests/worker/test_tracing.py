"""What a fit leaves in traces and logs, so that whoever has a request id finds what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from alignez_core.engines.base import Engine, ScoreRequest
from alignez_core.engines.fake.engine import FakeEngine
from telemetry.tracing import Origin, TracingSettings, start_tracing
from tests.worker.conftest import Bench, loaded
from tests.worker.fit_cases import ALIGNEZ
from worker.lease import HeldLease
from worker.traced_engine import TracedEngine

ORIGIN = Origin("req_1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


@contextlib.contextmanager
def captured() -> Iterator[list[MutableMapping[str, Any]]]:
    """Log lines with the ids that are bound to their context."""
    with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        yield lines


def run(bench: Bench, **changes: Any) -> tuple[str, list[ReadableSpan]]:
    """Runs one job that a traced request asked for: how it went, and its spans."""
    exporter = InMemorySpanExporter()
    tracing = start_tracing("worker", TracingSettings(), exporter)
    outcome = bench.runner(tracer=tracing.tracer, **changes).run(bench.request(origin=ORIGIN, spec=ALIGNEZ).job.id)
    tracing.stop()
    return outcome, list(exporter.get_finished_spans())


def test_a_fit_is_part_of_the_trace_of_the_request_that_asked_for_it(bench: Bench) -> None:
    outcome, spans = run(bench)
    assert outcome == "succeeded"
    fit = next(span for span in spans if span.name == "fit")
    assert fit.context is not None
    assert fit.parent is not None
    assert f"{fit.context.trace_id:032x}-{fit.parent.span_id:016x}" in (ORIGIN.traceparent or "")
    assert fit.attributes is not None
    assert fit.attributes["alignez.request_id"] == "req_1"
    assert fit.attributes["alignez.outcome"] == "succeeded"
    assert fit.status.is_ok or fit.status.is_unset


def test_the_engines_batches_are_its_children(bench: Bench) -> None:
    _, spans = run(bench)
    fit = next(span for span in spans if span.name == "fit")
    assert fit.context is not None
    batches = [span for span in spans if span.name.startswith("engine ")]
    assert {span.name for span in batches} == {"engine generate", "engine represent", "engine score"}
    assert {span.parent.span_id for span in batches if span.parent} == {fit.context.span_id}
    generated = [span.attributes for span in batches if span.name == "engine generate"]
    assert all(made is not None and "gen_ai.usage.output_tokens" in made for made in generated)
    assert any(made and made["gen_ai.usage.output_tokens"] != 0 for made in generated)


def test_an_evaluation_has_a_span_and_lines_of_its_own(bench: Bench) -> None:
    request = bench.request(spec=ALIGNEZ)
    bench.runner().run(request.job.id)
    exporter = InMemorySpanExporter()
    tracing = start_tracing("worker", TracingSettings(), exporter)
    with captured() as lines:
        assert bench.runner(tracer=tracing.tracer).run(bench.evaluation(request).id) == "succeeded"
    tracing.stop()
    assert [line["event"] for line in lines] == ["evaluate_began", "evaluate_ended"]
    assert "evaluate" in {span.name for span in exporter.get_finished_spans()}


def test_a_failed_attempt_is_an_error_in_the_trace(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(FakeEngine, "generate", broken)
    outcome, spans = run(bench)
    assert outcome == "failed"
    fit = next(span for span in spans if span.name == "fit")
    assert not fit.status.is_ok
    assert not fit.status.is_unset


def test_every_line_of_a_fit_has_its_job_and_its_request(bench: Bench) -> None:
    request = bench.request(origin=ORIGIN, spec=ALIGNEZ)
    with captured() as lines:
        bench.runner().run(request.job.id)
    assert [line["event"] for line in lines] == ["fit_began", "fit_ended"]
    assert {line["job_id"] for line in lines} == {str(request.job.id)}
    assert {line["request_id"] for line in lines} == {"req_1"}


def test_the_lease_s_thread_logs_with_the_same_ids(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(HeldLease, "_run", lambda self: seen.update(structlog.contextvars.get_contextvars()))
    bench.runner().run(bench.request(origin=ORIGIN, spec=ALIGNEZ).job.id)
    assert seen["request_id"] == "req_1"


def test_a_job_without_an_origin_begins_a_trace_of_its_own(bench: Bench) -> None:
    exporter = InMemorySpanExporter()
    tracing = start_tracing("worker", TracingSettings(), exporter)
    assert bench.runner(tracer=tracing.tracer).run(bench.request(spec=ALIGNEZ).job.id) == "succeeded"
    tracing.stop()
    assert next(span for span in exporter.get_finished_spans() if span.name == "fit").parent is None


def test_a_traced_engine_is_an_engine() -> None:
    exporter = InMemorySpanExporter()
    tracing = start_tracing("worker", TracingSettings(), exporter)
    plain = loaded().engine
    traced = TracedEngine(plain, tracing.tracer)
    assert isinstance(traced, Engine)
    assert traced.info == plain.info
    assert traced.tokenize("a b") == plain.tokenize("a b")
    assert traced.prompt_format.name == plain.prompt_format.name
    assert traced.represent(["a"]).equal(plain.represent(["a"]))
    asked = [ScoreRequest("a", " b c")]
    assert traced.walk(asked).logits().equal(plain.walk(asked).logits())
    tracing.stop()
