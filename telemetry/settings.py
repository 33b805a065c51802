"""Settings of tracing."""

from __future__ import annotations

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TracingSettings(BaseSettings):
    """Settings of tracing: OpenTelemetry's own variables, of which the SDK reads the others itself."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", extra="ignore", populate_by_name=True)

    endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "endpoint"),
        description="Collector that takes OTLP over HTTP, http://collector:4318; None: nothing is traced.",
    )
    service_name: str | None = Field(default=None, description="Name of the process's service in traces.")
    disabled: bool = Field(default=False, validation_alias=AliasChoices("OTEL_SDK_DISABLED", "disabled"))
