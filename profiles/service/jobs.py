"""Jobs for their owner: listing, watching and cancelling."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func

from profiles.errors import InvalidSpec, JobFinished, NotFound
from profiles.models import FINISHED, Job, JobEvent, JobStatus, ProfileVersion
from profiles.paging import Page
from profiles.service.keys import Caller
from profiles.uow import UnitOfWork


def list_jobs(
    uow: UnitOfWork,
    caller: Caller,
    cursor: str | None = None,
    limit: int = 50,
    *,
    status: JobStatus | str | None = None,
) -> Page[Job]:
    """The caller's jobs, newest first, of one status if given. Raises: InvalidSpec: no such status."""
    if status is not None and status not in list(JobStatus):
        raise InvalidSpec("status", f"must be one of {', '.join(JobStatus)}")
    return uow.repository.jobs.jobs(caller.tenant_id, JobStatus(status) if status else None, cursor, limit)


def get_job(uow: UnitOfWork, caller: Caller, job_id: UUID) -> Job:
    """A job. Raises: NotFound: also for a job of another tenant."""
    job = uow.repository.jobs.job(caller.tenant_id, job_id)
    if job is None:
        raise NotFound("job", job_id)
    return job


def cancel_job(uow: UnitOfWork, caller: Caller, job_id: UUID) -> Job:
    """Cancels a queued job at once; requests a running one to stop between two batches. Idempotent.

    Raises: NotFound. JobFinished: it has succeeded or failed.
    """
    jobs = uow.repository.jobs
    job = jobs.job(caller.tenant_id, job_id, lock=True)
    if job is None:
        raise NotFound("job", job_id)
    if job.status is JobStatus.CANCELLED:
        return job
    if job.status in FINISHED:
        raise JobFinished(job_id, job.status.value)
    if job.cancel_requested_at is None:
        job.cancel_requested_at = func.clock_timestamp()
        uow.session.flush()
        uow.repository.accounts.audit(caller.tenant_id, caller.key_id, "job.cancel", "job", job.id)
    if job.status is JobStatus.QUEUED:
        jobs.finish(job, JobStatus.CANCELLED, "cancelled", "cancelled before it started")
    uow.session.refresh(job)
    return job


def job_events(uow: UnitOfWork, caller: Caller, job_id: UUID, after_id: int = 0, limit: int = 200) -> list[JobEvent]:
    """Events of a job after the one with `after_id`, oldest first. Raises: NotFound."""
    job = get_job(uow, caller, job_id)
    return uow.repository.jobs.events(job.id, max(0, min(after_id, 2**63 - 1)), limit)


def fit_job(uow: UnitOfWork, version: ProfileVersion) -> Job | None:
    """The job that fits or fitted a version."""
    return uow.repository.jobs.of_version(version.id)


def version_numbers(uow: UnitOfWork, jobs: Sequence[Job]) -> dict[UUID, int]:
    """The number of each job's version, by the version's id."""
    return uow.repository.catalog.version_numbers([job.version_id for job in jobs])
