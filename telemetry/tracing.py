"""Traces: one OpenTelemetry trace of a request's work in API, outbox and worker.

The broker's message carries a job id only. The worker reads trace and request id from the job's row, so they also exist
for a message that was sent again and for every later attempt.
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
from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_HEADER = "traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()


class TracingSettings(BaseSettings):
    """OpenTelemetry's own environment variables for tracing; the SDK reads further ones itself."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", extra="ignore", populate_by_name=True)

    endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "endpoint"),
        description="Collector for OTLP over HTTP, as http://collector:4318; None: no tracing.",
    )
    service_name: str | None = Field(default=None, description="Name of the process's service in traces.")
    disabled: bool = Field(default=False, validation_alias=AliasChoices("OTEL_SDK_DISABLED", "disabled"))


class Tracing:
    """The tracer of a process, and the thread that sends its spans.

    Args:
        provider: None: no spans are recorded.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self.tracer: Tracer = NoOpTracer() if provider is None else provider.get_tracer("alignez")

    @property
    def enabled(self) -> bool:
        """True if spans are recorded."""
        return self._provider is not None

    def stop(self) -> None:
        """Sends the remaining spans, for the exporter's timeout at most. Safe to call twice."""
        if self._provider is not None:
            self._provider.shutdown()


def start_tracing(role: str, settings: TracingSettings | None = None, exporter: SpanExporter | None = None) -> Tracing:
    """Tracing by the standard `OTEL_*` variables; off if they name no collector.

    Sampling (`OTEL_TRACES_SAMPLER`), headers, timeouts and batch sizes are settings of the SDK. Call this after a fork:
    the sending thread belongs to one process.

    Args:
        role: api, worker or relay; the service is called `alignez-{role}` unless `OTEL_SERVICE_NAME` is set.
        exporter: replaces OTLP over HTTP to the collector.
    """
    settings = settings or TracingSettings()
    if exporter is None:
        if settings.disabled or not settings.endpoint:
            return Tracing()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    name = settings.service_name or f"alignez-{role}"
    # `Tracing.stop` ends it: the SDK's exit hook would wait for the collector a second time.
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: name, SERVICE_VERSION: version("alignez")}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


@dataclass(frozen=True)
class Origin:
    """The API request that created a job, as the job's row stores it.

    Args:
        request_id: id of the request. traceparent: W3C trace context of the request's span.
    """

    request_id: str | None = None
    traceparent: str | None = None

    @classmethod
    def here(cls, request_id: str | None) -> Origin:
        """The current request and span."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return cls(request_id, carrier.get(_HEADER))

    @property
    def context(self) -> Context:
        """Parent of the job's spans in other processes; empty if the request was not traced."""
        return parent_context(self.traceparent)


NO_ORIGIN = Origin()


def parent_context(traceparent: str | None) -> Context:
    """The span of a W3C `traceparent` as a parent; empty if it is missing or malformed."""
    return _PROPAGATOR.extract({_HEADER: traceparent} if traceparent else {}, Context())
