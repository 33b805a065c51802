"""Settings of the worker and relay processes, read once at their start (prefix `ALIGNEZ_WORKER_`).

Those of database, broker, model and metrics live in `profiles/settings.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from alignez_core.engines.load import EngineOptions
from profiles.delivery.celery_queue import FIT_QUEUE
from profiles.fitting.claims import MAX_FAILURES
from profiles.settings import MetricsSettings, ModelSettings, variable_names


class WorkerSettings(ModelSettings, MetricsSettings):
    """Settings of one worker (one process with a model, under one Celery parent) and of the relay."""

    model_config = SettingsConfigDict(
        env_prefix="ALIGNEZ_WORKER_",
        alias_generator=variable_names("ALIGNEZ_WORKER_"),
        extra="ignore",
        populate_by_name=True,
    )

    #: Requests in one batch.
    max_batch: int = Field(64, ge=1, le=4096)
    #: Niceness of the model's process, so that live traffic on the same processors goes before fits.
    niceness: int = Field(10, ge=0, le=19)

    queue: str = FIT_QUEUE
    #: Seconds that a job stays this worker's without a heartbeat; after a kill -9 it waits that long at most.
    lease_s: float = Field(20.0, gt=0.2)
    #: Longest job; the broker's redelivery time is set above it.
    job_time_limit_s: int = Field(6 * 3600, ge=10)
    #: Retryable errors and lost workers that a job survives.
    max_failures: int = Field(MAX_FAILURES, ge=1)
    #: Seconds that a running job waits for a lost database.
    database_patience_s: float = Field(120.0, ge=0)
    #: Queries whose representations are stored in one transaction.
    store_rows: int = Field(64, ge=1)

    #: The judge "openai": an OpenAI-compatible endpoint ("https://…/v1"), the model's name there, and its key.
    judge_url: str | None = None
    judge_model: str | None = None
    judge_key: SecretStr | None = None
    #: Seconds for one of its answers; each is tried three times.
    judge_timeout_s: float = Field(60.0, gt=0)

    relay_poll_s: float = Field(1.0, gt=0)
    relay_sweep_s: float = Field(2.0, gt=0)
    #: Seconds before a queued job's message is sent again; doubles with each send.
    relay_resend_s: float = Field(20.0, gt=0)

    #: Seconds without a sign of life of the main loop after which `/alive` on the metrics port answers 503. A running
    #: fit does not delay the signs, nor does a broker that is away. Above 60, because a relay's turn may take as long.
    stuck_after_s: float = Field(300.0, gt=0)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    def engine_options(self) -> EngineOptions:
        """Options of this worker's engine."""
        return EngineOptions(**self.engine_values(), max_running=self.max_batch)
