"""Jobs, their events and texts, and messages that wait to be sent."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, String, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from profiles.models.base import Base, CreatedAt, PublicId, SerialId, TenantId, same_tenant, state_column


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: States in which a job never changes again.
FINISHED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class JobKind(StrEnum):
    FIT = "fit"  #: makes a version ready
    EVALUATE = "evaluate"  #: proves a ready version again, which does not change


class Job(Base):
    """One fit or evaluation. This row is the truth; a message of the broker is only a hint to read it."""

    __tablename__ = "jobs"
    __table_args__ = (
        same_tenant("profile_id", "profiles"),
        same_tenant("version_id", "profile_versions"),
        CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name="lease_iff_running"),
        CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name="finished_at_iff_finished",
        ),
        UniqueConstraint("tenant_id", "id"),
        Index("uq_jobs_fit_of_version", "version_id", unique=True, postgresql_where=text("kind = 'fit'")),
        # A tenant's open jobs are counted under its lock at each of its requests for a fit. The condition is not the
        # status, because the planner would then use the index of all open jobs, which it estimates as nearly empty.
        Index("ix_jobs_unfinished", "tenant_id", postgresql_where=text("finished_at IS NULL")),
        Index("ix_jobs_open", "status", "lease_until", postgresql_where=text("status IN ('queued', 'running')")),
    )

    id: Mapped[PublicId]
    tenant_id: Mapped[TenantId]
    profile_id: Mapped[UUID] = mapped_column(index=True)
    version_id: Mapped[UUID] = mapped_column(index=True)
    kind: Mapped[JobKind] = mapped_column(
        state_column(JobKind, "kind"), default=JobKind.FIT, server_default=JobKind.FIT
    )
    request: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  #: an evaluation's settings
    status: Mapped[JobStatus] = mapped_column(state_column(JobStatus, "status"), default=JobStatus.QUEUED)
    stage: Mapped[str | None] = mapped_column(String(32))
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)  #: stage → {"done": …, "total": …}
    attempt: Mapped[int] = mapped_column(default=0)  #: number of claims; fences every write of a worker
    failures: Mapped[int] = mapped_column(default=0)  #: number of lost workers and retryable errors; bounded
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[datetime | None]
    run_after: Mapped[datetime | None]  #: earliest start, after a retryable error
    cancel_requested_at: Mapped[datetime | None]
    error_code: Mapped[str | None] = mapped_column(String(64))  #: of the last error, also during a retry
    error_message: Mapped[str | None] = mapped_column(Text)
    sent_at: Mapped[datetime | None]  #: time of the last message that the broker confirmed
    sends: Mapped[int] = mapped_column(
        default=0
    )  #: number of messages since the job was last queued; increases the pause between them
    event_at: Mapped[datetime | None]  #: time of the last progress event; bounds their number
    request_id: Mapped[str | None] = mapped_column(String(128))  #: of the request that created it
    traceparent: Mapped[str | None] = mapped_column(String(55))  #: W3C trace context of that request
    created_at: Mapped[CreatedAt]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobText(Base):
    """An intermediate text of a job, stored so that it survives a crash; removed when the job ends."""

    __tablename__ = "job_texts"
    __table_args__ = (same_tenant("job_id", "jobs", "CASCADE"),)

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(Text, primary_key=True)  #: as the core's `TextChunk.kind`
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[TenantId]
    text: Mapped[str] = mapped_column(Text)


class JobEvent(Base):
    """An event for a job's watchers; ids ascend within a job."""

    __tablename__ = "job_events"
    __table_args__ = (
        same_tenant("job_id", "jobs", "CASCADE"),
        Index(None, "job_id", "id"),
    )

    id: Mapped[SerialId]
    tenant_id: Mapped[TenantId]
    job_id: Mapped[UUID]
    kind: Mapped[str] = mapped_column(String(32))  #: queued, running, progress, retry, succeeded, failed, cancelled
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[CreatedAt]


class OutboxMessage(Base):
    """A message for the broker; the relay removes it after the broker's confirmation."""

    __tablename__ = "outbox"
    __table_args__ = (same_tenant("job_id", "jobs", "CASCADE"),)

    id: Mapped[SerialId]
    tenant_id: Mapped[TenantId]
    job_id: Mapped[UUID] = mapped_column(unique=True)
    created_at: Mapped[CreatedAt]
