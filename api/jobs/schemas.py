"""Response bodies of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self
from uuid import UUID

from pydantic import BaseModel, Field

from profiles.models import Job

JobStatusName = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Progress(BaseModel):
    """Progress of a stage."""

    done: int
    total: int


class JobFailure(BaseModel):
    """Error of a job or of its last attempt; `code` is stable."""

    code: str
    message: str | None


class JobRead(BaseModel):
    """One fit or evaluation. `progress` has an entry for every stage that has begun."""

    id: UUID
    kind: Literal["fit", "evaluate"]
    status: JobStatusName
    stage: str | None
    progress: dict[str, Progress]
    error: JobFailure | None
    profile_id: UUID
    version: int | None
    attempt: int
    cancel_requested: bool
    request_id: str | None = Field(
        description="of the request that created the job; the job's log lines and traces have it"
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: Job, version: int | None) -> Self:
        """Converts a job; `version` is the number of its version."""
        error = JobFailure(code=job.error_code, message=job.error_message) if job.error_code else None
        return cls(
            id=job.id,
            kind=job.kind.value,
            status=job.status.value,
            stage=job.stage,
            progress={stage: Progress(**counts) for stage, counts in job.progress.items()},
            error=error,
            profile_id=job.profile_id,
            version=version,
            attempt=job.attempt,
            cancel_requested=job.cancel_requested_at is not None,
            request_id=job.request_id,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
        )
