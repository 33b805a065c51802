"""Settings that processes share: database, broker, model and metrics."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AliasChoices, AliasGenerator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from profiles.data_dir import default_model_cache
from profiles.errors import SecretsDirMissing
from telemetry.tls import TlsFiles

_POSTGRES = frozenset({"postgres", "postgresql", "postgresql+psycopg"})
_BROKERS = ("amqp", "amqps", "pyamqp", "redis", "rediss", "redis+socket", "unix")

#: Directory with one file per secret setting, named like its variable in either case (`alignez_database_url`).
SECRETS_DIR = "ALIGNEZ_SECRETS_DIR"

S = TypeVar("S", bound=BaseSettings)


class ProcessSettings(BaseSettings):
    """Settings from environment variables, and below them from the files of the directory `ALIGNEZ_SECRETS_DIR`.

    Raises: SecretsDirMissing: the variable names no directory.
    """

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, the first of which has precedence."""
        directory = os.environ.get(SECRETS_DIR)
        if not directory:
            return init_settings, env_settings
        if not Path(directory).is_dir():  # pydantic-settings 2.16 only warns
            raise SecretsDirMissing(SECRETS_DIR, directory)
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, directory)


class DatabaseSettings(ProcessSettings):
    """Settings of database and broker, read once per process from `ALIGNEZ_*` environment variables or secret files."""

    # The URLs contain passwords, and errors are logged.
    model_config = SettingsConfigDict(env_prefix="ALIGNEZ_", extra="ignore", hide_input_in_errors=True)

    database_url: str = Field(
        default="postgresql+psycopg://alignez:alignez@127.0.0.1:5432/alignez",
        description="postgresql://… of Postgres 16+ with pgvector 0.7+.",
    )
    broker_url: str = Field(
        default="redis://127.0.0.1:6379/0", description="amqp://… (RabbitMQ) or redis://… or redis+socket://…"
    )
    pool_size: int = Field(default=8, ge=1, le=200, description="Connections a process keeps open.")
    pool_overflow: int = Field(default=8, ge=0, le=200, description="Connections above `pool_size` under load.")
    pool_timeout_s: float = Field(default=5.0, gt=0, description="Longest wait for a free connection.")
    connect_timeout_s: int = Field(default=3, ge=1, description="Longest wait for a new connection.")
    statement_timeout_s: float = Field(default=30.0, ge=0, description="Longest statement; 0: no limit.")
    max_queued_jobs: int = Field(
        default=100, ge=1, description="Queued and running jobs of a tenant at most, unless its row sets another limit."
    )

    @field_validator("database_url")
    @classmethod
    def _for_psycopg(cls, url: str) -> str:
        """The URL in SQLAlchemy's form; hosting providers use `postgres://`, libpq accepts `postgresql://`."""
        wanted = "must be postgresql://user:password@host:5432/database"
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise ValueError(wanted) from None
        if parsed.drivername not in _POSTGRES:
            raise ValueError(f"{wanted}, got the scheme {parsed.drivername!r}")
        return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, url: str) -> str:
        try:
            parsed = urlsplit(url)
            _ = parsed.port
        except ValueError:
            raise ValueError("must be amqp://user:password@host:5672/ or redis://host:6379/0") from None
        if parsed.scheme not in _BROKERS:
            raise ValueError(f"must begin with one of {', '.join(_BROKERS)}, got the scheme {parsed.scheme!r}")
        # Brokers' libraries compare schemes as written; a `REDISS://` would lose the certificate check.
        return parsed.scheme + url[len(parsed.scheme) :]


