"""Every process writes one JSON object a line, with the ids that tie it to a request, a job and a trace."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from telemetry.logs import configure_logs
from telemetry.tracing import TracingSettings, start_tracing


@pytest.fixture
def restored() -> Iterator[None]:
    """Logging as it was, afterwards."""
    root = logging.getLogger()
    handlers, level, configured = list(root.handlers), root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.configure(**configured)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.usefixtures("restored")
def test_own_and_foreign_lines_are_json_with_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        structlog.get_logger("api").info("request", status=200)
        logging.getLogger("uvicorn.error").warning("odd %s", "thing")
        logging.getLogger("celery.worker").info("Task %s received", "fit")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old ways", DeprecationWarning, stacklevel=1)
    found = lines(capsys)
    assert [line["event"] for line in found[:3]] == ["request", "odd thing", "Task fit received"]
    assert "old ways" in found[3]["event"]
    assert {line["request_id"] for line in found} == {"req_1"}
    assert found[2]["logger"] == "celery.worker"


@pytest.mark.usefixtures("restored")
def test_a_line_inside_a_span_names_it_and_one_outside_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    spans = InMemorySpanExporter()
    tracing = start_tracing("worker", TracingSettings(), spans)
    with tracing.tracer.start_as_current_span("fit"):
        structlog.get_logger("worker").info("fit_began")
    structlog.get_logger("worker").info("idle")
    tracing.stop()
    inside, outside = lines(capsys)
    (span,) = spans.get_finished_spans()
    assert inside["trace_id"] == f"{span.context.trace_id:032x}"
    assert inside["span_id"] == f"{span.context.span_id:016x}"
    assert "trace_id" not in outside


@pytest.mark.usefixtures("restored")
def test_an_exception_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        structlog.get_logger("worker").exception("fit_failed", code="internal")
    (line,) = lines(capsys)
    assert line["level"] == "error"
    assert "ValueError" in line["exception"]


@pytest.mark.usefixtures("restored")
def test_below_the_level_nothing_is_written_and_console_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", "console")
    structlog.get_logger("relay").info("message_sent")
    structlog.get_logger("relay").warning("relay_waits", pause_s=0.1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "relay_waits" in line
    assert not line.startswith("{")
