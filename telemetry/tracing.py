"""Traces: what one request causes in API, outbox and worker, as one OpenTelemetry trace.

The broker's message carries a job id and nothing else. A trace and a request id cross to the worker in the job's row,
so they are there for a message that was sent again, and for the tenth attempt too.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import NoOpTracer, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from telemetry.settings import TracingSettings

_HEADER = "traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """One process's tracer, and the thread that sends its spans.

    Args:
        provider: None: nothing is recorded.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self.tracer: Tracer = NoOpTracer() if provider is None else provider.get_tracer("alignez")

    @property
    def enabled(self) -> bool:
        """True if spans are recorded."""
        return self._provider is not None

    def stop(self) -> None:
        """Sends what is left; a collector that is away costs the exporter's timeout at most. Safe to call twice."""
        if self._provider is not None:
            self._provider.shutdown()


def start_tracing(role: str, settings: TracingSettings | None = None, exporter: SpanExporter | None = None) -> Tracing:
    """Tracing as the standard `OTEL_*` variables say; off where they name no collector.

    Sampling is the SDK's own setting (`OTEL_TRACES_SAMPLER`), and so are headers, timeouts and batch sizes. To be
    called after a fork: the sending thread belongs to one process.

    Args:
        role: api, worker or relay; the service's name is `alignez-{role}` unless `OTEL_SERVICE_NAME` says otherwise.
        exporter: used in place of OTLP over HTTP to the collector.
    """
    settings = settings or TracingSettings()
    if exporter is None:
        if settings.disabled or not settings.endpoint:
            return Tracing()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    name = settings.service_name or f"alignez-{role}"
    # The program's end is ours to handle: the SDK's own hook would wait for the collector a second time.
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: name, SERVICE_VERSION: version("alignez")}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


@dataclass(frozen=True)
class Origin:
    """Origin of a job, as its row keeps it.

    Args:
        request_id: of the API request that asked for it. traceparent: W3C trace context of that request's span.
    """

    request_id: str | None = None
    traceparent: str | None = None

    @classmethod
    def here(cls, request_id: str | None) -> Origin:
        """The request that is being answered, with the current span."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return cls(request_id, carrier.get(_HEADER))

    @property
    def context(self) -> Context:
        """The parent of spans that other processes make for the job; empty where nothing was traced."""
        return parent_context(self.traceparent)


NO_ORIGIN = Origin()


def parent_context(traceparent: str | None) -> Context:
    """The span that a W3C `traceparent` names, as a parent; empty for none, or for one that is malformed."""
    return _PROPAGATOR.extract({_HEADER: traceparent} if traceparent else {}, Context())