class ModelSettings(ProcessSettings):
    """Settings of a process's model, which the settings of API and worker inherit.

    `ALIGNEZ_MODEL` sets the model of all processes, `ALIGNEZ_API_MODEL` and `ALIGNEZ_WORKER_MODEL` that of one kind;
    the same holds for the other settings.
    """

    #: Catalogue name, GGUF file, model directory or hub id; None: the shipped persona-nano. `fake:` (with
    #: `?step_s=0.01&n_layers=4`) is an engine without a model, for tests.
    model: str | None = None
    #: Name of the base model for clients and profiles; None: the engine's name.
    model_name: str | None = None
    #: Commit or tag of a hub id.
    model_revision: str | None = None
    #: Directory of models converted from GGUF files, which `alignez models add` fills.
    model_cache: Path = Field(default_factory=default_model_cache)
    #: Module path of one block's MLP, with "{layer}", for an architecture that the engine does not list.
    mlp_path: str | None = None
    #: "auto" uses the tokenizer's chat template if it has one. A profile is valid for the format that it was fitted
    #: with, so API and workers need the same.
    prompt_format: Literal["auto", "plain", "chat"] = "auto"
    #: "vllm" needs vLLM 0.32 in this environment (`make setup-vllm`) and chooses the device itself. API and workers
    #: may run different engines.
    engine: Literal["transformers", "vllm"] = "transformers"
    #: vLLM: plans in use at the same time (None: twice the batch size), their rank, GPUs per process, compilation.
    vllm_slots: int | None = Field(None, ge=1, le=65536)
    vllm_rank: int = Field(4, ge=1, le=8)
    vllm_tensor_parallel: int = Field(1, ge=1, le=64)
    vllm_compile: bool = True
    device: str = "cpu"
    #: float32, bfloat16 or float16; "auto" chooses by model and device.
    dtype: str = "auto"
    #: CPU threads of the model; None: torch's choice. An API's event loop needs a separate core.
    threads: int | None = Field(None, ge=1, le=1024)

    def engine_values(self) -> dict[str, Any]:
        """These settings as arguments of the core's `EngineOptions`, which this package cannot import."""
        return self.model_dump(include=set(ModelSettings.model_fields))


class MetricsSettings(BaseSettings):
    """Settings of a process's Prometheus endpoint, which the settings of API and worker inherit."""

    #: Own port of the Prometheus endpoint; 0 picks a free one, None serves no metrics. Workers and relays that share a
    #: host need ports of their own.
    metrics_port: int | None = Field(None, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    #: Certificate (with its chain) and unencrypted key, PEM files: the endpoint then speaks HTTPS alone.
    metrics_tls_cert: Path | None = None
    metrics_tls_key: Path | None = Field(None, validate_default=True)

    @field_validator("metrics_tls_key")
    @classmethod
    def _metrics_pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        return with_certificate(key, info, "metrics_tls_cert")

    @property
    def metrics_tls(self) -> TlsFiles | None:
        """Files of the endpoint's certificate, which are not read yet."""
        return self._tls_files(self.metrics_tls_cert, self.metrics_tls_key, "METRICS_TLS")

    def _tls_files(self, cert: Path | None, key: Path | None, name: str) -> TlsFiles | None:
        if cert is None or key is None:
            return None
        return TlsFiles(cert, key, f"{self.model_config['env_prefix']}{name}")


def with_certificate(key: Path | None, info: ValidationInfo, cert_field: str) -> Path | None:
    """The key. Raises: ValueError: one of key and certificate is set without the other."""
    if cert_field in info.data and (key is None) != (info.data[cert_field] is None):
        raise ValueError("certificate and key are set together or not at all")
    return key


def variable_names(prefix: str) -> AliasGenerator:
    """Environment variables of settings: `prefix` and the field's name; for model settings also with `ALIGNEZ_`."""

    def names(field: str) -> AliasChoices:
        variables = [f"{prefix}{field.upper()}"]
        if field in ModelSettings.model_fields:
            variables.append(f"ALIGNEZ_{field.upper()}")
        return AliasChoices(*variables, field)

    return AliasGenerator(validation_alias=names)


def read_settings(kind: type[S]) -> S:
    """The settings of a process at its start.

    Raises: SystemExit: a setting is invalid; one line names its environment variable.
    """
    try:
        return kind()
    except SecretsDirMissing as error:
        raise SystemExit(f"alignez: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name, wrong = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
    except SettingsError as error:  # the value of a list or mapping is not JSON
        found = re.search(r'field "(\w+)"', str(error))
        name, wrong = found[1] if found else "", 'must be JSON, as ["one", "two"]'
    raise SystemExit(f"alignez: {_variable(kind, name)}: {wrong}")


def _variable(kind: type[BaseSettings], name: str) -> str:
    """The environment variable of a field's value. name: the field, or the first of its variables."""
    prefix: str = kind.model_config["env_prefix"]
    own = name if name.startswith(prefix) else f"{prefix}{name}".upper()
    shared = own.replace(prefix, "ALIGNEZ_", 1)
    return shared if own not in os.environ and shared in os.environ else own
