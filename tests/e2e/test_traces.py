"""One request across three processes: its trace at the collector, and its id in every process's log."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.conftest import SMALL_ALIGNEZ, Up
from tests.worker.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Collector:
    """Takes OTLP over HTTP, as a collector does, and keeps the spans by their service."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            (service,) = (a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]

    def trace(self, trace_id: bytes) -> set[tuple[str, str]]:
        """(service, span) of one trace."""
        return {(service, span.name) for service, span in self.spans if span.trace_id == trace_id}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Up]:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    up = Up(tmp_path_factory.mktemp("traced") / "data", settings=settings).start()
    yield up
    up.stop()


def log_lines(up: Up, role: str) -> list[dict[str, Any]]:
    """A process's log; every line must be a JSON object."""
    (path,) = (path for path in (up.data_dir / "logs").glob(f"{role}*.log"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_is_one_trace_and_one_id_through_all_processes(traced: Up, collector: Collector) -> None:
    given = {"x-request-id": "req-followed", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with traced.client() as client:
        persona = {"preferred": "cheerful", "dispreferred": "gloomy"}
        profile = {"name": "followed", "persona": persona, "fit": SMALL_ALIGNEZ}
        reply = client.post("/v1/profiles", json=profile, headers=given)
    job_id = reply.json()["job"]["id"]
    assert traced.finished(job_id)["status"] == "succeeded"
    with traced.client() as client:
        messages = [{"role": "user", "content": "How do I start hiking?"}]
        body = {"model": "persona-nano", "messages": messages, "profile": {"name": "followed", "version": 1}}
        assert client.post("/v1/chat/completions", json=body).status_code == 200

    trace_id = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
    wanted = {
        ("alignez-api", "POST /v1/profiles"),
        ("alignez-relay", "outbox"),
        ("alignez-worker", "fit"),
        ("alignez-worker", "engine generate"),
        ("alignez-worker", "engine represent"),
        ("alignez-worker", "engine score"),
    }
    wait_for(lambda: collector.trace(trace_id) >= wanted, 30, "the whole trace")
    wait_for(lambda: any(span.name == "chat persona-nano" for _, span in collector.spans), 30, "the answer's trace")

    for role, event in {"api": "fit_requested", "relay": "message_sent", "worker": "fit_ended"}.items():
        lines = [line for line in log_lines(traced, role) if line.get("request_id") == "req-followed"]
        told, *again = (line for line in lines if line["event"] == event)
        # A worker that takes long to begin is sent the message again.
        assert not again or event == "message_sent", lines
        assert told["job_id"] == job_id
        assert told["trace_id"] == "0af7651916cd43dd8448eb211c80319c"


def test_processes_end_cleanly_although_the_collector_is_away(traced: Up, collector: Collector) -> None:
    collector.close()
    with traced.client() as client:
        assert client.get("/v1/profiles").status_code == 200  # a span that nobody will take
    assert traced.stop() == 0
