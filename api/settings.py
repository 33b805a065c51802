"""Settings of the API process, read once by the factory (prefix `ALIGNEZ_API_`).

Those of database, broker, model and metrics live in `profiles/settings.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from alignez_core.engines.load import EngineOptions
from profiles.settings import MetricsSettings, ModelSettings, variable_names, with_certificate
from telemetry.tls import TlsFiles

Role = Literal["all", "control", "inference"]

_ORIGIN = re.compile(r"https?://[^/?#\s]+")


class ApiSettings(ModelSettings, MetricsSettings):
    """Settings of one API process.

    `role`: "all" serves everything; "control" serves profiles and jobs, holds no model and never imports torch;
    "inference" serves generation only.
    """

    model_config = SettingsConfigDict(
        env_prefix="ALIGNEZ_API_", alias_generator=variable_names("ALIGNEZ_API_"), extra="ignore", populate_by_name=True
    )

    role: Role = "all"
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    #: Certificate (with its chain) and unencrypted key, PEM files: the server then speaks HTTPS alone.
    tls_cert: Path | None = None
    tls_key: Path | None = Field(None, validate_default=True)
    #: Serve /docs and /openapi.json, without a key.
    docs: bool = True
    #: Origins of web pages that may call the API, as ["https://app.example.com"]; ["*"]: any. Empty: none may.
    cors_origins: tuple[str, ...] = ()

    #: Run "transformers" in a child process, so that the model and the event loop do not compete for the GIL.
    engine_process: bool = True
    #: Compile the decode step of "transformers" at the start: a minute or more, then faster steps.
    compile: bool = False
    #: Requests in one batch; more wait.
    max_running: int = Field(64, ge=1, le=4096)
    #: Requests that may wait for a place; one more gets 429, unless its tenant has none waiting.
    max_waiting: int = Field(512, ge=0, le=100_000)
    #: Limit on prompt and answer tokens of all running requests together; more wait, and a request that alone exceeds
    #: it gets 400. None: `max_running` is the only limit.
    max_cache_tokens: int | None = Field(None, ge=2)

    #: Answer length when a chat request names none (the context may allow less).
    default_max_tokens: int = Field(256, ge=1)
    max_choices: int = Field(8, ge=1, le=128)
    #: Answers that one text completion request may ask for, prompts times choices.
    max_prompts: int = Field(64, ge=1, le=1024)
    max_compare_profiles: int = Field(8, ge=1, le=32)
    #: Query encoders that profiles may name beside "lm" (sentence-transformers ids or directories of the workers).
    query_encoders: tuple[str, ...] = ()
    #: Judges that profiles may name beside "self" and "nano": those that the workers are set up for, as "openai".
    judges: tuple[str, ...] = Field((), validation_alias=AliasChoices("ALIGNEZ_API_JUDGES", "ALIGNEZ_JUDGES", "judges"))
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    #: Connections that are open at once; one more gets 503 and is closed.
    max_connections: int = Field(2000, ge=1)
    #: Time for the headers of a request to arrive; a connection that takes longer is closed.
    header_timeout_s: float = Field(15.0, gt=0)
    #: Time for a body to arrive, 408 beyond; and the longest time that a client may leave a response unread.
    body_timeout_s: float = Field(60.0, gt=0)
    #: Maximum sends per second over all streams, because each costs the engine time; above it, tokens of a stream are
    #: batched. A single stream is never delayed.
    max_sends_per_s: int = Field(2000, ge=10)

    #: Longest time that a revoked key still works.
    auth_cache_s: float = Field(3.0, ge=0, le=60)
    auth_cache_size: int = Field(10_000, ge=1)
    #: Versions that are kept in memory, and MiB of their edits; doses other than 1 take as much again at most.
    plan_cache_size: int = Field(1024, ge=1)
    plan_cache_mb: int = Field(1024, ge=1)

    #: Counted usage goes to the database this often; a process that is killed loses at most so much of it.
    usage_flush_s: float = Field(5.0, gt=0)

    #: Longest statement of a request, in place of the shared `ALIGNEZ_STATEMENT_TIMEOUT_S`. A database that answers
    #: nothing is given up a second later: 503.
    statement_timeout_s: float = Field(5.0, ge=0)

    job_poll_s: float = Field(0.3, gt=0)
    #: Seconds of silence after which a stream sends a comment, so that clients and proxies keep it open.
    heartbeat_s: float = Field(15.0, gt=0)
    #: Seconds that the process serves on at shutdown (not ready, closing connections after their answers), so that load
    #: balancers stop routing to it. 0 without a load balancer.
    drain_delay_s: float = Field(0.0, ge=0)
    #: Seconds that running requests then have to finish; later their streams end with an error event.
    drain_s: float = Field(30.0, ge=0)
    #: Deadline of each of the checks behind `/ready`.
    ready_timeout_s: float = Field(2.0, gt=0)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """Browsers send `scheme://host[:port]`; anything else would match no page."""
        origins = tuple(origin.removesuffix("/") for origin in origins)
        if wrong := [origin for origin in origins if origin != "*" and not _ORIGIN.fullmatch(origin)]:
            raise ValueError(f"must be origins as https://app.example.com or *, got {wrong[0]!r}")
        return origins

    @field_validator("tls_key")
    @classmethod
    def _pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        return with_certificate(key, info, "tls_cert")

    @property
    def tls(self) -> TlsFiles | None:
        """Files of the server's certificate, which are not read yet."""
        return self._tls_files(self.tls_cert, self.tls_key, "TLS")

    @property
    def serves_control(self) -> bool:
        """True if profiles, jobs, users and admin routes are served."""
        return self.role != "inference"

    @property
    def serves_generation(self) -> bool:
        """True if this process holds a model."""
        return self.role != "control"

    def engine_options(self) -> EngineOptions:
        """Options of this process's engine."""
        return EngineOptions(
            **self.engine_values(),
            compile=self.compile,
            max_running=self.max_running,
            max_waiting=self.max_waiting,
            max_cache_tokens=self.max_cache_tokens,
            own_process=self.engine_process,
        )
