"""Settings of the worker and relay processes, read once at their start (prefix `ALIGNEZ_WORKER_`).

Database and broker are shared with the API and live in `profiles/settings.py` (prefix `ALIGNEZ_`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from profiles.data_dir import default_model_cache
from profiles.delivery.celery_queue import FIT_QUEUE
from profiles.fitting.claims import MAX_FAILURES


class WorkerSettings(BaseSettings):
    """Settings of one worker (one process with a model, under one Celery parent) and of the relay."""

    model_config = SettingsConfigDict(env_prefix="ALIGNEZ_WORKER_", extra="ignore", populate_by_name=True)

    #: Name of the catalogue, GGUF file, model directory or hub id; None is the shipped persona-nano. `ALIGNEZ_MODEL`
    #: names it for all processes.
    #: `fake:` (with `?step_s=0.01&n_layers=4`) is the model-free engine, for tests of everything around an engine.
    model: str | None = Field(None, validation_alias=AliasChoices("ALIGNEZ_WORKER_MODEL", "ALIGNEZ_MODEL", "model"))
    #: The name that profiles know the base model by; None takes the engine's.
    model_name: str | None = Field(
        None, validation_alias=AliasChoices("ALIGNEZ_WORKER_MODEL_NAME", "ALIGNEZ_MODEL_NAME", "model_name")
    )
    model_revision: str | None = Field(
        None,
        validation_alias=AliasChoices("ALIGNEZ_WORKER_MODEL_REVISION", "ALIGNEZ_MODEL_REVISION", "model_revision"),
    )
    #: Directory of models converted from GGUF files, which `alignez models add` fills.
    model_cache: Path = Field(
        default_factory=default_model_cache,
        validation_alias=AliasChoices("ALIGNEZ_WORKER_MODEL_CACHE", "ALIGNEZ_MODEL_CACHE", "model_cache"),
    )
    #: Module path of one block's MLP, with "{layer}", for an architecture that the engine does not list.
    mlp_path: str | None = Field(
        None, validation_alias=AliasChoices("ALIGNEZ_WORKER_MLP_PATH", "ALIGNEZ_MLP_PATH", "mlp_path")
    )
    #: "auto" takes the tokenizer's chat template if it has one. A profile fits the format that it was fitted with, so
    #: API and workers need the same.
    prompt_format: Literal["auto", "plain", "chat"] = Field(
        "auto",
        validation_alias=AliasChoices("ALIGNEZ_WORKER_PROMPT_FORMAT", "ALIGNEZ_PROMPT_FORMAT", "prompt_format"),
    )
    #: What runs the model. "vllm" needs vLLM 0.32 in this environment (`make setup-vllm`); `device` is then vLLM's own.
    #: API and workers need not run the same.
    engine: Literal["transformers", "vllm"] = "transformers"
    #: vLLM: plans in use at once (None: twice as many as rows), their rank, GPUs of one worker, whether it compiles.
    vllm_slots: int | None = Field(None, ge=1, le=65536)
    vllm_rank: int = Field(4, ge=1, le=8)
    vllm_tensor_parallel: int = Field(1, ge=1, le=64)
    vllm_compile: bool = True
    device: str = "cpu"
    #: float32, bfloat16 or float16; "auto" is what suits model and device.
    dtype: str = "auto"
    #: CPU threads of the model; None leaves torch's choice.
    threads: int | None = Field(None, ge=1)
    max_batch: int = Field(64, ge=1, le=4096)
    #: How far the model's process steps back (nice) where it shares processors with an API: live traffic goes before
    #: fits and evaluations.
    niceness: int = Field(10, ge=0, le=19)

    queue: str = FIT_QUEUE
    #: Seconds that a job stays this worker's without a heartbeat; after a kill -9 it waits that long at most.
    lease_s: float = Field(20.0, gt=0.2)
    #: Longest job; the broker's redelivery time is set above it.
    job_time_limit_s: int = Field(6 * 3600, ge=10)
    #: Retryable errors and lost workers that a job survives.
    max_failures: int = Field(MAX_FAILURES, ge=1)
    #: How long a running job waits for a database that went away.
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
    #: How long a queued job waits before its message is sent again; doubles with each send.
    relay_resend_s: float = Field(20.0, gt=0)

    #: Own port of the Prometheus endpoint; 0 picks a free one, None serves no metrics. Workers and relays that share a
    #: host need ports of their own.
    metrics_port: int | None = Field(None, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
