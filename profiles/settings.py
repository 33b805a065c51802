"""Settings that every process shares: where the database and the broker are."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class DatabaseSettings(BaseSettings):
    """Read once by a process's factory from `ALIGNEZ_*` environment variables."""

    model_config = SettingsConfigDict(env_prefix="ALIGNEZ_", extra="ignore")

    database_url: str = Field(
        default="postgresql+psycopg://alignez:alignez@127.0.0.1:5432/alignez",
        description="SQLAlchemy URL of Postgres 16+ with pgvector 0.7+ (driver psycopg).",
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
        default=100, ge=1, description="Jobs a tenant may have waiting or running, unless its row says otherwise."
    )
